"""What the page shows besides trajectories: the run's settings, metrics, events, evaluation and comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turnwise.evaluation.compare import compare
from turnwise.evaluation.comparison_view import legend, sheets
from turnwise.evaluation.report import Report
from turnwise.jsonfile import read_object, without_nan
from turnwise.models.settings import PretrainedModelConfig
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import Estimate, wilson

Record = Mapping[str, Any]


def describe(run: RunDirectory, name: str) -> dict[str, Any]:
    """A run's settings, and where its numbers come from."""
    config = run.config()
    written = run.path / "run.json"
    origin = without_nan(read_object(written)) if written.exists() else {}
    model = config.model
    return {
        "name": name,
        "env": config.env.id,
        "algorithm": str(getattr(config.algorithm, "type", "")),
        "model": model.path if isinstance(model, PretrainedModelConfig) else "from scratch",
        "seed": config.seed,
        "num_updates": config.num_updates,
        "group_size": config.rollout.group_size,
        "commit": origin.get("commit"),
        "command": origin.get("command", ""),
        "versions": origin.get("versions", {}),
        "panels": origin.get("panels", {}),
        "settings": (run.path / "config.yaml").read_text(),
    }


def columns(metrics: Sequence[Record]) -> dict[str, list[Any]]:
    """Every numeric metric as a column over the updates, nested ones as ``seconds/collect``; None where missing."""
    flat = [dict(_flat(line)) for line in metrics]
    names = dict.fromkeys(name for line in flat for name in line)
    return {name: [line.get(name) for line in flat] for name in names}


def _flat(line: Record, prefix: str = "") -> list[tuple[str, float | None]]:
    found: list[tuple[str, float | None]] = []
    for key, value in line.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + key, value if math.isfinite(value) else None))
    return found


def events(metrics: Sequence[Record]) -> list[dict[str, Any]]:
    """The watchdog's events, in order."""
    names = ("name", "diagnosis", "advice", "value", "threshold", "level")
    return [
        {"update": line["update"], **{name: without_nan(event.get(name)) for name in names}}
        for line in metrics
        for event in line.get("events") or []
    ]


def validation(metrics: Sequence[Record], num: int | None) -> list[dict[str, Any]]:
    """Measurements on the validation panel, with the interval that the run logged.

    Runs of earlier versions logged none: there it is Wilson's, where each of ``num`` tasks may have been tried once.
    """
    found = []
    for line in metrics:
        value = line.get("eval_success")
        if value is not None:
            known = line.get("eval_interval")
            rate = Estimate(value, **known) if known else _share(value, num) or Estimate(value, math.nan, math.nan, 0)
            found.append({"update": line["update"], **interval(rate)})
    return found


def _share(value: float, num: int | None) -> Estimate | None:
    """The value as a share of ``num`` with its interval; None where it is no multiple of 1/``num``."""
    successes = round(value * num) if num else 0
    is_share = num and 0 <= successes <= num and math.isclose(value * num, successes, abs_tol=1e-6)
    return wilson(successes, num) if num and is_share else None


def interval(estimate: Estimate) -> dict[str, Any]:
    return {name: without_nan(getattr(estimate, name)) for name in ("value", "low", "high", "num")}


def evaluation(run: RunDirectory) -> dict[str, Any] | None:
    """The reports before and after training, without their single outcomes; None where the run was not measured.

    Raises ValueError for a file that is not of this version.
    """
    if not run.evaluation_path.exists():
        return None
    raw = read_object(run.evaluation_path)
    try:
        reports = {when: {name: _report(run, found) for name, found in raw.get(when, {}).items()} for when in _WHEN}
        gain = {k: without_nan(v) for k, v in raw["gain"].items()} if raw.get("gain") else None
    except AttributeError as error:
        raise ValueError(f"{run.evaluation_path} is not of this version of turnwise ({error})") from None
    return {**reports, "gain": gain}


_WHEN = ("before", "after")


def _report(run: RunDirectory, raw: dict[str, Any]) -> dict[str, Any]:
    try:
        report = Report.from_plain(raw)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{run.evaluation_path} is not of this version of turnwise ({error})") from None
    simple = ("env", "split", "panel_hash", "num_tasks", "samples", "temperature", "mean_return", "mean_turns")
    more = ("mean_action_tokens", "invalid_share", "entropy", "context_share", "errors", "draw_share")
    return {
        **{name: without_nan(getattr(report, name)) for name in simple + more},
        "success": interval(report.success) if report.success else None,
        "score": interval(report.score) if report.score else None,
        "per_type": {kind: interval(rate) for kind, rate in report.per_type.items()},
        "per_player": {player: interval(rate) for player, rate in report.per_player.items()},
        "pass_at": {str(k): without_nan(value) for k, value in report.pass_at.items()},
    }


def comparison(paths: Sequence[Path]) -> dict[str, Any] | None:
    """The tables of ``turnwise compare``, or why these runs cannot be compared; None for a single run."""
    if len(paths) < 2:
        return None
    try:
        found = compare(paths)
    except ValueError as error:
        return {"why_not": str(error)}
    tables = [{"title": sheet.title, "header": sheet.header, "rows": sheet.rows} for sheet in sheets(found)]
    return {"tables": tables, "notes": legend(found)}
