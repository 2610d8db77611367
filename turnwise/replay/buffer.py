"""TrajectoryBuffer: the one buffer that every algorithm trains from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from turnwise.replay.codec import from_record, to_record
from turnwise.trajectory import Group, Task

TurnRewards = tuple[tuple[float, ...], tuple[float, ...]]
"""A trajectory's shaped rewards, turn by turn: what it earned, and what each turn alone answers for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A group with the update that collected it and the stream that it belongs to.

    ``rewards`` are those of its trajectories as they were shaped then, ``advantages`` their mean ones; None where they
    are not kept.
    """

    group: Group
    update: int
    stream: str
    rewards: tuple[TurnRewards, ...] | None = None
    advantages: tuple[float, ...] | None = None

    @property
    def policy_version(self) -> int:
        """The oldest policy that sampled any of the group's trajectories."""
        return min((t.policy_version for t in self.group.trajectories), default=0)


class TrajectoryBuffer:
    """Groups of trajectories with age, policy version and stream, oldest first.

    ``max_age`` counts updates: with 0, what is not of the current update is dropped by ``prune``.
    """

    def __init__(self, max_age: int = 0) -> None:
        if max_age < 0:
            raise ValueError(f"max_age counts updates and cannot be negative; got {max_age}")
        self.max_age = max_age
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, groups: Iterable[Group], update: int, stream: str = "fresh") -> None:
        """Keep groups collected in ``update``, without what no part is to learn from.

        These are the attempts that were only looked at, and the turns before the stored state that an episode started
        from: others played them.
        """
        for group in groups:
            members = tuple(t.own_part() for t in group.trajectories if not t.only_looked_at)
            if members:
                self._entries.append(Entry(replace(group, trajectories=members), update, stream))

    def fresh(self, update: int) -> tuple[Group, ...]:
        """The groups collected in ``update``, in the order of their arrival."""
        return tuple(e.group for e in self._entries if e.update == update and e.stream == "fresh")

    def entries(self, stream: str | None = None) -> tuple[Entry, ...]:
        """Everything held, or one stream of it."""
        return tuple(e for e in self._entries if stream is None or e.stream == stream)

    def keep(
        self,
        group: Group,
        update: int,
        stream: str,
        rewards: tuple[TurnRewards, ...],
        advantages: tuple[float, ...] | None = None,
    ) -> None:
        """Keep a group with the shaped rewards of its collection (and mean advantages), one for each trajectory."""
        if not len(rewards) == len(advantages or rewards) == len(group.trajectories):
            raise ValueError(
                f"{len(group.trajectories)} trajectories need as many reward rows and advantages; got {len(rewards)} "
                f"and {len(advantages or rewards)}"
            )
        self._entries.append(Entry(group, update, stream, rewards, advantages))

    def retain(self, wanted: Callable[[Entry], bool]) -> None:
        """Drop every entry that is not wanted."""
        self._entries = [entry for entry in self._entries if wanted(entry)]

    def prune(self, update: int) -> None:
        """Drop what is older than ``max_age`` as seen from ``update``."""
        self._entries = [e for e in self._entries if update - e.update <= self.max_age]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able, lossless."""
        return {
            "entries": [
                {
                    "update": e.update,
                    "stream": e.stream,
                    "task": asdict(e.group.task),
                    "trajectories": [to_record(t) for t in e.group.trajectories],
                    "rewards": e.rewards,
                    "advantages": e.advantages,
                }
                for e in self._entries
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave, in place of what is held."""
        entries = []
        for entry in state["entries"]:
            trajectories = tuple(from_record(record) for record in entry["trajectories"])
            group = Group(Task(**entry["task"]), trajectories)
            kept = entry.get("rewards")
            rewards = None if kept is None else tuple((tuple(earned), tuple(own)) for earned, own in kept)
            credit = entry.get("advantages")
            advantages = None if credit is None else tuple(credit)
            entries.append(Entry(group, int(entry["update"]), str(entry["stream"]), rewards, advantages))
        self._entries = entries
