"""``turnwise check-env``: the findings about an environment, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from turnwise.envs.check import Finding, Report
from turnwise.statistics import wilson

_MARKS = {"passed": "[green]passed[/green]", "failed": "[bold red]failed[/bold red]", "skipped": "[dim]skipped[/dim]"}


def check_table(report: Report) -> Table:
    """A table with one row for each check; rates have 95 % Wilson intervals."""
    table = Table(title=f"{report.env}: {summary(report)}", title_justify="left")
    for column in ("check", "", "what was found"):
        table.add_column(column, overflow="fold")
    for finding in report.findings:
        lines = [escape(finding.text), *(f"{name} {text}" for name, text in _intervals(finding).items())]
        table.add_row(finding.name, _MARKS[finding.outcome], "\n".join(lines))
    table.caption = f"{report.steps_per_s:,.0f} steps/s at random play; checked in {report.seconds:.1f} s"
    return table


def summary(report: Report) -> str:
    """``17 passed, 1 failed, 2 skipped``."""
    outcomes = [finding.outcome for finding in report.findings]
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))


def plain(report: Report) -> dict[str, Any]:
    """The report as JSON values; each rate is {value, low, high, num}."""
    findings = [
        {**asdict(finding), "rates": {name: asdict(wilson(*rate)) for name, rate in finding.rates.items()}}
        for finding in report.findings
    ]
    return {**asdict(report), "ok": report.ok, "findings": findings}


def _intervals(finding: Finding) -> dict[str, str]:
    estimates = {name: wilson(*rate) for name, rate in finding.rates.items()}
    return {name: f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]" for name, e in estimates.items()}
