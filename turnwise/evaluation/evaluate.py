"""Whole evaluations, as the command line and Python call them: every target on its panel, with every decoding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnwise.agents.chat_client import PREFIX, EndpointConfig, Usage
from turnwise.agents.endpoint import Endpoint
from turnwise.agents.episode import SuccessRule
from turnwise.agents.playing import OnEpisode, seed_globals
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.agents.textplay import Played
from turnwise.agents.untrained import advice
from turnwise.assembly.policies import WhichCheckpoint
from turnwise.assembly.shards import check_endpoints
from turnwise.config.sections import RayConfig
from turnwise.envs.interface import HasPlayers, capability
from turnwise.envs.tasks import TextEnv, closed_after, told_of
from turnwise.evaluation.file import Evaluation, EvaluationFile, Measured, Part, about
from turnwise.evaluation.playing import TEST_KEY, evaluate_policy, evaluate_scripted
from turnwise.evaluation.pooling import pool
from turnwise.evaluation.report import Report
from turnwise.evaluation.seated import Seated
from turnwise.evaluation.subjects import Asked, Subject, check_seeds
from turnwise.grading.grader import Grader, grader_of
from turnwise.models.engine import Sampling
from turnwise.monitoring.first_replies import FirstReplies
from turnwise.runs.trajectories import episode_of
from turnwise.trajectory import Trajectory


def evaluate(
    target: str | Path,
    *,
    env: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    split: str | None = None,
    tasks: int | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    checkpoint: WhichCheckpoint | None = None,
    agent: Mapping[str, Any] | None = None,
    rewards: Mapping[str, Any] | None = None,
    success_threshold: float | None = None,
    num_slots: int = 64,
    shards: int = 1,
    ray: RayConfig | None = None,
    env_threads: int = 0,
    device: str = "cpu",
    seed: int | None = None,
    opponent: str | None = None,
    endpoint: EndpointConfig | None = None,
    max_error_share: float | None = None,
    out: str | Path | None = None,
    on_episode: OnEpisode | None = None,
) -> Report:
    """Measure success on a fixed panel of tasks: every task ``samples`` times.

    ``target`` is a run folder, the folder of one of its checkpoints, a model folder or hub name,
    ``openai:MODEL[@URL]``, ``random``, ``expert:searching`` or ``expert:knowing``. A run brings its own environment,
    agent settings, test panel and seed, and the checkpoint that its keep_checkpoint names. An exported folder brings
    its agent settings. ``agent`` changes some of these settings. ``temperature`` 0 is greedy. ``rewards`` are functions
    and a judge that grade the episodes, over those of the run (``turnwise.grading.settings.GradingConfig``).

    ``opponent`` plays the other seats of a game; it is a name of the same kinds, or ``self``. ``shards``,
    ``ray`` and ``env_threads`` are rollout.shards, ray and rollout.env_threads of training: they change the speed, and
    numbers by rounding alone. With ``out`` an interrupted evaluation continues where it stopped.

    Raises ValueError for a target, environment or split that does not exist. Also raises it where more than
    ``max_error_share`` of the episodes (default: the run's eval.max_error_share) fail in their environment, since the
    rest would not stand for the panel.
    """
    asked = Asked(
        env=env,
        env_kwargs=env_kwargs or {},
        split=split,
        tasks=tasks,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        checkpoint=checkpoint,
        agent=agent or {},
        rewards=rewards or {},
        success_threshold=success_threshold,
        num_slots=num_slots,
        shards=shards,
        ray=ray,
        env_threads=env_threads,
        device=device,
        seed=seed,
        opponent=opponent,
        endpoint=endpoint or EndpointConfig(),
        max_error_share=max_error_share,
    )
    evaluation = evaluate_all([str(target)], asked, out=out, on_episode=on_episode)
    if evaluation.refused:
        raise ValueError(evaluation.refused[0])
    (measured,) = evaluation.targets
    (report,) = measured.reports.values()
    return report


def evaluate_all(
    targets: Sequence[str], asked: Asked, *, out: str | Path | None = None, on_episode: OnEpisode | None = None
) -> Evaluation:
    """Measure a single target of any kind, or several seeds of one method, with every decoding that is asked for.

    ``Evaluation.refused`` has a message for each report with too many failed episodes. Raises ValueError for several
    targets that are not seeds of one method, and otherwise as ``evaluate`` does.
    """
    if not targets:
        raise ValueError("nobody to evaluate: give a run, a model folder, openai:MODEL, random or expert")
    subjects = [Subject.of(target, asked) for target in targets]
    check_seeds(subjects)
    file = EvaluationFile(out, asked.plain(targets)) if out is not None else None
    evaluator = _Evaluator(asked, file, on_episode)
    try:
        measured = tuple(evaluator.measure(number, subject) for number, subject in enumerate(subjects))
    finally:
        if file is not None:
            file.pause(evaluator.judged)
    names = measured[0].reports
    pooled = {name: pool([m.reports[name] for m in measured]) for name in names} if len(measured) > 1 else {}
    origin, spent = (file.provenance, file.spent()) if file is not None else (about(), evaluator.spent())
    cost = spent.cost(asked.endpoint)
    used = (spent, cost) if spent != Usage() else (None, None)
    refused = tuple(
        why
        for subject, found in zip(subjects, measured, strict=True)
        for report in found.reports.values()
        if (why := report.too_many_errors(subject.max_error_share(asked)))
    )
    asks = asked.plain(targets)
    judged = evaluator.judged if file is None else file.judged()
    evaluation = Evaluation(asks, origin, measured, pooled, used[0], used[1], refused, judged or None)
    if file is not None:
        file.finish(evaluation)
    return evaluation


class _Evaluator:
    """Measures targets one after another, and counts what endpoints use."""

    def __init__(self, asked: Asked, file: EvaluationFile | None, on_episode: OnEpisode | None) -> None:
        self.asked, self.file = asked, file
        self.on_episode = on_episode or (lambda trajectory: None)
        self.endpoints: list[Endpoint] = []
        self.judged: dict[str, float] = {}
        self.decodings = asked.decodings()
        if file is not None:
            file.meter(self.spent)

    def spent(self) -> Usage:
        """What the endpoints of this call have used so far."""
        return sum((endpoint.client.spent for endpoint in self.endpoints), Usage())

    def measure(self, number: int, subject: Subject) -> Measured:
        """Every decoding of target ``number``."""
        seed = self.asked.seed if self.asked.seed is not None else subject.seed or 0
        with closed_after(subject.where.make()) as world:
            seated = self._seated(subject, world, seed)
            seating, num_seats = seated.seating(world)
            with self._grading(subject) as grader:
                if grader is not None:
                    grader.check(lambda: told_of(world, subject.tasks[0], seed))
        described = subject.described(seating, seed)
        if self.file is not None:
            self.file.describe(number, described)
        overlap = _with_examples(subject, seating)
        endpoints = list(_endpoints(seating))
        self.endpoints += endpoints
        self._check_decodings(seating, endpoints)
        reports = {}
        try:
            for place, (name, (sampling, samples)) in enumerate(self.decodings.items()):
                part = self.file.part(number * len(self.decodings) + place, num_seats) if self.file else None
                for endpoint in endpoints:
                    endpoint.sampling = sampling
                seed_globals(seed, TEST_KEY)
                if seating.models:
                    report = self._with_engines(subject, seated, seating, sampling, samples, part)
                else:
                    report = self._by_text(subject, seating, seed, sampling, samples, part, endpoints=endpoints)
                reports[name] = replace(report, overlap=overlap)
        finally:
            for endpoint in endpoints:
                endpoint.client.close()
        return Measured(described, reports)

    def _seated(self, subject: Subject, world: TextEnv, seed: int) -> Seated:
        asked = self.asked
        game = capability(world, HasPlayers)
        num_players = len(game.players) if game else 1
        episodes = len(subject.tasks) * max(samples for _, samples in self.decodings.values())
        return Seated(
            target=subject.target,
            checkpoint=subject.checkpoint,
            agent=asked.agent,
            env=subject.where,
            opponent=asked.opponent,
            usual_opponent=subject.game.eval_opponent,
            num_slots=min(asked.num_slots, episodes * num_players),
            num_players=num_players,
            env_threads=asked.env_threads,
            device=asked.device,
            endpoint=asked.endpoint,
            seed=seed,
            shards=asked.shards if asked.shards > 1 or asked.ray is not None else None,
            ray=asked.ray,
        )

    def _check_decodings(self, seating: Seating, endpoints: Sequence[Endpoint]) -> None:
        check_endpoints(self.asked.shards, [PREFIX + endpoint.client.model for endpoint in endpoints])
        asked, usual = self.asked, Asked()
        drawn = [name for name in ("greedy", "temperature", "top_p", "top_k") if vars(asked)[name] != vars(usual)[name]]
        if drawn and not seating.models and not endpoints:
            raise ValueError(
                f"--{drawn[0].replace('_', '-')} is about how a model replies, and no player here is a model"
            )
        if (asked.shards > 1 or asked.ray is not None) and not seating.models:
            raise ValueError(
                "--shards and ray say where a model of ours plays, and no player here is one: leave them out"
            )
        if asked.endpoint != usual.endpoint and not endpoints:
            raise ValueError(
                "--base-url and endpoint.KEY are about openai:MODEL, and no player here is one (a judge has "
                "rewards.judge.endpoint.KEY): leave them out"
            )
        if asked.top_k and endpoints:
            raise ValueError("top_k is no field of the chat API; a server that has one takes endpoint.extra.top_k=N")

    @contextmanager
    def _grading(self, subject: Subject) -> Iterator[Grader | None]:
        """Who pays the episodes of a target beside its world; what a judge took is counted at the end."""
        grader = grader_of(subject.grading, self.file.verdicts_path if self.file is not None else None)
        try:
            yield grader
        finally:
            if grader is not None:
                for name, value in grader.take_spent().items():
                    self.judged[name] = self.judged.get(name, 0) + value
                grader.close()

    def _with_engines(
        self, subject: Subject, seated: Seated, seating: Seating, sampling: Sampling, samples: int, part: Part | None
    ) -> Report:
        first = FirstReplies(advice(seating.models[0].config))

        def on_episode(trajectory: Trajectory) -> None:
            first.add(trajectory)
            if part is not None:
                part.add_seat(trajectory)
            self.on_episode(trajectory)

        playing = seated.collector if seated.shards is None else seated.sharded
        with self._grading(subject) as grader, closing(playing(seating, grader)) as collector:
            report, _ = evaluate_policy(
                collector,
                subject.tasks,
                name=subject.target,
                temperature=sampling.temperature,
                samples=samples,
                max_tokens=seating.max_reply_tokens,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                key=TEST_KEY,
                on_episode=on_episode,
                played=part.played if part else (),
            )
        first.finish()
        return report

    def _by_text(
        self,
        subject: Subject,
        seating: Seating,
        seed: int,
        sampling: Sampling,
        samples: int,
        part: Part | None,
        *,
        endpoints: Sequence[Endpoint],
    ) -> Report:
        used = dict(part.usage) if part else {}
        first = FirstReplies(advice(endpoints[0].settings)) if endpoints else None

        def on_played(played: Played) -> None:
            used[played.job.episode] = played.usage
            if part is not None:
                part.add_episode(played)
            for trajectory in played.trajectories:
                if first is not None:
                    first.add(trajectory)
                self.on_episode(trajectory)

        with self._grading(subject) as grader:
            at_once = self.asked.endpoint.concurrency if endpoints else 1
            report, trajectories = evaluate_scripted(
                subject.where.make,
                seating,
                subject.tasks,
                name=subject.target,
                samples=samples,
                temperature=sampling.temperature,
                seed=seed,
                success=SuccessRule(subject.where.success_threshold),
                workers=at_once,
                on_played=on_played,
                played=part.played if part else (),
                grade=None if grader is None else grader.grade,
            )
        if first is None:
            return report
        first.finish()
        counting = {episode_of(trajectory) for trajectory in trajectories if trajectory.end != "error"}
        usage = sum((own for episode, own in used.items() if episode in counting), Usage())
        alone = seating.opponents is None or not any(_endpoints(Seating({}, seating.opponents)))
        sound = sum(trajectory.end != "error" for trajectory in trajectories)
        known = alone and not usage.uncounted  # else an opponent's tokens are among them, or some answers' are not
        tokens = usage.completion_tokens / sound if known and sound else math.nan
        return replace(report, usage=usage, mean_action_tokens=tokens)


def _with_examples(subject: Subject, seating: Seating) -> dict[str, int] | None:
    """The tasks that a target may have met, with those that its prompts show how to solve."""
    agents = [player if isinstance(player, ModelAgent) else player.make for player in seating.learners.values()]
    every = (agent.examples for agent in agents if isinstance(agent, ModelAgent | Endpoint))
    keys = {example.task for examples in every for example in examples}
    shown = sum(task.key in keys for task in subject.tasks)
    return {**(subject.overlap or {}), "shown as examples": shown} if shown else subject.overlap


def _endpoints(seating: Seating) -> Iterator[Endpoint]:
    for player in (*seating.learners.values(), *(seating.opponents or {}).values()):
        made = getattr(player, "make", None)
        if isinstance(made, Endpoint):
            yield made
