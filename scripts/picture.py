"""The README's picture: ``python scripts/picture.py RUN OUT.svg`` draws a finished demo as it looked after two thirds
of it, and how it ended. The test panel is played again for the win that it ends in.
"""

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from turnwise.algorithms.registry import base_chain
from turnwise.commands import ending
from turnwise.commands.display import LiveDisplay, gain_line, result_table
from turnwise.evaluation.evaluate import evaluate
from turnwise.evaluation.report import Report
from turnwise.jobs import Result
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import Estimate


def main(folder: str, out: str) -> None:
    run = RunDirectory.open(folder)
    config, lines = run.config(), run.metrics()
    console = Console(record=True, width=100, force_terminal=True, file=io.StringIO())
    title = f"turnwise · {config.env.id} · {base_chain(config.algorithm)} · seed {config.seed}"
    seconds = [0.0]
    display = LiveDisplay(console, config.num_updates, title, clock=lambda: seconds[0])
    display.stage("train")
    for line in lines[: 2 * len(lines) // 3]:
        seconds[0] += sum(line["seconds"][stage] for stage in ("collect", "update", "evaluate"))
        display.update(line)
    measured = json.loads(run.evaluation_path.read_text())
    before, after = (
        {name: Report.from_plain(report) for name, report in measured[when].items()} for when in ("before", "after")
    )
    console.print(display.render())
    console.print()
    display.stage_name = "measure"
    evaluate(folder, samples=config.eval.samples, on_episode=display.episode)
    result = Result(Path("runs", run.path.name), before, after, Estimate(**measured["gain"]), 0.0, 0.0)
    console.print(result_table(result))
    console.print(gain_line(result.gain, after["sampled"]), highlight=False)
    ending.win_and_next(console, result, display)
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="turnwise demo"), flags=re.DOTALL)
    Path(out).write_text(drawn)  # without the fonts that rich would have a browser fetch


if __name__ == "__main__":
    main(*sys.argv[1:])
