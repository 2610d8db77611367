"""The training loop: collect -> store -> sample -> credit -> update. The learner does the last three.

Everything random is drawn from (seed, update), so a resumed run has the same numbers as an unbroken one. turnwise uses
no global random generators. Worlds from elsewhere may use them, so they are seeded before episodes are played.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from turnwise.agents.playing import Playing, seed_globals
from turnwise.agents.untrained import advice
from turnwise.clock import Clock
from turnwise.config.sections import EvalConfig
from turnwise.evaluation.playing import TEST_KEY, VALIDATION_KEY, evaluate_policy
from turnwise.evaluation.report import Report
from turnwise.grading.grader import Grader
from turnwise.grading.ranking import Ranker
from turnwise.learning.metrics import Metrics
from turnwise.learning.planning import NoRollouts, Planner
from turnwise.models.engine import Sampling
from turnwise.monitoring.beginnings import Beginnings
from turnwise.monitoring.first_replies import FirstReplies
from turnwise.monitoring.mirrors import Mirrors
from turnwise.monitoring.record import episode_numbers, finite, grading_numbers, joined, per_token
from turnwise.monitoring.watchdog import Watchdog, signs, stop_where_asked
from turnwise.replay.store import TrajectoryWriter
from turnwise.runs.checkpoints import Checkpoint, CheckpointName
from turnwise.runs.directory import RunDirectory
from turnwise.training.ahead import Ahead, Played
from turnwise.training.faults import DivergedError, UpdateMemoryError, is_out_of_memory
from turnwise.training.observing import Observer
from turnwise.training.side import Side
from turnwise.training.tasksets import Panels, TaskOrder
from turnwise.trajectory import Group, Task, Trajectory, group_by_task

_DIVERGED = "lower optimizer.lr, and look for extreme rewards or overflow in half precision"


class CollectionError(RuntimeError):
    """Too many episodes failed in their environment, or none had a turn to learn from."""


@dataclass(slots=True)
class _Times:
    """Wall seconds of one update's stages."""

    collect: float = 0.0
    update: float = 0.0
    evaluate: float = 0.0


@dataclass(slots=True)
class _Best:
    success: float = -math.inf
    update: int = -1


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long a run is, how it samples, and what ends it. The names are those of ``config/schema.py``."""

    seed: int
    num_updates: int
    max_sampled_tokens: int | None
    checkpoint_every: int
    max_skipped_updates: int
    keep_checkpoint: CheckpointName
    temperature: float
    max_error_share: float
    max_reply_tokens: int

    @property
    def sampling(self) -> Sampling:
        """How training episodes are sampled."""
        return Sampling(self.temperature, max_tokens=self.max_reply_tokens)


class Trainer:
    """One run in progress. ``turnwise.assembly.run.Assembly`` builds it; ``step`` does one update.

    ``planner`` decides which episodes are played of the tasks that ``order`` gives, and ``collector`` plays them;
    ``measurer`` plays the episodes of measurements. ``sides`` are the policies in training. ``grader`` pays
    episodes beside their world. With ``ahead`` the episodes of updates are played by that, before they are asked for.
    """

    def __init__(
        self,
        *,
        run: RunDirectory,
        sides: Sequence[Side],
        collector: Playing,
        measurer: Playing,
        panels: Panels,
        order: TaskOrder,
        planner: Planner,
        writer: TrajectoryWriter,
        watchdog: Watchdog,
        mirrors: Mirrors,
        measuring: EvalConfig,
        settings: LoopSettings,
        observer: Observer,
        grader: Grader | None = None,
        ranker: Ranker | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        self.run, self.sides, self.observer, self.grader, self.ranker = run, sides, observer, grader, ranker
        self.ahead = ahead
        self._played: Played | None = None  # ahead, of the present update
        self._judged: Counter[str] = Counter()  # what the judge took in measurements, where episodes are played ahead
        self.collector, self.measurer = collector, measurer
        self.panels, self.order, self.planner = panels, order, planner
        self.writer, self.watchdog, self.mirrors = writer, watchdog, mirrors
        self.measuring, self.settings = measuring, settings
        self.clock = self._clock()
        self.finished = 0  # updates
        self.best = _Best()
        self.sampled_tokens = 0
        self.skipped_in_a_row = 0  # updates, with an optimizer step whose gradient was not finite
        self.halved = False  # whether microbatches are half as big as configured: an update did not fit into memory
        self._first_replies, self._beginnings = FirstReplies(advice(sides[0].agent.config)), Beginnings()
        self._saved = -1  # finished updates at the newest checkpoint
        self._sync()

    def _clock(self) -> Clock:
        """One clock for the collector, the learners and the engines, so that an update's times add up."""
        self.collector.clock = clock = Clock()
        for side in self.sides:
            side.learner.clock = side.agent.engine.clock = clock
        return clock

    def close(self) -> None:
        """Close the environments, some of which are processes, and the mirrors."""
        if self.ahead is not None:
            self.ahead.close()
        self.collector.close()
        self.measurer.close()
        self.mirrors.close()
        if self.ranker is not None:
            self.ranker.close()

    def step(self) -> dict[str, Any]:
        """Do one update, log its record, and return it.

        Raises CollectionError, DisagreementError, UpdateMemoryError or DivergedError. The checkpoints on disk are of
        earlier updates, which ended well. Where the watchdog stops the run it saves a checkpoint and raises
        UnhealthyRunError.
        """
        update, times = self.finished, _Times()
        self.clock.take()  # drop times from before this update
        began = time.perf_counter()
        groups = self.collect(update)
        self.store(groups, update)
        times.collect = time.perf_counter() - began
        began = time.perf_counter()
        metrics = self.learn(update)
        self.finished = update + 1
        self._sync()
        if not all(side.is_finite() for side in self.sides):
            raise DivergedError(f"update {update + 1} made weights that are not finite: {_DIVERGED}. {self._safe}")
        times.update = time.perf_counter() - began
        work = self.clock.take()
        record = self._record(groups, update, metrics)
        began = time.perf_counter()
        if self.measuring.every and self.finished % self.measuring.every == 0:
            record |= self.validate()
        times.evaluate = time.perf_counter() - began
        record["seconds"], record["tokens"] = {**asdict(times), **work.seconds}, dict(work.tokens)
        if (played := self._played) is not None:
            record["seconds"] |= {**played.work.seconds, "play": played.playing_s, "shards_idle": played.idle_s}
            record["tokens"] |= played.work.tokens
        events = self.watchdog.watch(record)
        if events:
            record["events"] = events
        self.run.log(record)
        self.mirrors.log(record)
        self.observer.update(record)
        if self.skipped_in_a_row == self.settings.max_skipped_updates:
            raise DivergedError(
                f"the gradient was not finite in {self.skipped_in_a_row} updates in a row, up to update "
                f"{self.finished}, and was left out: {_DIVERGED}. {self._safe}"
            )
        stop = [event for event in events if event["level"] == "stop"]
        # The checkpoint comes last, so that the log holds every update that a checkpoint counts as finished.
        is_best = self.best.update == self.finished
        if self.finished % self.settings.checkpoint_every == 0 or is_best or self.is_over or stop:
            self.save()
        if not self.is_over:
            stop_where_asked(stop, update)
        return record

    @property
    def is_over(self) -> bool:
        """Whether all updates are done, or the budget of sampled tokens is used up."""
        budget = self.settings.max_sampled_tokens
        return self.finished >= self.settings.num_updates if budget is None else self.sampled_tokens >= budget

    def collect(self, update: int) -> list[Group]:
        """Play the update's episodes, as groups of episodes of one task; none where the planner plays none.

        Raises CollectionError where too many of them fail, or none has a turn.
        """
        if isinstance(self.planner, NoRollouts):
            return []
        played = self._play(update) if self.ahead is None else self._played_ahead(self.ahead, update)
        if self.ranker is not None:
            played = [t for group in self.ranker.rank(group_by_task(played)) for t in group.trajectories]
        counted = [t for group in group_by_task(played) if not _is_lost(group) for t in group.trajectories]
        failed = [t for t in counted if t.end == "error"]
        if len(failed) > self.settings.max_error_share * len(counted):
            raise CollectionError(
                f"{len(failed)} of {len(counted)} episodes of update {update} failed {self._where} "
                f"({_reasons(failed)}): more than rollout.max_error_share={self.settings.max_error_share}"
            )
        if not any(t.turns for t in played if t.end != "error"):
            full = played and all(t.end_reason == "context" for t in played)
            why = "no first prompt fits into the context: raise agent.max_context_tokens" if full else _reasons(played)
            raise CollectionError(f"no episode of update {update} has a turn to learn from ({why})")
        self._first_replies.finish()
        groups = group_by_task(played)
        self._beginnings.add(groups)
        return groups

    def _play(self, update: int) -> list[Trajectory]:
        """The episodes of an update, played now."""
        seed_globals(self.settings.seed, update)
        heating = self.sides[0].learner.recipe.heating
        sampling = replace(self.settings.sampling, heat=None if heating is None else heating.heat())
        rollouts = self.collector.rollouts(sampling, update, self._on_episode)
        return self.planner.plan(self.order.tasks(update), rollouts, self.order.spare(update))

    def _played_ahead(self, ahead: Ahead, update: int) -> list[Trajectory]:
        """The episodes of an update, played ahead. Observers hear of them now."""
        self._played = played = ahead.take(update)
        self.collector.failures += played.failures
        for trajectory in played.trajectories:
            self._on_episode(trajectory)
        return played.trajectories

    @property
    def _where(self) -> str:
        """Where episodes may fail."""
        return "twice in their environment" + (", or in their grading" if self.grader or self.ranker else "")

    def _on_episode(self, trajectory: Trajectory) -> None:
        self._first_replies.add(trajectory)
        self.observer.episode(trajectory)

    def store(self, groups: list[Group], update: int) -> None:
        """Write the episodes to disk, then put them into the buffers that the learners sample from."""
        self.writer.append(update, [t for group in groups for t in group.trajectories])
        for side in self.sides:
            side.take(groups, update)

    def learn(self, update: int) -> dict[str, Metrics]:
        """The learners' part of an update. An UpdateMemoryError leaves it half done; ``rewind`` undoes that.

        (Not where several ranks learn: the others are in the middle of it.)
        """
        try:
            metrics = {side.name: side.learn(update) for side in self.sides}
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UpdateMemoryError(
                f"update {update + 1} does not fit into memory ({reason}): lower optimizer.microbatch_tokens or "
                f"agent.max_context_tokens in {self.run.path / 'config.yaml'}. {self._safe}, and "
                f"`turnwise train --resume {self.run.path}` goes on after it"
            ) from None
        skipped = any(found.skipped_steps for found in metrics.values())
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return metrics

    def halve_microbatches(self) -> None:
        """Halve the microbatches from now on; what is learned changes by rounding alone."""
        self.halved = True
        for side in self.sides:
            side.halve_microbatches()

    @property
    def _safe(self) -> str:
        return f"The checkpoint of update {max(self._saved, 0)} is in {self.run.path}"

    def _sync(self) -> None:
        for side in self.sides:
            side.sync(self.finished)

    def validate(self) -> dict[str, Any]:
        """Sampled success on the validation panel for the record, with its interval; remembers the best.

        Where success is unknown it is the mean return, without one.
        """
        report = self.measure(self.panels.validation, "validation", temperature=1.0, key=VALIDATION_KEY)
        rate, value = report.success, report.success.value if report.success else report.mean_return
        if value > self.best.success:
            self.best = _Best(value, self.finished)
        interval = {} if rate is None else {"eval_interval": {"low": rate.low, "high": rate.high, "num": rate.num}}
        return {"eval_success": value, **interval}

    def measure(self, tasks: Sequence[Task], name: str, *, temperature: float, key: int) -> Report:
        """A report on a panel. With the same key every policy gets the same random draws.

        Raises CollectionError where too many of its episodes fail.
        """
        seed_globals(self.settings.seed, key)
        samples = 1 if temperature == 0 else self.measuring.samples
        with nullcontext() if self.ahead is None else self.ahead.paused():
            report, _ = evaluate_policy(
                self.measurer,
                tasks,
                name=name,
                temperature=temperature,
                samples=samples,
                max_tokens=self.settings.max_reply_tokens,
                key=key,
                on_episode=self._on_episode,
            )
            if self.ahead is not None and self.grader is not None:
                self._judged.update(self.grader.take_spent())
        self.measurer.numbers()  # taken: the next record is of what is trained on
        if why := report.too_many_errors(self.measuring.max_error_share):
            raise CollectionError(why)
        return report

    def final(self) -> dict[str, Report]:
        """Sampled (temperature 1) and greedy reports on the test panel; {} without one."""
        if not self.panels.test:
            return {}
        self.observer.stage("measure")
        reports = {"sampled": self.measure(self.panels.test, "sampled", temperature=1.0, key=TEST_KEY)}
        if self.measuring.greedy:
            reports["greedy"] = self.measure(self.panels.test, "greedy", temperature=0.0, key=TEST_KEY)
        for report in reports.values():
            self.observer.report(report)
        return reports

    def save(self) -> None:
        """Save a checkpoint of the present state, unless there is one already."""
        if self._saved == self.finished:
            return
        best = self.best.update if self.best.update >= 0 else None
        states, tensors = {}, {}
        for side in self.sides:
            states[side.name], own = side.state()
            tensors.update(own)
        extra = {
            "sides": states,
            "best": asdict(self.best) if best is not None else None,
            "sampled_tokens": self.sampled_tokens,
            "skipped_in_a_row": self.skipped_in_a_row,
            "halved": self.halved,
            "failures": self.collector.failures,
        }
        self.run.save(Checkpoint(self.finished, extra, tensors, best))
        self._saved = self.finished

    def rewind(self) -> None:
        """Go back to the newest sound checkpoint. Later checkpoints, records and episodes are dropped and repeated."""
        self.load("last")
        self.collector.numbers()  # taken: what was counted of an update that is repeated is counted then
        for side in self.sides:
            side.learner.recipe.acted()
        self.run.cut(self.finished)
        self.writer = TrajectoryWriter(self.run.trajectories_path)
        self.watchdog = Watchdog(self.watchdog.config, self.run.metrics())

    def load(self, name: CheckpointName) -> None:
        """Load the state of a checkpoint."""
        if self.ahead is not None:
            self.ahead.restart()  # what is in flight is played again, with the weights that the checkpoint holds for it
        checkpoint = self.run.load(name)
        for side in self.sides:
            side.load(checkpoint)
        best = checkpoint.state["best"]
        self.best = _Best(**best) if best else _Best()
        self.sampled_tokens = checkpoint.state["sampled_tokens"]
        self.skipped_in_a_row = checkpoint.state["skipped_in_a_row"]
        self.collector.failures = checkpoint.state["failures"]
        if checkpoint.state["halved"] and not self.halved:
            self.halve_microbatches()
        self.finished = self._saved = checkpoint.update

    def _record(self, groups: list[Group], update: int, metrics: Mapping[str, Metrics]) -> dict[str, Any]:
        played = episode_numbers(groups)
        self.sampled_tokens += played["sampled_tokens"]
        return finite(
            {
                "update": update,
                **played,
                **grading_numbers(groups, self._spent()),
                **({} if self.ranker is None else {"ranking": self.ranker.spending.take()}),
                "total_sampled_tokens": self.sampled_tokens,
                "failures": self.collector.failures,
                **per_token(self.collector.numbers()),
                **(per_token(self._played.numbers) if self._played is not None else {}),
                "adapter_hash": ",".join(side.policy.adapter_hash for side in self.sides),
                **signs(groups, self.settings.max_reply_tokens),
                "entropy": None,  # as_dict leaves out what was not measured
                **joined({side.name: {**metrics[side.name].as_dict(), **side.numbers()} for side in self.sides}),
                **{f"mechanisms/{name}": acted for name, acted in self._planned().items()},
            }
        )

    def _planned(self) -> Mapping[str, float]:
        """How often the planner's mechanisms acted in a session that was played ahead; else the learner tells of it."""
        return {} if self._played is None else self._played.mechanisms

    def _spent(self) -> Mapping[str, float]:
        """What the judge took since the last record; of what is played ahead, for the update's own episodes."""
        if self.grader is None:
            return {}
        if self._played is None:
            return self.grader.take_spent()
        spent, self._judged = self._judged, Counter()
        spent.update(self._played.spent)
        return spent


def _is_lost(group: Group) -> bool:
    """Whether it starts in a stored state that its world does not come to again; the planner has forgotten that."""
    return group.trajectories[0].stored_start is not None and all(t.end == "error" for t in group.trajectories)


def _reasons(trajectories: Sequence[Trajectory]) -> str:
    return "; ".join(sorted({f"{t.end}: {t.end_reason}" for t in trajectories})[:3])
