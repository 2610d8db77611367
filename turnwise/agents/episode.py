"""One episode, whoever plays: an environment, and a seat for every player in it.

A world of one player has one seat. In a game every observation goes to the seat whose turn it is, and what an action
earns goes to all of them. A model's seat keeps a context of tokens; a scripted seat holds an agent that answers by
itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import gymnasium
import numpy as np

from turnwise.agents.prompts import AgentConfig, ChatFormat, Context, new_context
from turnwise.envs.interface import HasPlayers, Info, capability, instructions_of
from turnwise.envs.tasks import no_exit, snapshots, start, step
from turnwise.models.engine import Engine, Reply
from turnwise.seeds import mix
from turnwise.trajectory import End, Fork, IntArray, Task, Trajectory, Turn

TextEnv = gymnasium.Env[str, str]

_NO_IDS = np.zeros(0, np.int32)
_NO_REPLY = Reply(-1, _NO_IDS, np.zeros(0, np.float32), np.zeros(0, np.float32), True)


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play: attempt ``sample`` at ``task``; ``key`` tells repeated visits apart (the update).

    ``chair`` is the learner's seat where it plays one of several (modulo their number).
    """

    task: Task
    sample: int = 0
    key: int = 0
    chair: int = 0

    def env_seed(self, seed: int) -> int:
        """Seed of the environment's reset, in [0, 2**31): the same for all samples of a group in run ``seed``."""
        return mix("env", seed, self.task.key, self.key) >> 33

    @property
    def episode(self) -> str:
        return f"{self.task.split}-{self.task.index}-{self.key}-{self.sample}"


def jobs_for(tasks: Iterable[Task], samples: int, key: int) -> list[Job]:
    """``samples`` attempts at each task, grouped by task. In a game the learner's chair moves with each attempt."""
    return [Job(task, sample, key, task.index + sample) for task in tasks for sample in range(samples)]


@dataclass(frozen=True, slots=True)
class SuccessRule:
    """``info["success"]`` where the world gives it; else total reward >= ``threshold``; else unknown (None)."""

    threshold: float | None = None

    def judge(self, info: Info, total_reward: float) -> bool | None:
        if info.get("success") is not None:
            return bool(info["success"])
        return None if self.threshold is None else total_reward >= self.threshold


@dataclass(frozen=True, slots=True)
class Said:
    """An agent's whole reply, the action read from it, and whether it held one."""

    reply: str
    action: str
    valid: bool


class CutShortError(Exception):
    """An agent cannot go on with this episode, which is truncated for ``reason``: a full context, say."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Agent(Protocol):
    """Chooses an action for each observation of one episode: the action alone, or what was said around it too."""

    def begin(self, observation: str, info: Info) -> None: ...
    def act(self, observation: str, info: Info) -> str | Said: ...


@dataclass(slots=True)
class ModelAgent:
    """A language model that plays: its engine, how it is shown the world, and what its weights are called."""

    engine: Engine
    chat: ChatFormat
    config: AgentConfig
    name: str = ""
    version: int = 0
    adapter_hash: str = ""


@dataclass(frozen=True, slots=True)
class Scripted:
    """An agent without a model; ``make(env, seed)`` gives one for an episode."""

    name: str
    make: Callable[[TextEnv, int], Agent]


@dataclass(slots=True)
class Seat:
    """One player's side of an episode: what it was shown, what it did, what that earned.

    ``model`` or ``agent`` plays it; ``recorded`` says whether it gives a trajectory. ``slot`` is a model's context in
    its engine.
    """

    player: str = ""
    role: str = ""
    policy: str = ""
    model: ModelAgent | None = None
    agent: Agent | None = None
    recorded: bool = True
    slot: int = -1
    turns: list[Turn] = field(default_factory=list)
    observation: str = ""
    context: Context | None = None
    prompt: IntArray = field(default_factory=lambda: _NO_IDS)
    continues: bool = False
    begun: bool = False
    early: float = 0.0  # earned before its first turn

    def see(self, observation: str, info: Info, instructions: str) -> None:
        """It is this player's turn: add what it sees to its context."""
        self.observation = observation
        first, self.begun = not self.begun, True
        if self.model is None:
            if first and self.agent is not None:
                self.agent.begin(observation, info)
            return
        admissible = info.get("admissible_actions")
        if self.context is None:
            self.context = new_context(self.model.chat, self.model.config, instructions)
            self.prompt, self.continues = self.context.begin(observation, admissible), False
        else:
            last = self.turns[-1]
            self.prompt, self.continues = self.context.extend(last.action_ids, last.action, observation, admissible)

    def take(self, turn: Turn) -> None:
        """A turn of this player's. What it earned before its first one belongs to that."""
        self.turns.append(turn)
        self.early, early = 0.0, self.early
        self.earn(early)

    def earn(self, reward: float) -> None:
        """Reward that arrives after this player's last turn belongs to that turn, before its first one to the first."""
        if not self.turns:
            self.early += reward
        elif reward:
            self.turns[-1] = replace(self.turns[-1], reward=self.turns[-1].reward + reward)

    @property
    def total_reward(self) -> float:
        return float(sum(turn.reward for turn in self.turns))

    def context_ids(self) -> IntArray:
        """All ids of the present context: everything since the last fresh start, then the prompt."""
        parts = [self.prompt]
        for turn in reversed(self.turns if self.continues else []):
            parts += [turn.action_ids, turn.prompt_ids]
            if not turn.continues:
                break
        return np.concatenate(parts[::-1])


@dataclass(frozen=True, slots=True)
class Point:
    """A moment of an episode of one player, to continue from in a copy.

    ``world`` is the environment's snapshot; without one the ``turns`` have to be taken again.
    """

    task: Task
    turns: tuple[Turn, ...]
    observation: str
    info: Info
    context: Context | None
    prompt: IntArray
    continues: bool
    world: Any


class Episode:
    """Begins with a reset; then ``step`` by ``step`` until ``end``. What the environment raises comes through."""

    def __init__(self, env: TextEnv, job: Job, seed: int, seats: Sequence[Seat]) -> None:
        self._place(env, job, seed, seats)
        with self._timed():
            self.observation, self.info = start(env, job.task, self.seed)
        if not job.task.type and self.info.get("task_type"):  # a world may tell what its panel does not
            self.task = replace(job.task, type=self.info["task_type"])
        self._show()

    def _place(self, env: TextEnv, job: Job, seed: int, seats: Sequence[Seat]) -> None:
        self.env, self.job, self.seed = env, job, job.env_seed(seed)
        self.task = job.task
        self.seats = {seat.player: seat for seat in seats}
        self.players: tuple[str, ...] = tuple(player for player in self.seats if player)  # none in a world of one
        self.instructions = instructions_of(env)
        self.end: End | None = None
        self._env_s = 0.0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._env_s += time.perf_counter() - began

    def taken_s(self) -> float:
        """Seconds that the environment took since this was last asked."""
        taken, self._env_s = self._env_s, 0.0
        return taken

    def _show(self) -> None:
        self.to_move = self.seats[self.info["player"] if self.players else ""]
        self.to_move.see(self.observation, self.info, self.instructions)

    def step(self, action: str, reply: Reply = _NO_REPLY, text: str | None = None, parsed: bool = True) -> None:
        """The player whose turn it is acts; ``text`` is the whole reply, ``parsed`` whether it held an action."""
        seat = self.to_move
        before = self._env_s
        with self._timed():
            observation, reward, terminated, truncated, info = step(self.env, action, self.players)
        rewards = info["rewards"] if self.players else {seat.player: reward}
        seat.take(
            Turn(
                observation=seat.observation,
                prompt_ids=seat.prompt,
                continues=seat.continues,
                action_ids=reply.ids,
                logprobs=reply.logprobs,
                entropies=reply.entropies,
                reply=action if text is None else text,
                action=action,
                valid=parsed and bool(info.get("valid", True)),
                reward=0.0,
                anchor=str(self.info.get("anchor", "")),
                env_s=self._env_s - before,
            )
        )
        for player, earned in rewards.items():
            self.seats[player].earn(float(earned))
        self._go_on(observation, info, terminated, truncated)

    def _go_on(self, observation: str, info: Info, terminated: bool, truncated: bool) -> None:
        self.observation, self.info = observation, info
        if terminated or truncated:
            self.end = "terminated" if terminated else "truncated"
        else:
            self._show()

    def act_while_scripted(self) -> None:
        """Let scripted players act until a model is to move, or the end."""
        while self.end is None and self.to_move.model is None:
            self.act()

    def act(self) -> None:
        """The scripted player whose turn it is acts."""
        assert self.to_move.agent is not None
        with no_exit("a player", "act"):
            said = self.to_move.agent.act(self.observation, self.info)
        if isinstance(said, str):
            self.step(said)
        elif isinstance(said, Said):
            self.step(said.action, text=said.reply, parsed=said.valid)
        else:
            raise ValueError(f"the player answered {said!r}"[:150] + "; expected an action, which is a string")

    def point(self, turn: int) -> Point:
        """The moment after ``turn`` turns. Raises ValueError where it was not reached, is the end, or in a game."""
        if len(self.seats) != 1:
            raise ValueError("only an episode of one player can be forked")
        seat = self.to_move
        if not 0 <= turn <= len(seat.turns) or (turn == len(seat.turns) and self.end is not None):
            raise ValueError(f"the episode has {len(seat.turns)} turns: it cannot be forked after {turn}")
        if turn < len(seat.turns):
            begun, observation = tuple(seat.turns[:turn]), seat.turns[turn].observation
            return Point(self.task, begun, observation, {}, None, _NO_IDS, False, None)
        world, context = snapshots(self.env), seat.context.fork() if seat.context else None
        state = world.snapshot() if world else None
        turns = tuple(seat.turns)
        return Point(self.task, turns, self.observation, self.info, context, seat.prompt, seat.continues, state)

    @classmethod
    def at(cls, point: Point, env: TextEnv, job: Job, seed: int, seat: Seat) -> Episode:
        """A copy that goes on from ``point``, by the environment's snapshot, else by taking its turns again.

        Raises RuntimeError where the environment does not repeat itself.
        """
        world = snapshots(env)
        if point.world is None or world is None:
            episode = cls(env, job, seed, [seat])
            episode._walk(point)
            return episode
        episode = cls.__new__(cls)
        episode._place(env, job, seed, [seat])
        episode.task = point.task
        with episode._timed():
            world.restore(point.world)
        seat.turns, seat.observation, seat.begun = list(point.turns), point.observation, True
        seat.context = point.context.fork() if point.context else None
        seat.prompt, seat.continues = point.prompt, point.continues
        episode.observation, episode.info, episode.to_move = point.observation, point.info, seat
        return episode

    def _walk(self, point: Point) -> None:
        for turn in point.turns:
            self._same(turn.observation)
            observation, _, terminated, truncated, info = step(self.env, turn.action, self.players)
            if terminated or truncated:
                raise RuntimeError("the environment ended where the forked episode went on")
            self.to_move.turns.append(turn)
            self._go_on(observation, info, False, False)
        self._same(point.observation)

    def _same(self, expected: str) -> None:
        if self.observation != expected:
            raise RuntimeError("the environment did not repeat itself: a fork cannot be replayed in it")

    def trajectories(
        self, end: End, reason: str = "", success: SuccessRule | None = None, fork: Fork | None = None
    ) -> list[Trajectory]:
        """One for each recorded seat, in the order of the seats. An ``error`` is neither success nor failure."""
        return [
            Trajectory(
                episode=f"{self.job.episode}-{seat.player}" if seat.player else self.job.episode,
                task=self.task,
                seed=self.seed,
                sample=self.job.sample,
                turns=tuple(seat.turns),
                end=end,
                success=None if end == "error" else self._success(seat, success or SuccessRule()),
                score=None if end == "error" else self._score(seat),
                end_reason=reason,
                policy_version=seat.model.version if seat.model else 0,
                adapter_hash=seat.model.adapter_hash if seat.model else "",
                player=seat.player,
                role=seat.role,
                policy=seat.policy,
                fork=fork,
            )
            for seat in self.seats.values()
            if seat.recorded
        ]

    def _success(self, seat: Seat, rule: SuccessRule) -> bool | None:
        if seat.player:  # a game that was cut short is not won
            return bool(self.info.get("successes", {}).get(seat.player, False))
        return rule.judge(self.info, seat.total_reward)

    def _score(self, seat: Seat) -> float | None:
        score = self.info.get("scores", {}).get(seat.player) if seat.player else self.info.get("score")
        return None if score is None else float(score)


Player = ModelAgent | Scripted


@dataclass(frozen=True)
class Seating:
    """Who plays what: by the name of a seat's player, or by role; ``""`` is for whoever is not named.

    A world of one player is the learner's. In a game without ``opponents`` learners take every seat (self-play);
    with them a learner has the seat of ``Job.chair``, and only its side is recorded.
    """

    learners: Mapping[str, Player]
    opponents: Mapping[str, Player] | None = None

    @property
    def models(self) -> list[ModelAgent]:
        found = [*self.learners.values(), *(self.opponents or {}).values()]
        return [player for player in found if isinstance(player, ModelAgent)]

    def seats(self, env: TextEnv, job: Job, seed: int) -> list[Seat]:
        """A seat for every player, taken; ``seed`` feeds the scripted ones."""
        game = capability(env, HasPlayers)
        if game is None:
            return [self._seat(env, "", "", self.learners[""], True, seed)]
        seats = []
        for number, player in enumerate(game.players):
            role = game.role(player)
            learns = self.opponents is None or number == job.chair % len(game.players)
            side = self.learners if learns or self.opponents is None else self.opponents
            who = next(side[name] for name in (player, role, "") if name in side)
            own_seed = mix("seat", seed, job.task.key, job.key, job.sample, player)
            seats.append(self._seat(env, player, role, who, learns, own_seed))
        return seats

    @staticmethod
    def _seat(env: TextEnv, player: str, role: str, who: Player, recorded: bool, seed: int) -> Seat:
        if isinstance(who, ModelAgent):
            return Seat(player, role, who.name, model=who, recorded=recorded)
        return Seat(player, role, who.name, agent=who.make(env, seed), recorded=recorded)
