"""Reading what is compared: folders of runs, and files of evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.chat_client import REACHED
from turnwise.evaluation.file import Measured, flat, read_evaluation
from turnwise.evaluation.report import Report
from turnwise.jsonfile import read_object
from turnwise.runs.directory import RunDirectory

_INCIDENTAL = (
    *(
        "seed",
        "device",
        "threads",
        "checkpoint_every",
        "rollout.threads",
        "rollout.shards",
        "rollout.shard_timeout_s",
        "rollout.shard_losses",
        "ray",
        "rollout.packed_weights",
        "rollout.backend",
        "rollout.vllm.",
        "rollout.num_slots",
        "rollout.env_threads",
    ),
    *("optimizer.microbatch_tokens", "env.process", "env.step_timeout_s", "env.reset_timeout_s"),
    *("learner.", "watchdog.", "mirrors", "eval.max_error_share", "rewards.threads", "rewards.timeout_s"),
    *(f"rewards.judge.endpoint.{name}" for name in REACHED),
)
"""Settings that do not make another method: they change no numbers, or are what is pooled over (the seed)."""

_VECTOR = "agent.decoding.steering.file"

Record = Mapping[str, Any]
AXES: dict[str, Callable[[Record], float]] = {
    "turns": lambda line: line.get("played_turns", (line["turns"] or 0.0) * line["episodes"]),
    "tokens": lambda line: line["sampled_tokens"],
    "seconds": lambda line: line["seconds"]["collect"] + line["seconds"]["update"],
}
"""What an update spends, by axis: turns played in training, sampled tokens, wall seconds without evaluations."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity of each update against what was spent; it is constant over what its update spent."""

    spent: tuple[float, ...]  # [K] by the end of each update
    values: tuple[float, ...]  # [K]

    def mean(self, edges: Sequence[float]) -> list[float]:
        """Mean height between neighbouring edges, [N + 1] -> [N]. All edges are within [0, spent[-1]]."""
        knots = [0.0, *self.spent]
        areas = [0.0, *accumulate(v * (b - a) for v, a, b in zip(self.values, knots, self.spent, strict=False))]
        return [float(x) for x in np.diff(np.interp(edges, knots, areas)) / np.diff(edges)]


@dataclass(frozen=True)
class Run:
    """What a comparison reads of one finished run or evaluation.

    ``start`` identifies the weights that the run started from. ``start`` and ``seed`` are None for a target that is no
    run of ours. An evaluation has no ``before`` and no ``metrics``; ``update`` is the number of updates of its last
    checkpoint, None where another was measured.
    """

    path: Path
    method: str
    settings: Mapping[str, Any]
    seed: int | None
    start: str | None
    before: Mapping[str, Report]
    after: Mapping[str, Report]
    metrics: Sequence[Record]
    update: int | None = None

    @property
    def has_course(self) -> bool:
        """Whether it is a run, whose training is known."""
        return bool(self.metrics or self.before)

    @property
    def by_success(self) -> bool:
        return all(report.success is not None for report in self.after.values())

    def curve(self, axis: str) -> Curve:
        """Success in training, or mean return where success is unknown. ``axis`` is a key of AXES.

        An update without a known value spends all the same: the next value stands for it too.
        """
        name = "success" if self.by_success else "reward"
        spent = accumulate(AXES[axis](line) for line in self.metrics)
        known = [(end, line[name]) for end, line in zip(spent, self.metrics, strict=True) if line[name] is not None]
        return Curve(tuple(end for end, _ in known), tuple(value for _, value in known))


def read_run(path: str | Path) -> Run:
    """Read a run's folder.

    Raises ValueError where it is no run, was not measured after training, or lacks records of updates.
    """
    run = RunDirectory.open(path)
    found = read_object(run.evaluation_path) if run.evaluation_path.exists() else {}
    if not found.get("after"):
        raise ValueError(
            f"{run.path} has no measurement after training: finish it with `turnwise train --resume {run.path}` "
            "(a run with eval.test_split=null is never measured and cannot be compared)"
        )
    before, after = (_reports(run, found.get(when, {})) for when in ("before", "after"))
    config = run.config()
    settings = settings_of(config.model_dump(mode="json"))
    start, (metrics, missing) = start_of(run), run.logged()
    if missing:
        raise ValueError(
            f"{missing}: what training spent, and the curves, would be wrong. Copy the run again if it is a copy; its "
            f"measurements can be compared as files: `turnwise evaluate {run.path} --out FILE` for each run"
        )
    try:
        for line in metrics:
            _ = line["success"], line["reward"], [cost(line) for cost in AXES.values()]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{run.metrics_path} is damaged: a line lacks what is compared ({error!r})") from None
    return Run(run.path, _method_of(settings), settings, config.seed, start, before, after, metrics)


def read(path: str | Path) -> list[Run]:
    """Read a run's folder, or every target of an evaluation's file.

    Raises ValueError as ``read_run`` does, and for an evaluation that was refused: its rates would not stand for the
    panel.
    """
    if not Path(path).is_file():
        return [read_run(path)]
    found = read_evaluation(path)
    if found.refused:
        raise ValueError(f"{path} holds a measurement that was refused, which cannot be compared: {found.refused[0]}")
    usual = {"temperature": (0.0, 1.0), "top_p": (1.0,), "top_k": (0,)}
    drawn = {name: found.asked[name] for name, values in usual.items() if found.asked[name] not in values}
    return [_from_evaluation(Path(path), measured, drawn) for measured in found.targets]


def _from_evaluation(path: Path, measured: Measured, drawn: Mapping[str, Any]) -> Run:
    """One target of an evaluation. ``drawn`` are sampling settings that differ from a run's own evaluation.

    A run's settings are those that it was trained with, unless it was evaluated with others.
    """
    about, reports = measured.described, measured.reports
    settings = {**about["settings"], **drawn, **flat({"env": about["env"], "opponents": about["opponents"]})}
    method = _method_of(settings) if about["settings"] else measured.target
    if not about["settings"]:
        settings |= {"target": measured.target, **flat({"players": about["players"]})}
    updates = [player["update"] for player in about["players"].values() if "update" in player]
    last = max(updates, default=None) if about["settings"].get("checkpoint") == "last" else None
    return Run(path, method, settings, about["seed"], about["start"], {}, reports, (), last)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved configuration by dotted name, without those that do not make another method.

    A steering vector is named by its content: each run has a copy of its own.
    """
    found = {name: value for name, value in flat(config).items() if not name.startswith(_INCIDENTAL)}
    if (file := Path(found.get(_VECTOR, ""))).is_file():
        found[_VECTOR] = f"SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    return found


def _method_of(settings: Mapping[str, Any]) -> str:
    return str(settings["algorithm.type"])


def _reports(run: RunDirectory, raw: Mapping[str, Any]) -> dict[str, Report]:
    try:
        return {name: Report.from_plain(report) for name, report in raw.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{run.evaluation_path} is not of this version of turnwise ({error}): measure the run again with "
            f"`turnwise train --resume {run.path}`"
        ) from None


def start_of(run: RunDirectory) -> str:
    """Hash of the model in the run's folder, or the name of the pretrained model that the run took."""
    files = sorted(run.model_path.glob("*.safetensors"))
    if not files:
        return str(getattr(run.config().model, "path", ""))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]
