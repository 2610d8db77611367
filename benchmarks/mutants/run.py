"""Do the tests notice when the mathematics is wrong? A random sample of small faults, each against what reaches it.

    python benchmarks/mutants/run.py --out DIR                  400 mutants of turnwise/algorithms and turnwise/replay
    python benchmarks/mutants/run.py --out DIR --resume         go on after an interruption, or with a larger --num
    python benchmarks/mutants/run.py --out DIR --files turnwise/algorithms/epo.py --num 0      all of a file
    python benchmarks/mutants/run.py --out DIR --again          what survived before, against today's tests
    python benchmarks/mutants/run.py --out DIR --report         what is known already, as a table

Mutants are drawn by the hash of (seed, mutant): a change elsewhere in the code leaves the rest of the sample as it is.
Each is tried in a child of one warm process against the tests that enter its function, the quickest first, until one
fails. A mutant survives that none of them notices; those of ``equivalents.json`` change nothing that could be noticed,
each for the reason given there, and are not counted. Results: DIR/mutants.json after every mutant.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from operators import Mutant, mutants
from trials import Test, as_record, load_libraries, measured, reaching, tried

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENTS = Path(__file__).with_name("equivalents.json")
FILES = ("turnwise/algorithms", "turnwise/learning", "turnwise/replay")
TESTS = (
    "tests/algorithms", "tests/golden", "tests/learning", "tests/replay", "tests/test_prefixes.py", "tests/config",
    "tests/evaluation/test_mechanisms.py",
)  # fmt: skip
MARKS = "not slow and not gpu"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 1 where more than --most percent survive."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--out", type=Path, required=True, help="folder of the results")
    asked.add_argument("--num", type=int, default=400, help="mutants; 0: all")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--files", nargs="+", default=FILES, help="files and folders that are changed")
    asked.add_argument("--tests", nargs="+", default=TESTS, help="files and folders of tests that must notice")
    asked.add_argument("--budget-s", type=float, default=90.0, help="time for one mutant")
    asked.add_argument("--minutes", type=float, default=1e9, help="stop after this time; go on with --resume")
    asked.add_argument("--resume", action="store_true", help="keep what is in the folder")
    asked.add_argument("--again", action="store_true", help="with what survived or was not reached before, alone")
    asked.add_argument("--report", action="store_true", help="try nothing")
    asked.add_argument("--most", type=float, default=5.0, help="percent that may survive")
    given = asked.parse_args(words)
    path = given.out / "mutants.json"
    known = _known(path) if given.resume or given.again or given.report else {}
    if not given.report:
        sample = _sample(given.files, given.num, given.seed)
        if given.again:
            alive = ("survived", "unreached")
            sample = [m for m in sample if known.get(m.key, {}).get("verdict") in alive and m.key not in _reasons()]
        else:
            sample = [m for m in sample if m.key not in known]
        given.out.mkdir(parents=True, exist_ok=True)
        _run(sample, known, given, path)
    return _report(known.values(), given.most)


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {record["key"]: record for record in json.loads(path.read_text())["mutants"]}


def _reasons() -> dict[str, str]:
    """Why a mutant changes nothing that could be noticed, by its key."""
    return {entry["key"]: entry["reason"] for entry in json.loads(EQUIVALENTS.read_text())["mutants"]}


def _sample(files: Iterable[str], num: int, seed: int) -> list[Mutant]:
    paths = [p for name in files for p in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    every = [mutant for path in sorted(paths) for mutant in mutants(path, ROOT)]
    print(f"{len(every)} mutants of {len(paths)} files; seed {seed}", flush=True)
    every.sort(key=lambda mutant: hashlib.sha256(f"{seed}:{mutant.key}".encode()).digest())
    return every[: num or None]


def _run(sample: Sequence[Mutant], known: dict[str, dict[str, Any]], given: argparse.Namespace, path: Path) -> None:
    began = time.monotonic()
    if not sample:
        return
    load_libraries()
    tests = _tests([name for name in given.tests if (ROOT / name).exists()], given.out / "tests.json")
    print(f"{len(tests)} tests, {sum(test.seconds for test in tests):.0f} s; {len(sample)} mutants to try", flush=True)
    for number, mutant in enumerate(sample, start=1):
        outcome = tried(ROOT, mutant, reaching(mutant, tests), given.budget_s)
        known[mutant.key] = as_record(mutant, outcome)
        kept = {"seed": given.seed, "num": given.num, "mutants": list(known.values())}
        path.with_suffix(".part").write_text(json.dumps(kept, indent=1))
        path.with_suffix(".part").replace(path)
        mark = "" if outcome.verdict == "killed" else f"  {mutant.operator}: {mutant.before}  =>  {mutant.after}"
        print(
            f"{number:4} {outcome.verdict:9} {outcome.seconds:5.1f} s {outcome.tried:4}/{outcome.reaching:<4} "
            f"{mutant.file}:{mutant.line}{mark}",
            flush=True,
        )
        if time.monotonic() - began > 60 * given.minutes:
            print("stopped: the time is over; --resume goes on", flush=True)
            return


def _tests(names: Sequence[str], path: Path) -> list[Test]:
    """Every test with its time and the functions that it enters; measured anew where code or tests have changed."""
    digest = hashlib.sha256(repr(names).encode())
    for file in sorted(file for folder in ("turnwise", "tests") for file in (ROOT / folder).rglob("*.py")):
        digest.update(file.read_bytes())
    if path.exists() and (kept := json.loads(path.read_text()))["digest"] == digest.hexdigest():
        return [Test(name, seconds, frozenset(calls)) for name, seconds, calls in kept["tests"]]
    found = measured(ROOT, names, FILES, MARKS, limit_s=1800.0)
    kept = {"digest": digest.hexdigest(), "tests": [(t.name, t.seconds, sorted(t.calls)) for t in found]}
    path.write_text(json.dumps(kept))
    return found


def _report(records: Iterable[dict[str, Any]], most: float) -> int:
    """The table by file, then every survivor; the exit code."""
    reasons = _reasons()
    found = sorted(records, key=lambda record: (record["file"], record["line"]))
    counted = [record for record in found if record["key"] not in reasons]
    alive = [record for record in counted if record["verdict"] != "killed"]
    print(
        "\n| file | mutants | killed | survived | of these not reached | equivalent |"
        "\n| --- | --- | --- | --- | --- | --- |"
    )
    for file in sorted({record["file"] for record in found}):
        own = [record for record in found if record["file"] == file]
        verdicts = Counter(
            "equivalent" if record["key"] in reasons and record["verdict"] != "killed" else record["verdict"]
            for record in own
        )
        left = verdicts["survived"] + verdicts["unreached"]
        print(
            f"| {file} | {len(own)} | {verdicts['killed']} | {left} | {verdicts['unreached']} "
            f"| {verdicts['equivalent']} |"
        )
    for record in alive:
        print(
            f"\n{record['file']}:{record['line']} {record['function']} [{record['key']}] {record['operator']}"
            f" ({record['verdict']}, {record['tried']} of {record['reaching']} tests)"
            f"\n  - {record['before']}\n  + {record['after']}"
        )
    share = 100.0 * len(alive) / max(len(counted), 1)
    print(
        f"\n{len(alive)} of {len(counted)} survive: {share:.1f} % ({len(found) - len(counted)} equivalent, not counted)"
    )
    return int(share > most)


if __name__ == "__main__":
    sys.exit(main())
