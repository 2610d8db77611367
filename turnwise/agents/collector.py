"""Playing episodes with the engine: many at once, each at its own pace, recorded token by token.

``Collector`` owns the worlds; ``Rollouts`` is one act of collecting, whose events a planner can react to. What an
episode does depends on seed, task, sample and key alone: not on its neighbours, the number of slots or time (beyond
the rounding of batched arithmetic).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np

from turnwise.agents.actions import parse_action
from turnwise.agents.engine import Engine, Reply, Sampling
from turnwise.agents.prompts import AgentConfig, ChatFormat, Context, new_context
from turnwise.envs.interface import Info
from turnwise.envs.tasks import start
from turnwise.trajectory import End, Fork, IntArray, RolloutFinished, Task, Trajectory, Turn, TurnFinished

TextEnv = gymnasium.Env[str, str]
OnEpisode = Callable[[Trajectory], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play: attempt ``sample`` at ``task``; ``key`` tells repeated visits apart (the update)."""

    task: Task
    sample: int = 0
    key: int = 0

    def env_seed(self, seed: int) -> int:
        """Seed of the environment's reset, in [0, 2**31): the same for all samples of a group in run ``seed``."""
        return mix("env", seed, self.task.key, self.key) >> 33

    @property
    def episode(self) -> str:
        return f"{self.task.split}-{self.task.index}-{self.key}-{self.sample}"


@dataclass(frozen=True, slots=True)
class SuccessRule:
    """``info["success"]`` where the world gives it; else total reward >= ``threshold``; else unknown (None)."""

    threshold: float | None = None

    def judge(self, info: Info, total_reward: float) -> bool | None:
        if "success" in info:
            return bool(info["success"])
        return None if self.threshold is None else total_reward >= self.threshold


class Collector:
    """Environments (made on demand, one a slot, reused), an engine, and how the agent sees the world.

    ``seed`` is the run's: with task, sample, key and turn it decides every draw. ``version`` and ``adapter_hash``
    name the sampling policy in every trajectory.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        engine: Engine,
        chat: ChatFormat,
        config: AgentConfig,
        *,
        seed: int = 0,
        success: SuccessRule | None = None,
    ) -> None:
        self.make_env, self.engine, self.chat, self.config = make_env, engine, chat, config
        self.seed, self.success = seed, success or SuccessRule()
        self.version, self.adapter_hash = 0, ""
        self.idle: list[TextEnv] = []

    def collect(self, jobs: Sequence[Job], sampling: Sampling, on_episode: OnEpisode | None = None) -> list[Trajectory]:
        """Play every job; trajectories in the order of ``jobs``. ``on_episode`` hears each as it ends."""
        rollouts = Rollouts(self, sampling, on_episode=on_episode)
        order = [rollouts.add(job) for job in jobs]
        finished = {e.rollout: e.trajectory for e in rollouts.events() if isinstance(e, RolloutFinished)}
        return [finished[rollout] for rollout in order]


@dataclass(slots=True)
class _Rollout:
    """An episode and where it stands. ``prefix`` are turns of a parent that a fork has to walk again, ``reaches`` the
    observation that they led the parent to.
    """

    job: Job
    number: int
    prefix: tuple[Turn, ...] = ()
    reaches: str = ""
    fork: Fork | None = None
    attempts: int = 0
    slot: int = -1
    env: TextEnv | None = None
    context: Context | None = None
    observation: str = ""
    prompt: IntArray | None = None
    continues: bool = False
    turns: list[Turn] = field(default_factory=list)
    reward: float = 0.0
    info: Info = field(default_factory=dict)


class Rollouts:
    """Running episodes, steered by a planner (turnwise.algorithms.planning.Rollouts).

    An environment that raises is replaced and its episode retried once with the same seed; a second failure is
    recorded as a trajectory that ended in ``error``, never as a reward of 0. ``on_episode`` hears each that ends.
    """

    def __init__(
        self, collector: Collector, sampling: Sampling, key: int = 0, on_episode: OnEpisode | None = None
    ) -> None:
        self._c, self._sampling, self._key, self._on_episode = collector, sampling, key, on_episode
        self._all: list[_Rollout] = []
        self._waiting: deque[_Rollout] = deque()
        self._open: dict[int, _Rollout] = {}  # slot -> rollout
        self._playing: dict[int, _Rollout] = {}  # those of them that wait for a reply
        self._stopped: set[int] = set()

    def start(self, task: Task, sample: int) -> int:
        """Queue attempt number ``sample`` at a task."""
        return self.add(Job(task, sample, self._key))

    def add(self, job: Job) -> int:
        return self._queue(_Rollout(job, len(self._all)))

    def fork(self, rollout: int, turn: int) -> int:
        """Queue a copy of a rollout as it stood after ``turn`` turns; its sample number is its own number.

        The copy walks the same actions through a fresh environment and compares every observation, so it works
        in any world that repeats itself; a difference fails the copy as an error of the environment would.
        """
        parent = self._all[rollout]
        if not 0 <= turn <= len(parent.turns):
            raise ValueError(f"rollout {rollout} has {len(parent.turns)} turns: it cannot be forked after {turn}")
        job = replace(parent.job, sample=len(self._all))
        reaches = parent.turns[turn].observation if turn < len(parent.turns) else parent.observation
        fork = Fork(parent.job.episode, turn)
        return self._queue(_Rollout(job, len(self._all), tuple(parent.turns[:turn]), reaches, fork))

    def stop(self, rollout: int) -> None:
        """Abandon a rollout; it gives no trajectory."""
        self._stopped.add(rollout)

    def _queue(self, rollout: _Rollout) -> int:
        self._all.append(rollout)
        self._waiting.append(rollout)
        return rollout.number

    def events(self) -> Iterator[TurnFinished | RolloutFinished]:
        """Run until nothing is queued or running; what is started meanwhile joins."""
        engine = self._c.engine
        try:
            while self._waiting or self._playing:
                while self._waiting and len(self._playing) < engine.num_slots:
                    yield from self._heard(self._admit(self._waiting.popleft()))
                for reply in engine.step():
                    yield from self._heard(self._advance(self._playing.pop(reply.slot), reply))
        finally:  # also where the planner walks away or fails
            for rollout in list(self._open.values()):
                self._release(rollout)
            self._playing.clear()

    def _heard(self, events: Iterator[TurnFinished | RolloutFinished]) -> Iterator[TurnFinished | RolloutFinished]:
        for event in events:
            if self._on_episode is not None and isinstance(event, RolloutFinished):
                self._on_episode(event.trajectory)
            yield event

    def _admit(self, rollout: _Rollout) -> Iterator[TurnFinished | RolloutFinished]:
        """Reset its world, give it a slot and ask for the first reply."""
        if rollout.number in self._stopped:
            return
        try:
            self._reset(rollout)
        except Exception as error:  # whatever a third party's world raises
            yield from self._failed(rollout, error)
            return
        rollout.slot = self._c.engine.open()
        self._open[rollout.slot] = rollout
        yield from self._ask(rollout)

    def _reset(self, rollout: _Rollout) -> None:
        rollout.env = self._c.idle.pop() if self._c.idle else self._c.make_env()
        rollout.observation, rollout.info = start(rollout.env, rollout.job.task, rollout.job.env_seed(self._c.seed))
        rollout.turns, rollout.reward = [], 0.0
        instructions = str(getattr(rollout.env.unwrapped, "instructions", ""))
        rollout.context = new_context(self._c.chat, self._c.config, instructions)
        rollout.prompt = rollout.context.begin(rollout.observation, _admissible(rollout.info))
        rollout.continues = False
        for turn in rollout.prefix:
            if rollout.observation != turn.observation:
                raise RuntimeError("the environment did not repeat itself: a fork cannot be replayed in it")
            observation, reward, terminated, truncated, rollout.info = rollout.env.step(turn.action)
            if terminated or truncated:
                raise RuntimeError("the environment ended where the forked episode went on")
            rollout.turns.append(turn)
            rollout.reward += float(reward)
            rollout.observation = observation
            rollout.prompt, rollout.continues = rollout.context.extend(
                turn.action_ids, turn.action, observation, _admissible(rollout.info)
            )
        if rollout.prefix and rollout.observation != rollout.reaches:
            raise RuntimeError("the environment did not repeat itself: a fork cannot be replayed in it")

    def _ask(self, rollout: _Rollout) -> Iterator[RolloutFinished]:
        """Submit the prompt, or end the episode where the context is full."""
        engine, config, job = self._c.engine, self._c.config, rollout.job
        assert rollout.context is not None
        assert rollout.prompt is not None
        limit = min(config.max_context_tokens, engine.max_length) - self._sampling.max_tokens
        fresh, ids = not rollout.continues, rollout.prompt
        if rollout.continues and not engine.length(rollout.slot):  # a fork, or its retry: the slot knows nothing yet
            fresh, ids = True, _context(rollout.turns, rollout.prompt)
        if len(ids) + (0 if fresh else engine.length(rollout.slot)) > limit and config.on_overflow == "restart":
            rollout.prompt = ids = rollout.context.restart()
            rollout.continues, fresh = False, True
        if len(ids) + (0 if fresh else engine.length(rollout.slot)) > limit:
            yield self._finish(rollout, "truncated", "context")
            return
        key = mix("reply", self._c.seed, job.task.key, job.key, job.sample, len(rollout.turns))
        engine.submit(rollout.slot, ids, fresh=fresh, key=key, sampling=self._sampling)
        self._playing[rollout.slot] = rollout

    def _advance(self, rollout: _Rollout, reply: Reply) -> Iterator[TurnFinished | RolloutFinished]:
        """Act on a reply."""
        if rollout.number in self._stopped:
            self._release(rollout)
            return
        try:
            end = self._act(rollout, reply)
        except Exception as error:  # whatever a third party's world raises
            self._close(rollout)
            yield from self._failed(rollout, error)
            return
        yield TurnFinished(rollout.number, len(rollout.turns) - 1, reply.entropies)
        if rollout.number in self._stopped:
            self._release(rollout)
        elif end is not None:
            yield self._finish(rollout, end, "turns" if end == "truncated" else "")
        else:
            yield from self._ask(rollout)

    def _act(self, rollout: _Rollout, reply: Reply) -> End | None:
        """Step the world with the reply's action and record the turn; how the episode ended, if it did."""
        assert rollout.env is not None
        assert rollout.context is not None
        assert rollout.prompt is not None
        text = self._c.chat.decode(reply.ids)
        parsed = parse_action(text, self._c.config.action_format)
        began = time.perf_counter()
        observation, reward, terminated, truncated, info = rollout.env.step(parsed.text)
        env_s = time.perf_counter() - began
        rollout.turns.append(
            Turn(
                observation=rollout.observation,
                prompt_ids=rollout.prompt,
                continues=rollout.continues,
                action_ids=reply.ids,
                logprobs=reply.logprobs,
                entropies=reply.entropies,
                reply=text,
                action=parsed.text,
                valid=parsed.valid and bool(info.get("valid", True)),
                reward=float(reward),
                anchor=str(info.get("anchor", "")),
                env_s=env_s,
            )
        )
        rollout.reward += float(reward)
        rollout.info, rollout.observation = info, observation
        if terminated or truncated:
            return "terminated" if terminated else "truncated"
        rollout.prompt, rollout.continues = rollout.context.extend(
            reply.ids, parsed.text, observation, _admissible(info)
        )
        return None

    def _failed(self, rollout: _Rollout, error: Exception) -> Iterator[RolloutFinished]:
        """Retry once, in a fresh environment; then record the failure."""
        rollout.attempts += 1
        if rollout.env is not None:  # a world that raised is not used again
            with contextlib.suppress(Exception):
                rollout.env.close()
            rollout.env = None
        if rollout.attempts == 1:
            self._waiting.appendleft(rollout)
            return
        reason = f"{type(error).__name__}: {error}"[:200]
        yield RolloutFinished(rollout.number, self._record(rollout, "error", reason, None, None))

    def _finish(self, rollout: _Rollout, end: End, reason: str) -> RolloutFinished:
        self._release(rollout)
        info = rollout.info
        score = float(info["score"]) if "score" in info else None
        judged = self._c.success.judge(info, rollout.reward)
        return RolloutFinished(rollout.number, self._record(rollout, end, reason, judged, score))

    def _close(self, rollout: _Rollout) -> None:
        del self._open[rollout.slot]
        self._c.engine.close(rollout.slot)

    def _release(self, rollout: _Rollout) -> None:
        self._close(rollout)
        if rollout.env is not None:
            self._c.idle.append(rollout.env)
            rollout.env = None

    def _record(
        self, rollout: _Rollout, end: End, reason: str, success: bool | None, score: float | None
    ) -> Trajectory:
        return Trajectory(
            episode=rollout.job.episode,
            task=rollout.job.task,
            seed=rollout.job.env_seed(self._c.seed),
            sample=rollout.job.sample,
            turns=tuple(rollout.turns),
            end=end,
            success=success,
            score=score,
            end_reason=reason,
            policy_version=self._c.version,
            adapter_hash=self._c.adapter_hash,
            fork=rollout.fork,
        )


def jobs_for(tasks: Iterable[Task], samples: int, key: int) -> list[Job]:
    """``samples`` attempts at each task, grouped by task."""
    return [Job(task, sample, key) for task in tasks for sample in range(samples)]


def mix(*parts: object) -> int:
    """A 64-bit number from any values: the same everywhere and always (unlike ``hash``)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _admissible(info: dict[str, Any]) -> list[str] | None:
    return info.get("admissible_actions")


def _context(turns: Sequence[Turn], prompt: IntArray) -> IntArray:
    """The ids of the present context: everything since the last fresh start, then ``prompt``."""
    parts = [prompt]
    for turn in reversed(turns):
        parts += [turn.action_ids, turn.prompt_ids]
        if not turn.continues:
            break
    return np.concatenate(parts[::-1])
