#!/usr/bin/env python3
"""Write the table of settings into every page of docs/algorithms, and their index, as the code has them.

Tests hold the pages and the code together.

python scripts/algorithm_pages.py
"""

from __future__ import annotations

from pathlib import Path

import yaml

from turnwise.agents.decoding import METHODS
from turnwise.algorithms.description import by_kind, describe
from turnwise.algorithms.registry import ALGORITHMS

PAGES = Path(__file__).resolve().parent.parent / "docs" / "algorithms"
INDEX = """# Algorithms

`turnwise train --algorithm NAME` trains an algorithm with its documented defaults. `turnwise algorithms NAME` prints
its equations, its settings, and where it differs from the paper and the released code. What each one reached is on its
page and in the [benchmarks](../benchmarks/index.md); [one table](../methods.md) has what holds each and what was
measured. A [how-to page](../cookbook/own_algorithm.md) shows how to write one of your own.

The lists say what is new in an algorithm. Bases are whole algorithms. So are
WHOLE: what is new in them is the credit.

All others are put on top of a base, and may be put on top of each other. Each has a default for its base, which you may
change: `algorithm.base.type=gspo`. Two that would steer the same thing are refused together.
"""
DECODING = "Methods of the agent, beside any algorithm, in training and evaluation: `agent.decoding.SECTION.KEY=VALUE`."
HEADING = "## Every setting, as it is by default"
SOURCES = "## Where the defaults come from"


def table(name: str) -> str:
    """The sections of a page: each setting, its base's too, with its default as YAML; and where defaults come from."""
    lines = [HEADING, "", "| setting | default | meaning |", "| --- | --- | --- |"]
    for setting in describe(name).settings:
        lines.append(f"| `{setting.name}` | {plain(setting.default)} | {setting.meaning.replace('|', chr(92) + '|')} |")
    found = describe(name)
    assert found.about is not None
    if found.about.sources:
        defaults = {setting.name: plain(setting.default) for setting in found.settings}
        lines += ["", SOURCES, "", "| setting | default | from |", "| --- | --- | --- |"]
        for names, text in found.about.sources.items():
            own = names.split(", ")
            shown = ", ".join(f"`{setting}`" for setting in own)
            lines.append(f"| {shown} | {', '.join(defaults[setting] for setting in own)} | {text} |")
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
    """The page with its sections of settings replaced, or added at the end; the sections after them stay."""
    before, _, rest = text.partition(HEADING)
    if SOURCES in section:
        rest = rest.partition(SOURCES)[2] or rest
    _, following, after = rest.partition("\n## ")
    return before.rstrip("\n") + "\n\n" + section + following + after


def index() -> str:
    """The page that lists the algorithms, each with its page and its summary, by what they change."""
    lists = by_kind()
    whole = [f"`{a.name}`" for kind in lists if kind != "bases" for a in lists[kind] if not a.is_modifier]
    lines = [INDEX.replace("WHOLE", f"{', '.join(whole[:-1])} and {whole[-1]}")]
    for kind, found in lists.items():
        lines += [f"## {kind.capitalize()}", "", "| name | what it is |", "| --- | --- |"]
        lines += [f"| [`{a.name}`]({a.name}.md) | {a.summary} |" for a in found] + [""]
    lines += ["## Decoding", "", DECODING, "", "| section | what it is |", "| --- | --- |"]
    lines += [f"| [`{name}`](../decoding.md) | {method.summary()} |" for name, method in METHODS.items()] + [""]
    return "\n".join(lines)


def main() -> None:
    (PAGES / "index.md").write_text(index())
    for name in ALGORITHMS:
        page = PAGES / f"{name}.md"
        page.write_text(with_table(page.read_text(), table(name)))


if __name__ == "__main__":
    main()
