#!/usr/bin/env python3
"""Write docs/methods.md: every algorithm with what holds it, what it is made of, and what was measured of it.

Nothing in the table is written by hand: it is read from the recipes, from the tests of golden vectors, and from
``benchmarks/results``. A test holds page and script together.

python scripts/method_table.py
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.pop("TURNWISE_GOLDEN", None)  # the vectors of the repository, whatever a test run looks at

from tests.golden import vectors  # noqa: E402
from turnwise.algorithms.common import FreshGroups  # noqa: E402
from turnwise.algorithms.composing import ComposerAround  # noqa: E402
from turnwise.algorithms.description import by_kind  # noqa: E402
from turnwise.algorithms.registry import ALGORITHMS, build, resolve  # noqa: E402
from turnwise.config.files import load_config  # noqa: E402
from turnwise.learning.parts import Part  # noqa: E402
from turnwise.learning.recipe import Recipe, layers  # noqa: E402
from turnwise.learning.settings import RunInfo, Settings  # noqa: E402

PAGE = ROOT / "docs" / "methods.md"
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "not measured"
INTRODUCTION = """# All methods in one table

`python scripts/method_table.py` writes this page from the code, the tests and the recorded runs; nothing in it is
written by hand. What a method is and where it differs from its paper is on its own page, how the runs were made in the
[benchmarks](benchmarks/index.md).

- **points**: the [extension points](cookbook/own_algorithm.md) that the method's own parts use, at its documented
  defaults and beside those of its base. W shapes rewards, D composes streams (other than all fresh groups), R plans
  what is played, A estimates or changes advantages, T weighs tokens, C clips the ratio, G is a term of the loss, O a
  loss of its own, S heats the sampler, K keeps state in checkpoints.
- **lines**: of the recipe's file, docstring and settings included. Parts that recipes share are in files beside it.
- **vectors**: files of reference numbers in `tests/golden`, and how many of their cases a test reads: those named
  after the method, and those whose test uses a part of its file. Those that begin with `derived_` were computed from
  equations, all others by the code of the authors or of other projects. Bases stand below most methods in these tests,
  and are named where a test is of nothing else.
- **acted**: what each mechanism counted of itself in recorded runs, mean over seeds; a share says how often it acted.
- **result**: sampled success on unseen tasks after training, in %, with its 95 % interval and the number of episodes;
  what training gained, and the difference to GRPO, in points, paired by task and seed. Each begins with the
  configuration, which may set a method otherwise than its page does; `learning/household` and
  `learning/sweep` have the documented defaults. A difference of one seed says nothing of other seeds.
"""


class Cases(list[Any]):
    """A golden file's cases, with its name."""

    file = ""


def golden() -> Iterator[tuple[str, set[str], set[str]]]:
    """Of every test of vectors: the file, the cases' numbers, the algorithms whose modules it uses."""
    plain = vectors.cases

    def named(name: str, *wanted: Any) -> Cases:
        found = Cases(plain(name, *wanted))
        found.file = name
        return found

    vectors.cases = named
    for path in sorted((ROOT / "tests" / "golden").glob("test_*.py")):
        module = importlib.import_module(f"tests.golden.{path.stem}")
        for test in [f for name, f in vars(module).items() if name.startswith("test_") and isinstance(f, FunctionType)]:
            for mark in getattr(test, "pytestmark", []):
                for found in (given for given in mark.args if isinstance(given, Cases)):
                    yield found.file, {str(case.id) for case in found}, used(test, set())


def used(function: FunctionType, seen: set[FunctionType]) -> set[str]:
    """The algorithms of whose modules a test uses something, itself or through other functions of the tests."""
    found = set[str]()
    if function in seen:
        return found
    seen.add(function)
    for name in names(function.__code__):
        value = function.__globals__.get(name)
        package, _, module = (getattr(value, "__module__", None) or "").rpartition(".")
        if isinstance(value, FunctionType) and package.startswith("tests"):
            found |= used(value, seen)
        elif package == "turnwise.algorithms" and module in ALGORITHMS:
            found.add(module)
    return found


def names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names(inner)


def named_in(file: str) -> set[str]:
    """The algorithms that a file's name names: ``clip_cov_kl_cov`` two of them, ``aepo_arbitrary_batch`` one."""
    left, found = f"_{file}_", set[str]()
    for name in sorted(ALGORITHMS, key=len, reverse=True):
        if f"_{name}_" in left:
            found.add(name)
            left = left.replace(f"_{name}_", "__")
    return found


def held() -> tuple[dict[str, dict[str, set[str]]], dict[str, set[str]]]:
    """Files and their cases by algorithm; and those of arithmetic that belongs to none."""
    bases = {about.name for about in by_kind()["bases"]}
    of, shared = {name: defaultdict[str, set[str]](set) for name in ALGORITHMS}, defaultdict[str, set[str]](set)
    for file, numbers, tested in golden():
        named = named_in(file)
        algorithms = (named & tested or named) | (tested - bases or tested)
        for name in algorithms:
            of[name][file] |= numbers
        if not algorithms:
            shared[file] |= numbers
    return {name: dict(found) for name, found in of.items()}, dict(shared)


def points(name: str) -> str:
    """The letters of the points that an algorithm's own parts use."""
    config = resolve(name).config()
    base = getattr(config, "base", None)
    known = [] if not isinstance(base, Settings) else [kind(part) for _, part in placed(recipe(base))]
    own = [(letter, part) for letter, part in placed(recipe(config)) if kind(part) not in known]
    found = {letter for letter, _ in own} | {"K" for _, part in own if keeps_state(part)}
    return " ".join(letter for letter in "WDRATCGOSK" if letter in found)


def kind(part: object) -> tuple[type, dict[str, object]]:
    """A part's class with its plain settings: a base's part that was made otherwise is a part of one's own."""
    attributes = getattr(part, "__dict__", {})  # a planner with slots has no settings that a base would share
    plain = {name: value for name, value in attributes.items() if isinstance(value, int | float | str | None)}
    return type(part), plain


def recipe(config: Settings) -> Recipe:
    return build(config, RunInfo(num_updates=10, group_size=8))


def placed(made: Recipe) -> Iterator[tuple[str, object]]:
    """Every part with the letter of its point."""
    yield from (("W", part) for part in made.shapers)
    yield from (("D", part) for part in layers(made.composer) if not isinstance(part, FreshGroups))
    yield from (("R", part) for part in layers(made.planner))
    for stream in made.streams:
        yield from (("A", part) for part in (stream.estimator, *stream.modifiers) if part is not None)
        yield from (("T", part) for part in stream.weighters)
        yield from (("C", part) for part in (stream.clip,) if part is not None)
        yield from (("G", part) for part, _ in stream.regularizers)
        yield from (("O", part) for part, _ in stream.objectives)
    if made.heating is not None:
        yield "S", made.heating


def keeps_state(part: object) -> bool:
    if isinstance(part, ComposerAround):
        return type(part).own_state is not ComposerAround.own_state
    return isinstance(part, Part) and type(part).state_dict is not Part.state_dict


def recorded() -> tuple[dict[str, list[dict[str, float]]], dict[str, list[str]]]:
    """By algorithm: the mechanisms of each recorded run, and the results as they are shown."""
    mechanisms, results = defaultdict[str, list[dict[str, float]]](list), defaultdict[str, list[str]](list)
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        pooled = found.get("to_grpo", {})
        runs = [(run, *of_command(run["command"])) for run in trained(found)]
        for run, config, algorithm, seed in runs:
            if "mechanisms" in run:
                mechanisms[algorithm].append(run["mechanisms"])
            if not pooled and "superseded" not in run:
                gain = f", gained {points_of(run['gain'])}" if "gain" in run else ""
                results[algorithm].append(f"`{config}`, seed {seed}: {success(run['after'])}{gain}")
        for algorithm, line in pooled.items():
            of = [(config, seed) for _, config, name, seed in runs if name == algorithm]
            difference = line["difference"]
            against = "" if difference is None else f"; to GRPO {points_of(difference['estimate'])}"
            seeds = "1 seed" if len(of) == 1 else f"{len(of)} seeds"
            results[algorithm].append(f"`{of[0][0]}`, {seeds}: {success(line['after'])}{against}")
    return mechanisms, results


def trained(found: Any) -> Iterator[dict[str, Any]]:
    """Runs in a file of results: what has a command that trains, and a measurement after it."""
    if isinstance(found, dict):
        command = found.get("command")
        if isinstance(command, str) and command.startswith("turnwise train ") and "after" in found:
            if "algorithm." not in command:  # with its documented settings
                yield found
            return
        found = list(found.values())
    if isinstance(found, list):
        for inner in found:
            yield from trained(inner)


def of_command(command: str) -> tuple[str, str, int]:
    """What a ``turnwise train CONFIG [--algorithm NAME] [KEY=VALUE ...]`` trains: configuration, algorithm, seed."""
    config, *rest = shlex.split(command)[2:]
    asked = rest[rest.index("--algorithm") + 1] if "--algorithm" in rest else None
    made = load_config(config, [word for word in rest if "=" in word], algorithm=asked)
    return config, str(getattr(made.algorithm, "type", "")), made.seed


def success(after: dict[str, Any]) -> str:
    found = after.get("sampled", {}).get("success", after)
    low, high = (f"{100 * found[end]:.1f}" for end in ("low", "high"))
    return f"{100 * found['value']:.1f} [{low}, {high}] of {found['num']}"


def points_of(found: dict[str, float]) -> str:
    value, low, high = (f"{100 * found[part]:+.1f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def acted(runs: list[dict[str, float]] | None) -> str:
    if runs is None:
        return NOT_MEASURED
    counters = list(dict.fromkeys(name for run in runs for name in run))
    means = {name: sum(run.get(name, 0.0) for run in runs) / len(runs) for name in counters}
    return "<br>".join(f"{name} {value:.3g}" for name, value in means.items()) or "counts none"


def page() -> str:
    """The whole document."""
    of, shared = held()
    mechanisms, results = recorded()
    lines = [INTRODUCTION, "| method | kind | paper | points | lines | vectors | acted | result |", "| --- " * 8 + "|"]
    for sort, found in by_kind().items():
        for each in found:
            assert each.about is not None
            name, arxiv, code = each.name, each.about.arxiv, each.about.code.partition(" ")[0]
            paper = f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else code
            size = len((ROOT / "turnwise" / "algorithms" / f"{name}.py").read_text().splitlines())
            cells = [
                f"[`{name}`](algorithms/{name}.md)",
                sort,
                paper,
                points(name),
                str(size),
                listed(of[name]) or "none",
                acted(mechanisms.get(name)),
                "<br>".join(results.get(name, [NOT_MEASURED])),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    others = f"Arithmetic that many methods share is held by {listed(shared, ', ')}."
    return "\n".join([*lines, "", others]) + "\n"


def listed(files: dict[str, set[str]], between: str = "<br>") -> str:
    return between.join(f"`{file}` {len(numbers)}" for file, numbers in sorted(files.items()))


if __name__ == "__main__":
    PAGE.write_text(page())
