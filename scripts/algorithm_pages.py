#!/usr/bin/env python3
"""Write the table of settings into every page of docs/algorithms, as the code has them (tests hold the two together).

python scripts/algorithm_pages.py
"""

from __future__ import annotations

from pathlib import Path

import yaml

from turnwise.algorithms.description import describe
from turnwise.algorithms.registry import ALGORITHMS

PAGES = Path(__file__).resolve().parent.parent / "docs" / "algorithms"
HEADING = "## Every setting, as it is by default"


def table(name: str) -> str:
    """The section of a page: each setting, its base's too, with its default as YAML."""
    lines = [HEADING, "", "| setting | default | meaning |", "| --- | --- | --- |"]
    for setting in describe(name).settings:
        lines.append(f"| `{setting.name}` | {plain(setting.default)} | {setting.meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def plain(value: object) -> str:
    """A default as a person would write it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    if isinstance(value, float):
        return yaml.safe_dump(value).partition("\n")[0].removesuffix(".0")  # 1.0e-06: what YAML reads as a number
    return str(value)


def with_table(text: str, section: str) -> str:
    """The page with its section of settings replaced, or added at the end; the sections after it stay."""
    before, _, rest = text.partition(HEADING)
    _, following, after = rest.partition("\n## ")
    return before.rstrip("\n") + "\n\n" + section + following + after


def main() -> None:
    for name in ALGORITHMS:
        page = PAGES / f"{name}.md"
        page.write_text(with_table(page.read_text(), table(name)))


if __name__ == "__main__":
    main()
