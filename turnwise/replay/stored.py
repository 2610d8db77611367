"""The episodes of a trajectory file, as a run that plays nothing learns from them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from turnwise.replay.store import TrajectoryReader
from turnwise.trajectory import Trajectory

FILE = "trajectories.jsonl.gz"


class StoredEpisodes:
    """What a file, or that of a run's folder, holds to learn from; read when it is first asked for.

    ``vocabulary`` is how many tokens the model knows (None: unknown). Episodes that failed, those that were only looked
    at, and those without an action token are left out. The file may be gone for whoever only reads a configuration.
    """

    def __init__(self, place: str, vocabulary: int | None) -> None:
        self.place, self.vocabulary = Path(place), vocabulary

    @property
    def path(self) -> Path:
        """The file."""
        return self.place / FILE if self.place.is_dir() else self.place

    def check(self) -> None:
        """Raise ValueError where the file is not there."""
        if not self.path.is_file():
            raise ValueError(
                f"episodes={self.place}: {self.path} is not there; expected the folder of a run, or its {FILE}"
            )

    @cached_property
    def episodes(self) -> list[Trajectory]:
        """The episodes, from the states on that they started from.

        Raises ValueError where the file is not there, where it has none, or where they are of another tokenizer.
        """
        self.check()
        whole = [t for t in TrajectoryReader(self.path) if t.end != "error" and not t.only_looked_at]
        found = [own for own in (t.own_part() for t in whole) if own.num_action_tokens]
        if not found:
            raise ValueError(f"{self.path} holds no sound episode with a reply of a model: there is nothing to learn")
        largest = max(int(ids.max()) for t in found for turn in t.turns if len(ids := turn.action_ids))
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise ValueError(
                f"{self.path} holds token {largest}, and the model knows {self.vocabulary} tokens: these episodes are "
                "of another tokenizer. Take those of a run that began with the same model"
            )
        return found
