"""One episode: an environment, and a seat for every player in it.

An example of an environment of one player: the constructor resets the environment and shows the first observation to
the only seat. The caller has a model answer ``seat.prompt`` and passes the action to ``step``, again and again, until
``end`` is set. ``trajectories`` then gives what is stored.

In a game of several players each observation goes to the seat of the player whose turn it is (``to_move``). What an
action earns goes to all seats. Agents without a model act by themselves (``act_while_scripted``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from turnwise.agents.jobs import Job, Past
from turnwise.agents.prompts import Context
from turnwise.agents.seating import NO_IDS, AgentReply, Seat, TextEnv
from turnwise.agents.wishes import Wishes
from turnwise.envs.interface import (
    HasClient,
    HasPlayers,
    Info,
    anchor_of,
    capability,
    given_of,
    gives_answers,
    instructions_of,
    is_valid,
    request_of,
    state_key_of,
    world_name,
)
from turnwise.envs.tasks import no_exit, refuse, restored, snapshots, start, step
from turnwise.models.engine import Reply
from turnwise.trajectory import End, Fork, IntArray, Task, Trajectory, Turn

_NO_REPLY = Reply(-1, NO_IDS, np.zeros(0, np.float32), np.zeros(0, np.float32), True)


@dataclass(frozen=True, slots=True)
class SuccessRule:
    """Whether an episode succeeded: ``info["success"]`` where the environment gives it.

    Elsewhere an episode succeeds when its total reward is at least ``threshold``. Without a threshold its success is
    unknown (None).
    """

    threshold: float | None = None

    def judge(self, info: Info, total_reward: float) -> bool | None:
        if info.get("success") is not None:
            return bool(info["success"])
        return None if self.threshold is None else total_reward >= self.threshold


def check_threshold(env: TextEnv, task: Task, name: str, threshold: float) -> None:
    """Raise ValueError for a threshold (the setting ``name``) in a world that says by itself what success is.

    It would have no effect there. Resets ``env`` to ``task``.
    """
    if capability(env, HasPlayers) is not None or start(env, task, 0)[1].get("success") is not None:
        raise ValueError(
            f"{name}={threshold:g} would have no effect: {world_name(env)} says by itself which episodes are a "
            "success; leave it out"
        )


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """A moment of an episode of one player, from which a copy can continue.

    ``world`` is the environment's snapshot. Where it is None, a copy takes the ``turns`` again. ``num_refused`` counts
    the requests before it that were refused: these cannot be made again. ``begun`` [n] are the tokens with which the
    copy's next reply begins.
    """

    task: Task
    turns: tuple[Turn, ...]
    observation: str
    info: Info
    context: Context | None
    prompt: IntArray
    continues: bool
    world: Any
    given: str = ""
    num_refused: int = 0
    begun: IntArray = field(default_factory=lambda: NO_IDS)

    @classmethod
    def of(cls, past: Past, task: Task) -> ForkPoint:
        """The moment of a stored episode."""
        return cls(task, past.turns, past.observation, {}, None, NO_IDS, False, None, past.given)


class Episode:
    """An episode from the environment's reset to its ``end``. Exceptions of the environment are passed on."""

    def __init__(self, env: TextEnv, job: Job, seed: int, seats: Sequence[Seat]) -> None:
        self._set_up(env, job, seed, seats)
        with self._timed():
            self.observation, self.info = start(env, job.task, self.seed)
        if not job.task.type and self.info.get("task_type"):  # an environment may tell what its panel does not
            self.task = replace(job.task, type=self.info["task_type"])
        self.given = given_of(self.info)
        self._show()

    def _set_up(self, env: TextEnv, job: Job, seed: int, seats: Sequence[Seat]) -> None:
        self.env, self.job, self.seed = env, job, job.env_seed(seed)
        self.task = job.task
        self.seats = {seat.player: seat for seat in seats}
        self.players: tuple[str, ...] = tuple(player for player in self.seats if player)  # () with one player
        self.instructions = instructions_of(env)
        self.client = capability(env, HasClient)
        self.end: End | None = None
        self.given = ""
        self.num_refused = 0
        self._env_s = 0.0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._env_s += time.perf_counter() - began

    def take_env_s(self) -> float:
        """Seconds that the environment took since this method was last called."""
        taken, self._env_s = self._env_s, 0.0
        return taken

    def _show(self) -> None:
        """Show the present observation to the seat whose turn it is."""
        self.to_move = self.seats[self.info["player"] if self.players else ""]
        try:
            self.to_move.observe(self.observation, self.info, self.instructions)
        except Exception as error:  # a chat template is a program: it may refuse what a client asks
            self.leave(str(error))
            raise

    def step(
        self,
        action: str,
        reply: Reply = _NO_REPLY,
        text: str | None = None,
        parsed: bool = True,
        thought_tokens: int = 0,
    ) -> None:
        """Take the action of the player whose turn it is.

        ``text`` is the whole reply (by default the action), ``reply`` its tokens where a model of ours sampled them,
        and ``parsed`` says whether the reply held an action. ``thought_tokens`` of the reply come before it.
        """
        seat = self.to_move
        before = self._env_s
        if self.client is not None:
            self.client.counted(len(seat.context_ids()), len(reply.ids), reply.ended or seat.was_cut)
        with self._timed():
            observation, reward, terminated, truncated, info = step(self.env, action, self.players)
        rewards = info["rewards"] if self.players else {seat.player: reward}
        seat.add_turn(
            Turn(
                observation=seat.observation,
                prompt_ids=seat.prompt,
                continues=seat.continues,
                action_ids=reply.ids,
                logprobs=reply.logprobs,
                entropies=reply.entropies,
                reply=action if text is None else text,
                action=action,
                valid=parsed and is_valid(info),
                reward=0.0,
                anchor=anchor_of(self.info),
                env_s=self._env_s - before,
                processing=reply.processing,
                thought_tokens=thought_tokens,
                request=request_of(self.info),
                state_key=state_key_of(self.info),
            )
        )
        for player, earned in rewards.items():
            self.seats[player].add_reward(float(earned))
        self._advance(observation, info, terminated, truncated)

    def refuse(self) -> None:
        """Tell the world's client that its request does not fit into the context. It may make another one."""
        assert self.client is not None
        self.num_refused += 1
        with self._timed():
            observation, reward, terminated, truncated, info = refuse(self.env, self.client)
        self.to_move.add_reward(reward)
        self._advance(observation, info, terminated, truncated)

    def leave(self, why: str = "") -> None:
        """Tell the world's client, if there is one, that the episode is over, and ``why`` its request has no reply."""
        if self.client is not None and self.end is None:
            with suppress(Exception, SystemExit):  # a world that fails at it fails again at its next reset
                self.client.leave(why)

    def _advance(self, observation: str, info: Info, terminated: bool, truncated: bool) -> None:
        """What follows a step: the end, or the next player's turn."""
        self.observation, self.info = observation, info
        if terminated or truncated:
            self.end = "terminated" if terminated else "truncated"
        else:
            self._show()

    def act_while_scripted(self) -> None:
        """Let agents without a model act, until it is a model's turn or the episode ends."""
        while self.end is None and self.to_move.model is None:
            self.act()

    def act(self) -> None:
        """Let the agent whose turn it is act. It must be one without a model.

        Raises ValueError where its answer is neither a string nor an ``AgentReply``.
        """
        assert self.to_move.agent is not None
        with no_exit("an agent", "act"):
            answer = self.to_move.agent.act(self.observation, self.info)
        if isinstance(answer, str):
            self.step(answer)
        elif isinstance(answer, AgentReply):
            self.step(answer.action, text=answer.reply, parsed=answer.valid)
        else:
            raise ValueError(f"the agent's act() returned {answer!r}"[:150] + "; expected an action, which is a string")

    def fork_point(self, turn: int, tokens: int = 0) -> ForkPoint:
        """The moment after ``turn`` turns, and after the first ``tokens`` of the next one's reply.

        Raises ValueError in a game of several players, for a turn that was not played yet, for the end of the episode,
        and where that reply has no token after them.
        """
        if len(self.seats) != 1:
            raise ValueError(f"only an episode of one player can be forked; this one has {len(self.seats)}")
        seat = self.to_move
        if not 0 <= turn <= len(seat.turns) or (turn == len(seat.turns) and self.end is not None):
            last = len(seat.turns) - (self.end is not None)
            raise ValueError(f"the episode cannot be forked after {turn} turns: expected 0 to {last}")
        size = len(seat.turns[turn].action_ids) if turn < len(seat.turns) else 0
        if tokens and not 0 < tokens < size:
            raise ValueError(
                f"the episode cannot be forked after {tokens} tokens of turn {turn}, whose reply has {size}: expected "
                f"0 to {max(size - 1, 0)}"
            )
        if turn < len(seat.turns):
            turns, observation = tuple(seat.turns[:turn]), seat.turns[turn].observation
            begun = seat.turns[turn].action_ids[:tokens]
            before = self.given, self.num_refused
            return ForkPoint(self.task, turns, observation, {}, None, NO_IDS, False, None, *before, begun)
        world, context = snapshots(self.env), seat.context.fork() if seat.context else None
        state = world.snapshot() if world else None
        turns = tuple(seat.turns)
        shown = (self.observation, self.info, context, seat.prompt, seat.continues)
        return ForkPoint(self.task, turns, *shown, state, self.given, self.num_refused)

    @classmethod
    def from_fork_point(cls, point: ForkPoint, env: TextEnv, job: Job, seed: int, seat: Seat) -> Episode:
        """A copy that continues from ``point``: by the environment's snapshot, or else by taking the turns again.

        Raises RuntimeError where the environment, given the same actions, shows another observation or ends.
        """
        world = snapshots(env)
        if point.world is None or world is None:
            episode = cls(env, job, seed, [seat])
            episode._take_again(point)
            return episode
        episode = cls.__new__(cls)
        episode._set_up(env, job, seed, [seat])
        episode.task, episode.given, episode.num_refused = point.task, point.given, point.num_refused
        with episode._timed():
            episode.env = restored(env, point.world)
        seat.turns, seat.observation, seat.begun = list(point.turns), point.observation, True
        seat.context = point.context.fork() if point.context else None
        seat.prompt, seat.continues = point.prompt, point.continues
        if seat.model is not None:
            seat.hold(point.info)
        episode.observation, episode.info, episode.to_move = point.observation, point.info, seat
        return episode

    def _take_again(self, point: ForkPoint) -> None:
        if point.num_refused:
            raise RuntimeError(
                "a request of this episode did not fit into the context and was refused: such an episode cannot be "
                "forked (raise agent.max_context_tokens, or use an algorithm without forks)"
            )
        for turn in point.turns:
            self._expect(turn.observation)
            self._count_again(turn)
            observation, _, terminated, truncated, info = step(self.env, turn.action, self.players)
            if terminated or truncated:
                raise RuntimeError(
                    "the environment did not repeat itself: given the same actions, it ended before the turn at which "
                    "the episode was forked"
                )
            self.to_move.turns.append(turn)
            self._advance(observation, info, False, False)
        self._expect(point.observation)

    def _count_again(self, turn: Turn) -> None:
        """Tell the world's client of a stored reply what it heard of it at first."""
        seat = self.to_move
        if self.client is None or seat.model is None:
            return
        chat, ids = seat.model.chat, turn.action_ids
        ended = len(ids) > 0 and int(ids[-1]) in chat.end_ids
        self.client.counted(len(seat.context_ids()), len(ids), ended or Wishes.of(self.info).end(chat.decode(ids)))

    def _expect(self, observation: str) -> None:
        if self.observation != observation:
            raise RuntimeError(
                "the environment did not repeat itself: given the same actions, it showed another observation, so the "
                "episode cannot be forked there"
            )

    def trajectories(
        self, end: End, reason: str = "", success: SuccessRule | None = None, fork: Fork | None = None
    ) -> list[Trajectory]:
        """One trajectory for each recorded seat, in the order of the seats.

        Where ``end`` is "error", success and score are None: the episode counts neither as success nor as failure.
        """
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
                last_anchor=self._anchor() if seat.turns and not seat.player else "",
                given=self.given,
                num_refused=self.num_refused,
                answer=self._answer() if not seat.player else "",
                last_state_key=state_key_of(self.info) if seat.turns and not seat.player else "",
                turnless_reward=seat.early_reward,
            )
            for seat in self.seats.values()
            if seat.recorded
        ]

    def _anchor(self) -> str:
        return anchor_of(self.info) or self.observation

    def _answer(self) -> str:
        found = self.info.get("answer") if gives_answers(self.env) else None
        return "" if found is None else str(found)

    def _success(self, seat: Seat, rule: SuccessRule) -> bool | None:
        if seat.player:  # a game that was cut short is not won
            return bool(self.info.get("successes", {}).get(seat.player, False))
        return rule.judge(self.info, seat.total_reward)

    def _score(self, seat: Seat) -> float | None:
        score = self.info.get("scores", {}).get(seat.player) if seat.player else self.info.get("score")
        return None if score is None else float(score)
