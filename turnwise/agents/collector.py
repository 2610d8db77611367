"""Playing episodes with the engine: many at once, each at its own pace, recorded token by token.

What an episode does depends on its job alone (task, sample, key): not on its neighbours, the number of slots or
time. Results come back in the order of the jobs.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium

from turnwise.agents.actions import parse_action
from turnwise.agents.engine import Engine, Reply, Sampling
from turnwise.agents.prompts import AgentConfig, ChatFormat, Context, new_context
from turnwise.envs.interface import Info
from turnwise.envs.tasks import start
from turnwise.trajectory import IntArray, Task, Trajectory, Turn

TextEnv = gymnasium.Env[str, str]
OnEpisode = Callable[[Trajectory], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play: attempt ``sample`` at ``task``; ``key`` tells apart repeated visits (the update)."""

    task: Task
    sample: int = 0
    key: int = 0

    @property
    def seed(self) -> int:
        """Seed of the environment's reset, in [0, 2**31)."""
        return mix("env", self.task.key, self.key) >> 33


@dataclass(slots=True)
class _Episode:
    job: Job
    index: int
    env: TextEnv
    context: Context
    prompt: IntArray
    continues: bool
    observation: str
    turns: list[Turn] = field(default_factory=list)
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class SuccessRule:
    """``info["success"]`` where the world gives it; else total reward >= ``threshold``; else unknown (None)."""

    threshold: float | None = None

    def judge(self, info: Info, total_reward: float) -> bool | None:
        if "success" in info:
            return bool(info["success"])
        return None if self.threshold is None else total_reward >= self.threshold


class Collector:
    """Plays jobs with one engine. Environments are made on demand, one a slot, and reused.

    An environment that raises is replaced and its episode retried once with the same seed; a second failure is
    recorded as a trajectory that ended in ``error``, never as a reward of 0.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        engine: Engine,
        chat: ChatFormat,
        config: AgentConfig,
        *,
        success: SuccessRule | None = None,
    ) -> None:
        self.make_env, self.engine, self.chat, self.config = make_env, engine, chat, config
        self.success = success or SuccessRule()
        self.env_s = 0.0
        self.version = 0
        self.adapter_hash = ""
        self._idle: list[TextEnv] = []

    def collect(
        self, jobs: Sequence[Job], sampling: Sampling, on_episode: OnEpisode | None = None
    ) -> list[Trajectory]:
        """Play every job; trajectories in the order of ``jobs``. ``on_episode`` hears each as it ends."""
        waiting = deque((index, job, 0) for index, job in enumerate(jobs))
        playing: dict[int, _Episode] = {}
        results: dict[int, Trajectory] = {}

        def finish(index: int, trajectory: Trajectory) -> None:
            results[index] = trajectory
            if on_episode is not None:
                on_episode(trajectory)

        retries: dict[int, int] = {}

        def failed(index: int, job: Job, turns: list[Turn], error: Exception) -> None:
            retries[index] = retries.get(index, 0) + 1
            if retries[index] == 1:
                waiting.appendleft((index, job, 1))
            else:
                reason = f"{type(error).__name__}: {error}"[:200]
                finish(index, self._record(job, turns, "error", {}, reason))

        while waiting or playing:
            while waiting and len(playing) < self.engine.num_slots:
                index, job, _ = waiting.popleft()
                try:
                    episode = self._begin(index, job)
                except Exception as error:  # whatever a third party's world raises
                    failed(index, job, [], error)
                    continue
                slot = self.engine.open()
                if not self._ask(slot, episode, fresh=True, sampling=sampling):
                    self._release(slot, episode)
                    finish(index, self._record(job, [], "truncated", {}, "context"))
                    continue
                playing[slot] = episode
            for reply in self.engine.step():
                episode = playing.pop(reply.slot)
                try:
                    ended = self._advance(episode, reply)
                except Exception as error:
                    self.engine.close(reply.slot)
                    failed(episode.index, episode.job, episode.turns, error)
                    continue
                if ended is None and self._ask(
                    reply.slot, episode, fresh=not episode.continues, sampling=sampling
                ):
                    playing[reply.slot] = episode
                    continue
                self._release(reply.slot, episode)
                finish(episode.index, ended or self._record(episode.job, episode.turns, "truncated", {}, "context"))
        return [results[i] for i in range(len(jobs))]

    def _begin(self, index: int, job: Job) -> _Episode:
        env = self._idle.pop() if self._idle else self.make_env()
        began = time.perf_counter()
        observation, info = start(env, job.task, job.seed)
        self.env_s += time.perf_counter() - began
        instructions = str(getattr(env.unwrapped, "instructions", ""))
        context = new_context(self.chat, self.config, instructions)
        prompt = context.begin(observation, info.get("admissible_actions"))
        return _Episode(job, index, env, context, prompt, False, observation)

    def _release(self, slot: int, episode: _Episode) -> None:
        self.engine.close(slot)
        self._idle.append(episode.env)

    def _ask(self, slot: int, episode: _Episode, *, fresh: bool, sampling: Sampling) -> bool:
        """Submit the episode's prompt; False where the context is full and the configuration says to end."""
        limit = min(self.config.max_context_tokens, self.engine.max_length) - sampling.max_tokens
        held = 0 if fresh else self.engine.length(slot)
        if held + len(episode.prompt) > limit:
            if self.config.on_overflow == "end":
                return False
            episode.prompt, episode.continues, fresh = episode.context.restart(), False, True
            if len(episode.prompt) > limit:
                return False
        job = episode.job
        key = mix("reply", job.task.key, job.key, job.sample, len(episode.turns))
        self.engine.submit(slot, episode.prompt, fresh=fresh, key=key, sampling=sampling)
        return True

    def _advance(self, episode: _Episode, reply: Reply) -> Trajectory | None:
        """Act on a reply; the trajectory where that ended the episode, else None with the next prompt set."""
        text = self.chat.decode(reply.ids)
        parsed = parse_action(text, self.config.action_format)
        began = time.perf_counter()
        observation, reward, terminated, truncated, info = episode.env.step(parsed.text)
        env_s = time.perf_counter() - began
        self.env_s += env_s
        episode.total += float(reward)
        episode.turns.append(
            Turn(
                observation=episode.observation,
                prompt_ids=episode.prompt,
                continues=episode.continues,
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
        if terminated or truncated:
            end: Literal["terminated", "truncated"] = "terminated" if terminated else "truncated"
            return self._record(episode.job, episode.turns, end, info, "" if terminated else "turns")
        episode.observation = observation
        episode.prompt, episode.continues = episode.context.extend(
            reply.ids, parsed.text, observation, info.get("admissible_actions")
        )
        return None

    def _record(
        self,
        job: Job,
        turns: list[Turn],
        end: Literal["terminated", "truncated", "error"],
        info: dict[str, Any],
        reason: str,
    ) -> Trajectory:
        total = sum(turn.reward for turn in turns)
        judged = self.success.judge(info, total) if info else (None if end == "error" else False)
        return Trajectory(
            episode=f"{job.task.split}-{job.task.index}-{job.key}-{job.sample}",
            task=job.task,
            seed=job.seed,
            sample=job.sample,
            turns=tuple(turns),
            end=end,
            success=judged,
            score=float(info["score"]) if "score" in info else None,
            end_reason=reason,
            policy_version=self.version,
            adapter_hash=self.adapter_hash,
        )


def jobs_for(tasks: Iterable[Task], samples: int, key: int) -> list[Job]:
    """``samples`` attempts at each task, grouped by task."""
    return [Job(task, sample, key) for task in tasks for sample in range(samples)]


def mix(*parts: object) -> int:
    """A 64-bit number from any values: the same everywhere and always (unlike ``hash``)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
