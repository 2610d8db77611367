"""Stored episodes played again in their environment, and compared with what was stored.

The world is made from the run's configuration and reset to the stored task with the stored seed. Every stored seat
takes its stored actions; a game's scripted opponents are seated again with the run's seeds. What a model did at a seat
that is not stored is lost, and such an episode cannot be played again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnwise.agents.actions import ParsedAction, parse_action
from turnwise.agents.dialogue import asked, offered
from turnwise.agents.episode import Episode, SuccessRule
from turnwise.agents.forms import stored_form
from turnwise.agents.jobs import Job
from turnwise.agents.scripted import play_out, scripted
from turnwise.agents.seating import AgentReply, CutShortError, Scripted, Seating
from turnwise.agents.toolcalls import DIALECTS, Tools
from turnwise.config.sections import GameConfig
from turnwise.envs.interface import HasPlayers, Info, capability
from turnwise.envs.tasks import close
from turnwise.errors import with_place
from turnwise.runs.directory import RunDirectory
from turnwise.runs.exporting import chat_of
from turnwise.runs.trajectories import Selection, Stored, episode_of, find, run_of, select
from turnwise.trajectory import Trajectory, Turn

_TURN = ("observation", "request", "action", "valid", "reward", "anchor")
_EPISODE = ("end", "end_reason", "success", "score", "turnless_reward")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of an episode. ``turn`` counts the player's own turns from 0; None: the whole episode."""

    player: str
    turn: int | None
    what: str
    stored: Any
    played: Any

    def __str__(self) -> str:
        where = "the episode" if self.turn is None else f"turn {self.turn}"
        seat = f" of {self.player}" if self.player else ""
        return f"{where}{seat}: {self.what} was {self.stored!r}, is now {self.played!r}"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of playing an episode again. ``difference`` is None where nothing differs.

    ``partial``: the world had failed in the stored episode, so only the turns before that are compared.
    """

    episode: str
    num_turns: int
    difference: Difference | None = None
    partial: bool = False


class NotReproducibleError(ValueError):
    """The stored part of an episode does not suffice to play it again."""


@dataclass(frozen=True, slots=True)
class _StoredJob(Job):
    stored_seed: int = 0

    def env_seed(self, seed: int) -> int:
        return self.stored_seed


class _StoredPlayer:
    """A player that repeats the actions of a stored trajectory.

    Where the world ended the stored episode, the world ends this one too. Where something else cut it short, the
    player cuts this one after its last action, for the same reason.
    """

    def __init__(self, trajectory: Trajectory, read: Callable[[Turn, Tools | None], ParsedAction]) -> None:
        in_roles = any(turn.request for turn in trajectory.turns)
        tools: list[Any] = offered(trajectory.turns) if in_roles else [None] * len(trajectory.turns)
        self._turns, self._read = iter(zip(trajectory.turns, tools, strict=True)), read
        by_world = trajectory.end == "terminated" or trajectory.end_reason == "turns"
        self._reason = "it goes on" if by_world else trajectory.end_reason

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> AgentReply:
        turn, tools = next(self._turns, (None, None))
        if turn is None:
            raise CutShortError(self._reason)
        return AgentReply(turn.reply, turn.action, self._read(turn, tools).valid)


class Reproducer:
    """Plays stored episodes of a run again. A context manager: leaving it closes the world."""

    def __init__(self, run: RunDirectory) -> None:
        self.config = run.config()
        self._style = self.config.agent.action_format
        self._dialect = chat_of(run.path)[0].dialect if self._style == "calls" else DIALECTS["hermes"]
        self._env = self.config.env.make()

    def __enter__(self) -> Reproducer:
        return self

    def __exit__(self, *_: object) -> None:
        close(self._env)

    def play(self, stored: Sequence[Stored]) -> Reproduction:
        """Play one episode again, of which ``stored`` holds all trajectories.

        Raises NotReproducibleError where they do not suffice.
        """
        trajectories = {s.trajectory.player: s.trajectory.ungraded() for s in stored}
        first = stored[0].trajectory
        if not any(t.turns for t in trajectories.values()) and first.end == "error":
            raise NotReproducibleError("the world had failed before the first turn")
        seating, learner_seat = self._seating(trajectories)
        job = _StoredJob(first.task, first.sample, stored[0].update, learner_seat, stored_seed=first.seed)
        played = self._played(job, seating)
        difference = _first_difference(trajectories, played) if isinstance(played, dict) else played
        num_turns = sum(len(t.turns) for t in trajectories.values())
        return Reproduction(episode_of(first), num_turns, difference, partial=first.end == "error")

    def _played(self, job: Job, seating: Seating) -> dict[str, Trajectory] | Difference:
        """The trajectories of the episode as it goes now, by player; a Difference where its world cannot be reset.

        A world that raises is closed, and a new one is made.
        """
        episode = None
        try:
            seats = seating.seats(self._env, job, self.config.seed)
            episode = Episode(self._env, job, self.config.seed, seats)
            end, reason = play_out(episode)
        except (Exception, SystemExit) as error:  # whatever a third party's world raises
            end, reason = "error", with_place(error)[:400]
            close(self._env)
            self._env = self.config.env.make()
        if episode is None:
            return Difference("", None, "reset", "an observation", reason)
        rule = SuccessRule(self.config.env.success_threshold)
        return {t.player: t for t in episode.trajectories(end, reason, rule)}

    def _read(self, turn: Turn, tools: Tools | None) -> ParsedAction:
        """A stored reply, read as it was when it came: with the tools and in the form of its request."""
        form = stored_form(turn, asked(turn), self._dialect)
        return parse_action(turn.reply, self._style, self._dialect, tools, form)

    def _seating(self, trajectories: dict[str, Trajectory]) -> tuple[Seating, int]:
        """Stored players at their seats and the run's opponents at the others; and the number of a stored seat."""
        stored = {
            player: Scripted("stored", lambda env, seed, t=t: _StoredPlayer(t, self._read))  # type: ignore[misc]
            for player, t in trajectories.items()
        }
        game = capability(self._env, HasPlayers)
        missing = [player for player in game.players if player not in stored] if game else []
        if not missing:
            return Seating(stored), 0
        assert game is not None
        opponent = (self.config.game or GameConfig()).opponent
        other = scripted(opponent)
        if other is None:
            raise NotReproducibleError(f"what {opponent} did as {', '.join(missing)} is not stored")
        learner_seat = next(number for number, player in enumerate(game.players) if player in stored)
        return Seating(stored, {"": other}), learner_seat


def _first_difference(stored: dict[str, Trajectory], played: dict[str, Trajectory]) -> Difference | None:
    """Compare turn by turn over the players, then how the episode ended.

    Where the world had failed in the stored episode, the end is not compared.
    """
    for number in range(max(len(t.turns) for t in stored.values())):
        for player, then in stored.items():
            now = played[player]
            if number >= len(then.turns):
                continue
            if number >= len(now.turns):
                return Difference(player, number, "turn", then.turns[number].action, f"{now.end}: {now.end_reason}")
            if found := _differing(player, number, _TURN, then.turns[number], now.turns[number]):
                return found
    for player, then in stored.items():
        if then.end != "error" and (found := _differing(player, None, _EPISODE, then, played[player])):
            return found
    return None


def _differing(
    player: str, turn: int | None, names: Sequence[str], stored: object, played: object
) -> Difference | None:
    for name in names:
        then, now = getattr(stored, name), getattr(played, name)
        if then != now:
            return Difference(player, turn, name, then, now)
    return None


@dataclass(slots=True)
class Tally:
    """Counts over many episodes. ``differing`` holds the first ten that differ; ``refused`` counts, by reason, those
    that could not be played again.
    """

    same: int = 0
    partial: int = 0
    different: int = 0
    num_turns: int = 0
    differing: list[Reproduction] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, found: Reproduction) -> None:
        self.num_turns += found.num_turns
        if found.difference is not None:
            self.different += 1
            if len(self.differing) < 10:
                self.differing.append(found)
        elif found.partial:
            self.partial += 1
        else:
            self.same += 1

    def summary(self) -> str:
        total = self.same + self.partial + self.different
        parts = [f"{total:,} episodes with {self.num_turns:,} turns played again: {self.same:,} the same"]
        parts += [f"{self.partial:,} the same as far as their world had worked"] if self.partial else []
        parts += [f"{self.different:,} different"]
        parts += [f"{num:,} cannot be played again: {reason}" for reason, num in self.refused.items()]
        return "; ".join(parts)


def episodes(target: str | Path) -> Iterator[list[Stored]]:
    """The stored trajectories of each episode, in the order of the file."""
    update, groups = -1, dict[str, list[Stored]]()
    for stored in select(target, Selection()):
        if stored.update != update:
            yield from groups.values()
            update, groups = stored.update, {}
        groups.setdefault(episode_of(stored.trajectory), []).append(stored)
    yield from groups.values()


def reproduce(target: str | Path, episode: str) -> Reproduction:
    """Play one episode of a run again. ``episode`` is its name or the name of one of its seats' trajectories.

    Raises ValueError where there is no such episode.
    """
    named = find(target, episode)
    with Reproducer(run_of(target)) as reproducer:
        return reproducer.play(find(target, episode_of(named[0].trajectory)))


def reproduce_many(target: str | Path, num: int | None = None, seed: int = 0) -> Tally:
    """Play all episodes of a run again, or ``num`` of them, drawn with ``seed``.

    Raises ValueError where none can be played again.
    """
    chosen = None
    if num is not None:
        total = sum(1 for _ in episodes(target))
        chosen = set(random.Random(seed).sample(range(total), min(num, total)))
    tally = Tally()
    with Reproducer(run_of(target)) as reproducer:
        for number, stored in enumerate(episodes(target)):
            if chosen is None or number in chosen:
                try:
                    tally.add(reproducer.play(stored))
                except NotReproducibleError as error:
                    tally.refused[str(error)] += 1
    if not tally.same + tally.partial + tally.different:
        if tally.refused:
            raise NotReproducibleError(f"no episode of {target} can be played again: {next(iter(tally.refused))}")
        raise ValueError(f"{target} has no episodes to play again")
    return tally
