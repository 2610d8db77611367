"""The episodes of a trajectory file, as a run that plays nothing learns from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.replay.codec import to_record
from turnwise.replay.store import TrajectoryReader
from turnwise.trajectory import Trajectory

FILE = "trajectories.jsonl.gz"


def whole_path(place: str) -> str:
    """The same place from any folder: ``~`` and what is relative to the present folder written out."""
    return str(Path(place).expanduser().absolute())


class StoredEpisodes:
    """What a file, or that of a run's folder, holds to learn from; read when it is first asked for.

    ``vocabulary`` is how many tokens the model knows (None: unknown). Episodes that failed, those that were only looked
    at, and those without an action token are left out. The file may be gone for whoever only reads a configuration.
    """

    def __init__(self, place: str, vocabulary: int | None) -> None:
        self.place, self.vocabulary = Path(place), vocabulary
        self._known: tuple[int, str] | None = None  # how many episodes a run learns from, and their digest
        self._read: list[Trajectory] = []

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

    @property
    def episodes(self) -> list[Trajectory]:
        """The episodes, from the states on that they started from: those that ``load`` told of, or all of now.

        Raises ValueError where the file is not there, where it has none, where they are of another tokenizer, and where
        it does not begin with those that it began with.
        """
        if not self._read:
            self.check()
            found = self._sound(None if self._known is None else self._known[0])
            self._check_tokens(found)
            self._known = self._same(found)
            self._read = found
        return self._read

    def state(self) -> dict[str, Any]:
        """What tells the episodes that are learned from; {} where none were asked for."""
        return {} if self._known is None else {"episodes": self._known[0], "digest": self._known[1]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Learn from the episodes of then: a file may have grown since."""
        known = (int(state["episodes"]), str(state["digest"])) if state else self._known
        if known != self._known:
            self._known, self._read = known, []

    def _sound(self, number: int | None) -> list[Trajectory]:
        """The first episodes of the file that can be learned from."""
        whole = (t for t in TrajectoryReader(self.path) if t.end != "error" and not t.only_looked_at)
        found = list(islice((own for own in (t.own_part() for t in whole) if own.num_action_tokens), number))
        if not found:
            raise ValueError(f"{self.path} holds no sound episode with a reply of a model: there is nothing to learn")
        return found

    def _same(self, found: Sequence[Trajectory]) -> tuple[int, str]:
        """Their number and digest. Raises ValueError where these are not the known ones."""
        digest = hashlib.sha256()
        for trajectory in found:
            digest.update(json.dumps(to_record(trajectory), sort_keys=True).encode())
        made = len(found), digest.hexdigest()[:16]
        if self._known not in (None, made):
            raise ValueError(
                f"{self.path} no longer begins with the {self._known[0]} episodes that this run learns from: put the "
                "earlier file back, or begin a new run"
            )
        return made

    def _check_tokens(self, found: Sequence[Trajectory]) -> None:
        """Raise ValueError for a token that the model does not know, in prompts, replies and what was allowed."""
        for turn in (turn for t in found for turn in t.turns):
            allowed = () if turn.processing is None else (turn.processing.ids,)
            ids = np.concatenate([turn.prompt_ids, turn.action_ids, *allowed])
            wrong = ids[(ids < 0) | (ids >= (math.inf if self.vocabulary is None else self.vocabulary))]
            if len(wrong):
                known = "" if self.vocabulary is None else f", and the model knows {self.vocabulary} tokens"
                raise ValueError(
                    f"{self.path} holds token {wrong[0]}{known}: these episodes are of another tokenizer. Take those "
                    "of a run that began with the same model"
                )
