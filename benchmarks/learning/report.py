"""Tables and learning curves of the finished cells, as Markdown and SVG.

python benchmarks/learning/report.py --to docs/learning.md --svg docs/images/learning.svg
python benchmarks/learning/report.py --setting epo --recorded benchmarks/results/learning_epo.json --to epo.md
                                              the arms of a setting, from a file of record.py
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from arms import BASELINE
from arms_report import arms_page
from claims import CLAIMS, Measured, number, over_seeds
from design import Cell, finished_cells, tuned
from record import known
from settings import SETTINGS

from turnwise.evaluation.compare import Comparison, compare
from turnwise.evaluation.comparison_view import curves_svg, markdown
from turnwise.evaluation.contenders import read_run
from turnwise.statistics import Estimate


def main(words: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--setting", choices=list(SETTINGS), default="household")
    asked.add_argument("--out", type=Path, default=Path("runs/learning"), help="what run.py was told")
    asked.add_argument("--to", type=Path, required=True, help="Markdown file to write")
    asked.add_argument("--svg", type=Path, help="SVG file to write; not of arms")
    asked.add_argument("--recorded", type=Path, help="file of record.py; of arms")
    given = asked.parse_args(words)
    if SETTINGS[given.setting].arms:
        if given.recorded is None or given.svg is not None:
            asked.error(f"{given.setting} has arms: their table is made of --recorded FILE, and they have no --svg")
        _write(given.to, arms_page(given.setting, known(given.recorded, given.setting)))
        return
    if given.svg is None or given.recorded is not None:
        asked.error(f"{given.setting} is reported from its runs: give --svg FILE, and no --recorded")
    finished = finished_cells(given.setting, given.out)
    if not any(cell.method == BASELINE for cell in finished):
        asked.error(
            f"{given.out / given.setting} holds no finished seed of {BASELINE}, which the others are held against"
        )
    comparison = compare([given.out / cell.folder for cell in finished], baseline=BASELINE)
    picture = os.path.relpath(given.svg, given.to.parent)
    _write(given.svg, curves_svg(comparison))
    _write(given.to, page(given.setting, given.out, finished, comparison, picture))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def page(setting: str, out: Path, finished: Sequence[Cell], comparison: Comparison, picture: str) -> str:
    """The whole document; ``picture`` is the SVG's path from there."""
    made = json.loads((out / finished[0].folder / "run.json").read_text())
    found = SETTINGS[setting]
    title = f"# Learning, {setting}: {comparison.env}"
    about = (
        f"`python benchmarks/learning/run.py --setting {setting}`, commit {made['commit'] or 'unknown'}, "
        f"{made['platform']}, Python {made['python']}, torch {made['versions']['torch']}. Each run"
        f"{' and each tuning trial' if found.untuned is None else ''} sampled {found.budget:,} tokens. Made by "
        "`benchmarks/learning/report.py`; the design is in `benchmarks/learning/design.py`."
    )
    parts = [title, about, f"![learning curves]({picture})", markdown(comparison).rstrip()]
    return "\n\n".join([*parts, _claims(out, finished, comparison), _choices(setting, out, finished)]) + "\n"


def _claims(out: Path, finished: Sequence[Cell], comparison: Comparison) -> str:
    """Mean of each measure over seeds, and in brackets its difference to the baseline, paired by seed."""
    runs = {(cell.method, cell.seed): read_run(out / cell.folder) for cell in finished}
    base = {seed: run for (method, seed), run in runs.items() if method == BASELINE}
    values: dict[tuple[str, int], list[float]] = {}
    for (method, seed), run in runs.items():
        if seed in base:
            of = Measured(run, base[seed], comparison.horizon["tokens"])
            values[method, seed] = [number(claim.measure(of)) for claim in CLAIMS]
    lines = [
        ["method", *(f"{claim.title} ({claim.paper}: {claim.better})" for claim in CLAIMS)],
        ["---"] * (len(CLAIMS) + 1),
    ]
    for name in dict.fromkeys(method for method, _ in values):
        own = {seed: found for (method, seed), found in values.items() if method == name}
        gaps = {
            seed: [x - y for x, y in zip(found, values[BASELINE, seed], strict=True)] for seed, found in own.items()
        }
        row = [name]
        for i in range(len(CLAIMS)):
            mean, gap = (over_seeds([found[i] for found in of.values()]) for of in (own, gaps))
            row.append(f"{mean.value:.3f}{_change(gap) if name != BASELINE else ''}" if mean else "-")
        lines.append(row)
    said = "Measures of what the papers claim, with the direction that would bear the claim out:"
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([said, table, "\n".join(f"- {claim.title}: {claim.says}." for claim in CLAIMS)])


def _change(gap: Estimate | None) -> str:
    if gap is None:
        return ""
    interval = f" [{gap.low:+.3f}, {gap.high:+.3f}]" if gap.num > 1 else ""
    return f" ({gap.value:+.3f}{interval})"


def _choices(setting: str, out: Path, finished: Sequence[Cell]) -> str:
    """What the tuning trials chose for each method, or what all of them were given."""
    chosen = "chosen by its trials" if SETTINGS[setting].untuned is None else "given, without trials"
    lines = [f"| method | {chosen} | updates planned |", "| --- | --- | --- |"]
    for method in dict.fromkeys(cell.method for cell in finished):
        choice, num_updates = tuned(setting, method, out)
        lines.append(f"| {method} | {', '.join(f'`{each}`' for each in choice)} | {num_updates} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
