"""Policies whose states are steered, as their agent's settings say; and vectors that are fitted to stored episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turnwise.agents.decoding import STEERING_FILE, DecodingConfig
from turnwise.models.policy import Policy
from turnwise.models.steering import Steering, check_layer, fitted, states_at
from turnwise.runs.checkpoints import write_bytes
from turnwise.trajectory import Trajectory, Turn


def steer(policy: Policy, decoding: DecodingConfig) -> None:
    """Have a policy steered as ``agent.decoding.steering`` says, or not at all.

    Raises ValueError where the file is no steering vector, or of another model.
    """
    found = decoding.steering
    policy.steer(None if found is None else Steering.read(found.file).shift(found.strength))


def keep_vector(decoding: DecodingConfig, folder: Path) -> None:
    """Put a copy of the vector, if there is one, into a run's or a model's folder: a whole one or none.

    Raises ValueError as ``steer``.
    """
    if decoding.steering is not None:
        file = Path(decoding.steering.file).expanduser()
        Steering.read(file)
        write_bytes(folder / STEERING_FILE, file.read_bytes())


def fit(model: Any, episodes: Iterable[Trajectory], layer: int | None = None, most: int = 512) -> Steering:
    """The vector of a model (of the decoder's kinds) after a layer, by default the middle one.

    It is fitted to the first ``most`` contexts of the episodes. Attempts often share one: its entropy is their mean.
    Raises ValueError where a layer cannot be steered, and where all actions are equally uncertain.
    """
    layer = (model.config.num_hidden_layers - 1) // 2 if layer is None else layer
    check_layer(model.config, layer)
    seen: dict[bytes, _Context] = {}
    for ids, places, entropies in _rows(episodes):
        keys = [ids[: place + 1].tobytes() for place in places]
        fresh = [(key, place) for key, place in zip(keys, places, strict=True) if key not in seen][: most - len(seen)]
        if fresh:
            row = torch.from_numpy(ids[: fresh[-1][1] + 1].astype(np.int64)).to(model.device)
            states = states_at(model, row, [place for _, place in fresh], layer)
            seen |= {key: _Context(state) for (key, _), state in zip(fresh, states.cpu(), strict=True)}
        for key, entropy in zip(keys, entropies, strict=True):
            if key in seen:
                seen[key].entropies.append(entropy)
        if len(seen) == most:
            break
    if not seen:
        raise ValueError("there is no reply of this model to fit a steering vector to: play or train first")
    means = [float(np.mean(context.entropies)) for context in seen.values()]
    return fitted(torch.stack([context.state for context in seen.values()]), torch.tensor(means), layer)


@dataclass(slots=True)
class _Context:
    """The state [h] at a context's last token, and the entropies of the actions that were drawn there."""

    state: torch.Tensor
    entropies: list[float] = field(default_factory=list)


def _rows(episodes: Iterable[Trajectory]) -> Iterator[tuple[np.ndarray[Any, Any], list[int], list[float]]]:
    """Tokens of each unbroken context, and of each reply in it: the place before it, and its action's entropy."""
    for episode in episodes:
        ids, places, entropies = list[int](), list[int](), list[float]()
        for turn in episode.turns:
            if not turn.continues and ids:
                yield np.array(ids, np.int32), places, entropies
                ids, places, entropies = [], [], []
            ids += turn.prompt_ids.tolist()
            places.append(len(ids) - 1)
            entropies.append(action_entropy(turn))
            ids += turn.action_ids.tolist()
        if ids:
            yield np.array(ids, np.int32), places, entropies


def action_entropy(turn: Turn) -> float:
    """The sum of the entropies of an action's tokens, nats: that of its distribution, estimated by the one drawn."""
    return float(turn.entropies[turn.thought_tokens :].sum())


def check_new(file: Path) -> None:
    """Raise ValueError where there is such a file, or none can be."""
    if file.exists():
        raise ValueError(f"{file} exists: give the name of a new file")
    if (part := next((part for part in file.parents if part.exists()), None)) is not None and not part.is_dir():
        raise ValueError(f"{file} cannot be made, since {part} is no folder: give the name of a new file in a folder")


def write(steering: Steering, file: Path) -> None:
    """Write a vector to a new file. Raises ValueError as ``check_new``."""
    check_new(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    steering.save(file)
