"""Takeovers: an episode of the learner up to a turn, and from there the expert's (DAgger, Ross et al. 2011).

An expert's own episodes show only states that the expert comes to. A takeover shows how it goes on from where the
learner got itself: the learner's actions are taken again in a fresh episode of the same task and seed, the expert is
told of each, and then it plays to the end.

A takeover is a ``Trajectory`` that is a fork of the learner's episode. Its turns before ``fork.turn`` are the
learner's, with the tokens that were sampled; the others are the expert's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from turnwise.agents.actions import written
from turnwise.agents.episode import Episode, SuccessRule
from turnwise.agents.jobs import Job
from turnwise.agents.seating import ModelAgent, Seat, Seating, TextEnv
from turnwise.cloning.demonstrations import NOT_LOST, ToldExpert, expert_for
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.interface import world_name
from turnwise.errors import with_place
from turnwise.models.engine import Reply
from turnwise.seeds import mix
from turnwise.trajectory import Fork, Trajectory, Turn

_TRIES = 3
"""Turns at which an episode is taken over, at most: each earlier than the one from which the expert did not win."""


@dataclass(frozen=True, slots=True)
class Taker:
    """Takes over episodes of the learner in ``env``. ``seed`` is the run's, with which they were played.

    ``agent`` is the learner: its chat and settings say how a turn becomes tokens.
    """

    env: TextEnv
    agent: ModelAgent
    config: WarmstartConfig
    seed: int
    rule: SuccessRule

    def take_over(
        self, job: Job, plays: Sequence[Trajectory], rng: np.random.Generator, attempt: int = 1
    ) -> list[Trajectory]:
        """The episode ``plays`` (a trajectory for each player) of a ``job``, taken over at a turn that ``rng`` draws.

        The learner's own attempt at the task is number 0, and the takeovers of its episode count from 1.

        Where the expert does not win from there, an earlier turn is tried. Returns a trajectory for each player who
        has a turn of the expert's. Raises ValueError where the world does not repeat itself, or the expert cannot go
        on.
        """
        made: list[Trajectory] = []
        job = replace(job, sample=attempt)
        cut = self._first_cut(job, plays, rng)
        for _ in range(_TRIES):
            replay = _Replay(self, job, plays)
            replay.follow(cut)
            made = replay.finish()
            if cut == 0 or any(map(is_won, made)):
                break
            cut = int(rng.integers(cut))
        return made

    def _first_cut(self, job: Job, plays: Sequence[Trajectory], rng: np.random.Generator) -> int:
        """A turn at which the expert disagrees, or else any; not the first where there is another.

        From the first turn on it would be a demonstration.
        """
        num = sum(len(play.turns) for play in plays)
        assert self.config.takeovers is not None
        if rng.random() < self.config.takeovers.disagreement_share:
            replay = _Replay(self, job, plays)
            replay.follow(num)
            if later := [turn for turn in replay.disagreed if turn]:
                return later[int(rng.integers(len(later)))]
        return int(rng.integers(1, num)) if num > 1 else 0


def is_won(episode: Trajectory) -> bool:
    """Whether an expert's episode is one to learn from, by the rule of demonstrations."""
    if episode.player:
        return (episode.score or 0.0) >= NOT_LOST
    return episode.end == "terminated" if episode.success is None else episode.success


class _Replay:
    """An episode of the learner that is played again, with an expert beside each player."""

    def __init__(self, taker: Taker, job: Job, plays: Sequence[Trajectory]) -> None:
        self._taker, self._parents = taker, {play.player: play for play in plays}
        self._left = {play.player: deque(play.turns) for play in plays}
        self._experts: dict[str, ToldExpert] = {}
        again = (job.sample,) if job.sample > 1 else ()
        self._expert_seed = mix("takeover", taker.seed, job.task.key, job.key, *again) >> 33
        self._turn = 0
        self.disagreed: list[int] = []
        """Turns of the learner at which the expert would have acted differently."""
        seats = Seating({"": taker.agent}).seats(taker.env, job, taker.seed)
        self._episode = Episode(taker.env, job, taker.seed, seats)

    def follow(self, num_turns: int) -> None:
        """Take the learner's first turns again."""
        while self._turn < num_turns:
            seat = self._episode.to_move
            left = self._left.get(seat.player)
            if self._episode.end is not None or not left or not self._has_come_to(left[0]):
                raise ValueError(
                    f"{world_name(self._taker.env)} does not repeat itself: given the same seed and actions, it showed "
                    f"something else at turn {self._turn + 1} of task {self._episode.task.index} of "
                    f"{self._episode.task.split!r}, so that no expert can take over an episode there: "
                    "warmstart.takeovers=null"
                )
            turn, wanted = left.popleft(), self._advised()
            if turn.action != wanted:
                self.disagreed.append(self._turn)
                self._experts[seat.player].overrule(turn.action)
            reply = Reply(-1, turn.action_ids, turn.logprobs, turn.entropies, True, turn.processing)
            self._episode.step(turn.action, reply, turn.reply, turn.valid)
            self._turn += 1

    def finish(self) -> list[Trajectory]:
        """Let the experts play on to the end. A trajectory for each player who has a turn of theirs."""
        taken = {player: len(seat.turns) for player, seat in self._episode.seats.items()}
        reason = ""
        while self._episode.end is None:
            if reason := self._no_room():
                break
            self._act(self._advised())
        made = self._episode.trajectories(self._episode.end or "truncated", reason, self._taker.rule)
        return [
            replace(
                episode,
                fork=Fork(self._parents[episode.player].episode, taken[episode.player]),
                policy=f"{self._taker.config.expert} expert",
            )
            for episode in made
            if len(episode.turns) > taken[episode.player]
        ]

    def _advised(self) -> str:
        """What the expert of the player whose turn it is would do."""
        player, episode, taker = self._episode.to_move.player, self._episode, self._taker
        try:
            if player not in self._experts:
                self._experts[player] = expert_for(taker.env, taker.config, player, self._expert_seed)
            return self._experts[player].act(episode.observation, episode.info)
        except Exception as error:  # an expert may be the user's: it may fail in any way
            raise ValueError(
                f"the {taker.config.expert} expert of {world_name(taker.env)} cannot take over an episode of task "
                f"{episode.task.index} of {episode.task.split!r}, in which {self._turn} turns were not its own "
                f"({with_place(error)}): mend its act(), or warmstart.takeovers=null"
            ) from error

    def _act(self, action: str) -> None:
        """Take the action that the expert has just advised, written as the learner would write it."""
        agent = self._taker.agent
        thought = self._experts[self._episode.to_move.player].thought()
        text = written(action, agent.config.action_format, agent.chat.dialect, thought)
        ids = agent.chat.reply(text)
        nothing = np.zeros(len(ids), np.float32)
        self._episode.step(action, Reply(-1, ids, nothing, nothing, True), text)

    def _has_come_to(self, turn: Turn) -> bool:
        """Whether the learner is shown what it was shown at ``turn``, with a fresh context where that began one."""
        seat = self._episode.to_move
        if not _shows(seat, turn) and self._taker.agent.config.on_overflow == "restart":
            _restart(seat)
        return _shows(seat, turn)

    def _no_room(self) -> str:
        """Why the player whose turn it is can say nothing more, or ""."""
        seat, config = self._episode.to_move, self._taker.agent.config
        if len(seat.turns) >= config.max_turns:
            return "max_turns"
        limit = config.max_context_tokens - config.max_reply_tokens
        if len(seat.context_ids()) > limit and config.on_overflow == "restart":
            _restart(seat)
        return "context" if len(seat.context_ids()) > limit else ""


def _shows(seat: Seat, turn: Turn) -> bool:
    return (
        seat.observation == turn.observation
        and seat.continues == turn.continues
        and np.array_equal(seat.prompt, turn.prompt_ids)
    )


def _restart(seat: Seat) -> None:
    assert seat.context is not None
    seat.prompt, seat.continues = seat.context.restart(), False
