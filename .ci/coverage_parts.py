"""The coverage of each part of turnwise, lines and branches together, from the JSON report of coverage.py.

    python .ci/coverage_parts.py coverage.json

Names the parts under 85 %. It only reports: its exit code is 0.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

LOW = 85.0


def main() -> None:
    files = json.loads(Path(sys.argv[1]).read_text())["files"]
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for name, file in files.items():
        found = file["summary"]
        counts = [found[key] for key in ("covered_lines", "num_statements", "covered_branches", "num_branches")]
        for part in (Path(name).parts[1].removesuffix(".py"), "all"):
            sums[part] = [a + b for a, b in zip(sums[part], counts, strict=True)]
    sys.stdout.write("coverage in percent    lines  branches  together\n")
    low = []
    for part, (lines, all_lines, branches, all_branches) in sorted(
        sums.items(), key=lambda row: (row[0] == "all", row)
    ):
        together = percent(lines + branches, all_lines + all_branches)
        row = f"{percent(lines, all_lines):9.1f} {percent(branches, all_branches):9.1f} {together:9.1f}"
        sys.stdout.write(f"  {part:<16} {row}\n")
        if part != "all" and together < LOW:
            low.append(f"{part} ({together:.1f} %)")
    sys.stdout.write(f"parts under {LOW:.0f} %: {', '.join(low) or 'none'}\n")


def percent(covered: int, num: int) -> float:
    """100 where there is nothing to cover."""
    return 100.0 * covered / num if num else 100.0


if __name__ == "__main__":
    main()
