"""What bad input was tried and how it ended, as a Markdown table. Exit code 1 where anything ended badly.

    python benchmarks/fuzz.py --cases 20000 --seed 0                    all kinds
    python benchmarks/fuzz.py --kind worlds --cases 500                 one of them
    python benchmarks/fuzz.py --kind worlds --case 17 --seed 0          one case again, with its traceback

The cases are those of ``tests/fuzz``; the ordinary tests take the first few of each kind.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=20_000, help="of all kinds together")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", help="this one alone")
    options.add_argument("--case", type=int, help="this one alone, of --kind")
    options.add_argument("--out", type=Path, help="also write the table here")
    given = options.parse_args()
    warnings.simplefilter("ignore")

    import torch

    from tests.fuzz.harness import Fault, Tally, attempt, attempts
    from tests.fuzz.kinds import KINDS

    torch.set_num_threads(1)
    kinds = [kind for kind in KINDS if given.kind in (None, kind.name)]
    if not kinds:
        options.error(f"--kind knows {', '.join(kind.name for kind in KINDS)}")
    if given.case is not None:
        ended = attempt(kinds[0], given.case, given.seed)
        print(ended.text if isinstance(ended, Fault) else ended)
        return int(isinstance(ended, Fault))
    began = time.process_time()
    shares = sum(kind.share for kind in kinds)
    tallies: list[Tally] = []
    for kind in kinds:
        tallies.append(attempts(kind, max(1, round(given.cases * kind.share / shares)), given.seed))
        print(f"{kind.name}: {tallies[-1].num:,} cases, {len(tallies[-1].faults)} ended badly", file=sys.stderr)
        for fault in tallies[-1].faults[:5]:
            print(f"--kind {kind.name!r} --case {fault.number}: {fault.text.strip().splitlines()[-1]}", file=sys.stderr)
    lines = ["| kind | tried | cases | ended | badly |", "| --- | --- | --- | --- | --- |"]
    for tally in tallies:
        endings = "; ".join(f"{ending}: {num:,}" for ending, num in tally.endings.most_common())
        lines.append(f"| {tally.kind.name} | {tally.kind.tried} | {tally.num:,} | {endings} | {len(tally.faults)} |")
    bad, total = sum(len(tally.faults) for tally in tallies), sum(tally.num for tally in tallies)
    seconds = time.process_time() - began
    lines.append(f"\n{total:,} cases (seed {given.seed}), {bad} ended badly; {seconds:.0f} CPU seconds.")
    table = "\n".join(lines) + "\n"
    print(table)
    if given.out:
        given.out.write_text(table)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
