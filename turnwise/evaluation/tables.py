"""Showing an evaluation on a terminal: a table for each report or for pooled seeds, and what endpoints used."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from turnwise.agents.chat_client import Usage, uncounted_text
from turnwise.evaluation.file import Evaluation
from turnwise.evaluation.pooling import Pooled
from turnwise.evaluation.report import Report
from turnwise.grading.agreement import Graded, judged_text
from turnwise.statistics import UNKNOWN, estimate_text, number_text, score_text, share_text


def evaluation_table(evaluation: Evaluation) -> Group:
    """Tables of an evaluation: a single target in full, or several seeds pooled with a line for each seed."""
    parts: list[Table | Text] = []
    if evaluation.pooled:
        reports = {name: [m.reports[name] for m in evaluation.targets] for name in evaluation.pooled}
        parts += [_pooled_table(name, found, reports[name]) for name, found in evaluation.pooled.items()]
    else:
        (measured,) = evaluation.targets
        for name, report in measured.reports.items():
            table = report_table(report)
            table.title = f"{table.title}, {name}"
            parts.append(table)
    faults = {
        f"the first failed episode: {r.first_error}": None
        for m in evaluation.targets
        for r in m.reports.values()
        if r.errors
    }
    parts += [Text(line, style="red") for line in faults]
    warnings = {line: None for m in evaluation.targets for r in m.reports.values() for line in _overlap(m.target, r)}
    parts += [Text(line, style="bold red") for line in warnings]
    if evaluation.spent is not None:
        parts.append(Text(spent_text(evaluation.spent, evaluation.cost)))
    if evaluation.judged:
        parts.append(Text(judged_text(evaluation.judged)))
    return Group(*parts)


def spent_text(spent: Usage, cost: float | None) -> str:
    """``412 requests (3 repeated), 81,204 prompt and 4,120 completion tokens, cost 0.0231``."""
    repeated = f" ({spent.retries:,} repeated)" if spent.retries else ""
    return (
        f"{spent.requests:,} requests{repeated}, {spent.prompt_tokens:,} prompt and {spent.completion_tokens:,} "
        f"completion tokens{'' if cost is None else f', cost {cost:.4f}'}{uncounted_text(spent.uncounted)}"
    )


def _overlap(target: str, report: Report) -> list[str]:
    if not report.overlap:
        return []
    told = ", ".join(f"{num} of {report.num_tasks} may have been {use}" for use, num in report.overlap.items())
    return [f"WARNING: {target} has met tasks of this panel ({told}): this is no success on unseen tasks."]


def _pooled_table(name: str, found: Pooled, reports: list[Report]) -> Table:
    first = reports[0]
    table = Table(title=f"{found.num_seeds} seeds on {first.env} {first.split}, {name}", title_justify="left")
    table.add_column("")
    table.add_column("episodes", justify="right")
    table.add_column("success (95 % interval)" if found.success else "mean return (95 % interval)")
    if found.success is not None:
        table.add_row("[bold]all[/bold]", str(found.episodes), estimate_text(found.success))
        for kind, rate in found.per_type.items():
            table.add_row(kind, str(sum(report.episodes_of(kind) for report in reports)), estimate_text(rate))
    else:
        table.add_row("[bold]all[/bold]", str(found.episodes), score_text(found.mean_return))
    table.add_section()
    for report in reports:
        value = estimate_text(report.success) if report.success else number_text(report.mean_return)
        table.add_row(Text(report.name), str(sum(map(len, report.outcomes))), value)
    table.add_section()
    if found.score is not None:
        table.add_row("mean score", "", score_text(found.score))
    for k, share in found.pass_at.items():
        if k > 1:
            table.add_row(f"pass@{k}", "", f"{100 * share:.1f} %")
    table.add_row("turns", "", number_text(found.mean_turns, 1))
    table.add_row("tokens said", "", number_text(found.mean_action_tokens, 1))
    table.add_row("invalid actions", "", share_text(found.invalid_share))
    if found.errors:
        table.add_row("[red]failed episodes (left out)[/red]", str(found.errors), "")
    table.caption = "Pooled: bootstrap over seeds and tasks. One seed: over tasks alone."
    return table


def report_table(report: Report) -> Table:
    """One report: success overall and per type, pass@k, and means over the episodes."""
    table = Table(title=f"{report.name} on {report.env} {report.split}", title_justify="left")
    table.add_column("")
    table.add_column("episodes", justify="right")
    table.add_column("success (95 % interval)")
    episodes = sum(map(len, report.outcomes))
    if report.success is None:
        table.add_row("mean return", str(episodes), number_text(report.mean_return))
    else:
        table.add_row("[bold]all[/bold]", str(episodes), estimate_text(report.success))
        for kind, estimate in {**report.per_type, **report.per_player}.items():
            table.add_row(kind, str(report.episodes_of(kind)), estimate_text(estimate))
    table.add_section()
    if report.draw_share is not None:
        table.add_row("draws", "", f"{100 * report.draw_share:.1f} %")
    if report.score is not None:
        table.add_row("mean score", "", score_text(report.score))
    for k, value in report.pass_at.items():
        if k > 1:
            table.add_row(f"pass@{k}", str(report.pass_episodes), f"{100 * value:.1f} %")
    table.add_row("turns", "", number_text(report.mean_turns, 1))
    table.add_row("invalid actions", "", share_text(report.invalid_share))
    if report.context_share > 0:
        table.add_row("ended by a full context", "", share_text(report.context_share))
    if report.errors:
        table.add_row("[red]failed episodes (left out)[/red]", str(report.errors), "")
    if report.graded is not None:
        _add_grades(table, report.graded)
    return table


def _add_grades(table: Table, found: Graded) -> None:
    """What functions and a judge gave, and how far the judge agrees with the world's own success."""
    table.add_section()
    table.add_row("the world's own return", str(found.num), number_text(found.world_return))
    for name, value in found.means.items():
        table.add_row(Text(name), str(found.num), number_text(value))
    if found.verdict is None:
        return
    table.add_row(Text(f"judged by {found.judge}"), "", number_text(found.verdict))
    if found.agreement is not None:
        table.add_row("  agrees with success", str(found.agreement.num), estimate_text(found.agreement))
        won, lost = (UNKNOWN if value is None else number_text(value) for value in (found.on_won, found.on_lost))
        table.add_row("  verdict on won, on lost", "", f"{won}, {lost}")
