"""The README's picture: ``python scripts/picture.py RUN OUT.svg`` draws a finished run as it looked two thirds through,
and its closing table.
"""

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from turnwise.commands.display import LiveDisplay, result_table
from turnwise.evaluation.report import Report
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import Estimate
from turnwise.training.experiment import Result


def main(folder: str, out: str) -> None:
    run = RunDirectory.open(folder)
    config, lines = run.config(), run.metrics()
    console = Console(record=True, width=100, force_terminal=True, file=io.StringIO())
    title = f"turnwise · {config.env.id} · {getattr(config.algorithm, 'type', '')} · seed {config.seed}"
    seconds = [0.0]
    display = LiveDisplay(console, config.num_updates, title, clock=lambda: seconds[0])
    display.stage("train")
    for line in lines[: 2 * len(lines) // 3]:
        seconds[0] += sum(line["seconds"].values())
        display.update(line)
    measured = json.loads(run.evaluation_path.read_text())
    before, after = (
        {name: Report.from_plain(report) for name, report in measured[when].items()} for when in ("before", "after")
    )
    console.print(display.render())
    console.print(result_table(Result(run.path, before, after, Estimate(**measured["gain"]), 0.0, 0.0)))
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="turnwise demo"), flags=re.DOTALL)
    Path(out).write_text(drawn)  # without the fonts that rich would have a browser fetch


if __name__ == "__main__":
    main(*sys.argv[1:])
