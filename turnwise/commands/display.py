"""What a run shows while it works, a live panel on a terminal or plain lines elsewhere, and its tables at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from turnwise.clock import time_line
from turnwise.cloning.cloner import Progress as Cloning
from turnwise.cloning.rounds import RoundScore
from turnwise.evaluation.report import Report
from turnwise.grading.agreement import Graded
from turnwise.jobs import Result
from turnwise.statistics import UNKNOWN, Estimate, estimate_text, number_text, score_text, share_text
from turnwise.trajectory import Trajectory

_BARS = "▁▂▃▄▅▆▇█"
_STAGES = {
    "clone": "Warm start: cloning the expert",
    "cached": "Warm start: from the cache, cloned earlier",
    "measure": "Measuring on the test panel",
    "train": "Training",
    "stop": "Stopping after this update (once more: at once)",
}


_ENGINES = {"own": "our own engine", "vllm": "vLLM"}


def sparkline(values: Sequence[float], width: int = 60, low: float = 0.0, high: float = 1.0) -> str:
    """Values between ``low`` and ``high`` as at most ``width`` bars; of longer series each bar is a mean."""
    if not values:
        return ""
    per_bar = max(1.0, len(values) / width)
    bars = []
    for i in range(min(width, len(values))):
        part = values[int(i * per_bar) : max(int((i + 1) * per_bar), int(i * per_bar) + 1)]
        share = (sum(part) / len(part) - low) / max(high - low, 1e-12)
        bars.append(_BARS[min(len(_BARS) - 1, max(0, int(share * len(_BARS))))])
    return "".join(bars)


class LiveDisplay:
    """An observer that shows a run as it goes. Use it as a context manager. ``clock`` returns seconds."""

    def __init__(
        self, console: Console, num_updates: int, title: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.console, self.num_updates, self.title = console, num_updates, title
        self.clock, self.started = clock, clock()
        self.stage_name = ""
        self.curves: dict[str, list[float]] = {"success": [], "reward": []}
        self.evaluations: list[tuple[int, float]] = []
        self.latest: dict[str, Any] = {}
        self.warnings: list[tuple[int, str]] = []  # (update, name) of the watchdog's events
        self.episodes = 0
        self.won: dict[str, Trajectory] = {}  # by task key: the first success of each task in the latest measurement
        self._cloning: Cloning | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            TextColumn("·"),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(),
            get_time=clock,
            speed_estimate_period=600.0,  # seconds: long enough to hold several slow updates
        )
        self._bar = self._progress.add_task("updates", total=num_updates, start=False)
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)
        self._plain = not console.is_terminal

    def __enter__(self) -> LiveDisplay:
        if not self._plain:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._plain:
            self._live.__exit__(*error)
        if self.warnings:
            told = ", ".join(f"{name} ({update})" for update, name in self.warnings)
            self._say(f"[yellow]watchdog[/yellow], by update: {told}")

    def stage(self, name: str) -> None:
        self.stage_name = name
        if name == "measure":
            self.won = {}
        if name == "train":
            self._progress.start_task(self._bar)
        self._say(f"[bold]{_STAGES.get(name, name)}[/bold]")

    def engine(self, name: str, why: str) -> None:
        self._say(f"Sampling: {_ENGINES[name]} ({why})")

    def cloning(self, progress: Cloning) -> None:
        before, self._cloning = self._cloning, progress
        if progress.round is not None and (before is None or progress.round != before.round):
            self._say(f"  {round_text(progress.round)}")
        if progress.success is not None and progress.round is None:
            if before is None or progress.success != before.success:
                success = share_text(progress.success)
                self._say(f"  {progress.tokens:>9,} tokens  loss {progress.loss:.3f}  sampled success {success}")
        elif progress.tokens * 10 // progress.max_tokens != (before.tokens * 10 // before.max_tokens if before else 0):
            self._say(f"  {progress.tokens:>9,} tokens  loss {progress.loss:.3f}  {kinds_text(progress)}")

    def episode(self, trajectory: Trajectory) -> None:
        self.episodes += 1
        if self.stage_name == "measure" and trajectory.success:
            self.won.setdefault(trajectory.task.key, trajectory)

    def update(self, record: dict[str, Any]) -> None:
        self.latest = record
        done = record["update"] + 1
        self._progress.update(self._bar, completed=done)
        for name, curve in self.curves.items():
            curve += [] if record[name] is None else [record[name]]
        if "eval_success" in record:
            self.evaluations.append((done, record["eval_success"]))
        if "eval_success" in record or (self._plain and self._is_due(done)):
            self._say(self._line(record))
        for event in record.get("events", ()):
            self.warnings.append((done, event["name"]))
            self._say(f"  [yellow]{event['name']}[/yellow]  update {done}: {event['diagnosis']}. {event['advice']}")

    def _is_due(self, done: int) -> bool:
        """Whether a log, which has no live panel, gets a line of this update: some twenty of a run, and the last."""
        return done == self.num_updates or done % max(1, self.num_updates // 20) == 0

    def report(self, report: Report) -> None:
        if report.success is not None:
            num = sum(map(bool, report.outcomes))  # those that count
            self._say(f"  {report.name:<8} success {estimate_text(report.success)}, {num} task{'s' * (num != 1)}")
        elif report.num_episodes:
            self._say(
                f"  {report.name:<8} mean return {number_text(report.mean_return)}, {report.num_tasks} tasks. The "
                "world does not say what success is; env.success_threshold does"
            )

    def render(self) -> RenderableType:
        """The live panel as it is now."""
        if self.stage_name == "clone" and self._cloning is not None:
            return self._panel(self._cloning_text(self._cloning))
        if not self.latest:
            return self._panel(Text(f"{_STAGES.get(self.stage_name, 'Starting')} …  {self.episodes} episodes"))
        record, seconds = self.latest, self.latest["seconds"]
        rate = record["sampled_tokens"] / max(seconds.get("play", seconds["collect"]), 1e-9)
        table = Table.grid(padding=(0, 3))
        for _ in range(4):
            table.add_column(justify="left")
        table.add_row(
            _share_cell("success", record["success"]),
            _cell("reward", record["reward"]),
            _cell("entropy", record["entropy"], "nats"),
            _share_cell("invalid", record["invalid_share"]),
        )
        table.add_row(
            _cell("turns", record["turns"], digits=1),
            _cell("grad norm", record["grad_norm"]),
            _cell("KL", record["kl_behaviour"], "nats", digits=4),
            Text(f"{rate:,.0f} sampled tokens/s"),
        )
        goal = number_text if record["success"] is None else share_text
        evaluations = "  ".join(f"{n}: {goal(value)}" for n, value in self.evaluations[-6:])
        parts: list[RenderableType] = [
            self._progress,
            table,
            Text(self._course(), style="green"),
            Text(f"time  {time_line([record])}", style="dim"),
        ]
        if ahead := ahead_text(record):
            parts.append(Text(ahead, style="dim"))
        if graded := grades_text(record):
            parts.append(Text(graded, style="magenta"))
        if evaluations:
            parts.append(Text(f"validation  {evaluations}", style="cyan"))
        return self._panel(Group(*parts))

    def _course(self) -> str:
        """The course of success; of the reward, from its lowest to its highest, where success is unknown."""
        if successes := self.curves["success"]:
            return f"success  {sparkline(successes)}"
        rewards = self.curves["reward"]
        return f"reward  {sparkline(rewards, low=min(rewards), high=max(rewards))}" if rewards else ""

    def _panel(self, content: RenderableType) -> Panel:
        """A panel that leaves room for the ^C that a terminal prints, which on a line of its own would stay there."""
        width = max(self.console.width - len("^C^C"), 20)
        return Panel(content, title=self.title, border_style="cyan", width=width)

    def _cloning_text(self, progress: Cloning) -> RenderableType:
        success = UNKNOWN if progress.success is None else share_text(progress.success)
        told = "cloning the expert" if progress.round is None else round_text(progress.round)
        return Text(
            f"{told}   {progress.tokens:,} tokens   loss {progress.loss:.3f} nats   "
            f"sampled success {success}   {progress.cpu_s:.0f} CPU s\n"
            f"{kinds_text(progress)}"
        )

    def _line(self, record: dict[str, Any]) -> str:
        goal = "reward" if record["success"] is None else "success"  # not every world says what success is
        told = partial(number_text, digits=2) if goal == "reward" else share_text
        validation = f"validation {told(record['eval_success'])}  " if "eval_success" in record else ""
        return (
            f"  update {record['update'] + 1:>4}/{self.num_updates}  {goal} {_known(record[goal], told)}  "
            f"{validation}entropy {_known(record['entropy'], number_text)}  "
            f"invalid {_known(record['invalid_share'], share_text)}  {self.clock() - self.started:.0f} s"
        )

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False)


def round_text(score: RoundScore) -> str:
    """How the plays of a round of takeovers went."""
    reached = (
        f"has a mean return {number_text(score.mean_return)} in"
        if score.success is None
        else f"wins {share_text(score.success)} of"
    )
    return (
        f"takeovers, round {score.number} of {score.of}: the learner {reached} {score.episodes} episodes, the expert "
        f"wins {share_text(score.won)} of those that it takes over"
    )


def grades_text(record: Mapping[str, Any]) -> str:
    """What an update's episodes were given, and what its judge took; "" where the world alone pays."""
    if "grades" not in record:
        return ""
    parts = ["grades", *(f"{name} {number_text(value, 2)}" for name, value in record["grades"].items())]
    if record.get("judge_agreement") is not None:
        parts.append(f"agrees with success {share_text(record['judge_agreement'])}")
    took = record.get("judge", {})
    if took:
        least = "at least " if took.get("uncounted") else ""  # some answers came without a count of tokens
        cost = f", cost {least}{took['cost']:.4f}" if "cost" in took else ""
        parts.append(f"{took['requests']:,.0f} requests{cost}")
    return "  ".join(parts)


def ahead_text(record: Mapping[str, Any]) -> str:
    """How far behind the weights are that played an update, and who waited; "" where nothing is played ahead."""
    seconds, rows = record["seconds"], {k: v for k, v in record.items() if k.startswith("staleness/")}
    if "play" not in seconds:
        return ""
    behind = ", ".join(f"{name.removeprefix('staleness/')} ({count:,.0f} rows)" for name, count in rows.items())
    return (
        f"played ahead  updates behind: {behind or UNKNOWN}  waited: learner {seconds['collect']:.1f} s, shards "
        f"{seconds['shards_idle']:.1f} s"
    )


def kinds_text(progress: Cloning) -> str:
    """The probability of the true token, and in brackets how often it is the likeliest, by kind of token."""
    told = [f"{kind} {score.probability:.2f} ({share_text(score.accuracy)})" for kind, score in progress.kinds.items()]
    return f"probability of true tokens: {', '.join(told)}" if told else ""


def _known(value: float | None, told: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else told(value)


def _cell(name: str, value: float | None, unit: str = "", digits: int = 3) -> Text:
    shown = UNKNOWN if value is None else f"{value:.{digits}f}"
    return Text.assemble((f"{name} ", "dim"), (shown, "bold"), (f" {unit}" if unit else "", "dim"))


def _share_cell(name: str, value: float | None) -> Text:
    return Text.assemble((f"{name} ", "dim"), (_known(value, share_text), "bold"))


def result_table(result: Result) -> Table:
    """Success before and after training on the same panel: sampled and greedy, then sampled by task type.

    Where nothing was trained there is one measurement, and one column for it.
    """
    table = Table(title="Success on unseen tasks, with 95 % intervals", title_justify="left")
    table.add_column("")
    table.add_column("episodes", justify="right")
    for when in ("before", "after") if result.trained else ("measured",):
        table.add_column(when)
    for part in _parts(result):
        table.add_section()
        for what, num, before, after in part:
            table.add_row(what, num, *((before, after) if result.trained else (after,)))
    return table


_Row = tuple[RenderableType, str, str, str]
"""What, number of episodes, before, after."""


def _parts(result: Result) -> Iterator[list[_Row]]:
    """The sections of the table."""
    yield [_row(f"[bold]{name}[/bold]", result.before.get(name), after) for name, after in result.after.items()]
    before, after = result.before.get("sampled"), result.after.get("sampled")
    if after is None:
        return
    earlier = {**before.per_type, **before.per_player} if before else {}
    yield [
        (kind, str(after.episodes_of(kind)), _told(earlier.get(kind)), estimate_text(now))
        for kind, now in {**after.per_type, **after.per_player}.items()
    ]
    if after.graded is not None:
        yield _grades(before.graded if before else None, after.graded)
    if after.score is not None and not _is_success(after):
        score = before.score if before else None
        yield [("mean score", "", score_text(score) if score else "", score_text(after.score))]


def _told(estimate: Estimate | None) -> str:
    return estimate_text(estimate) if estimate else ""


def _grades(before: Graded | None, after: Graded) -> list[_Row]:
    """What functions and a judge gave before and after: it is what was trained for."""
    num, made = str(after.num), list[_Row]()
    for name, value in after.means.items():
        known = before.means.get(name) if before else None
        made.append((Text(name), num, "" if known is None else number_text(known), number_text(value)))
    if after.agreement is not None:
        agreed = _told(before.agreement if before else None)
        made.append(("judge agrees", num, agreed, estimate_text(after.agreement)))
    return made


def _is_success(report: Report) -> bool:
    """Whether the score is the same as success, as in worlds where a task is done or not."""
    return report.score is not None and report.success is not None and report.score.value == report.success.value


def _row(name: str, before: Report | None, after: Report) -> _Row:
    if after.success is None:
        shown = number_text(before.mean_return) if before else ""
        return f"{name} (mean return)", str(after.num_episodes), shown, number_text(after.mean_return)
    return name, str(after.num_episodes), _told(before.success if before else None), estimate_text(after.success)


def gain_line(gain: Estimate, after: Report) -> str:
    """The gain in points of success, or of mean return in worlds that do not say what success is.

    Where all tasks gained the same there is nothing to resample, and the point is shown as no interval.
    """
    unit, scale, digits = ("points", 100, 1) if after.success is not None else ("of mean return", 1, 3)
    value, low, high = (f"{scale * number:+.{digits}f}" for number in (gain.value, gain.low, gain.high))
    told = f"gain, paired by task: [bold]{value} {unit}[/bold]"
    if gain.num == 1:
        return f"{told} on a single task, which gives no interval"
    if gain.low == gain.high:
        return f"{told} on each of {gain.num} tasks, which gives no interval"
    return f"{told} [{low}, {high}] over {gain.num} tasks"
