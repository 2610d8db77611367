"""Settings by their dotted names, and error messages for wrong ones, with the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from turnwise.learning.settings import Settings

DEFAULT_ALGORITHM = "epo"

MOVED = {
    "reward_scale": "rewards are the run's. Set rewards.scale (1 by default: a success is worth 1)",
    "invalid_action_penalty": "rewards are the run's. Set rewards.invalid_action_penalty, a share of a success "
    "(0.1 of a success worth 10 is 0.01 now)",
    "rollout.engines": "processes that sample play whole episodes now. Set rollout.shards, or leave it out",
}
"""Settings of earlier versions, and what takes their place."""


def names_of(place: Iterable[Any]) -> list[str]:
    """The place of one of pydantic's problems as names of settings; the kind of model is left out."""
    parts = [str(part) for part in place]
    return [p for above, p in pairwise(["", *parts]) if above != "model" or p not in ("scratch", "pretrained")]


def explained(problem: Any, whole: type[BaseModel], algorithm: object = None) -> str:
    """One of pydantic's problems as a sentence.

    ``whole`` is the class of the whole configuration; ``algorithm`` is the value of its algorithm section, if any.
    """
    shown = ".".join(names_of(problem["loc"]))
    if problem["type"] == "extra_forbidden":
        if moved := MOVED.get(shown.rpartition(".")[2] if shown.startswith("algorithm") else shown):
            return f"{shown} has moved: {moved}"
        return f"Unknown setting {shown!r}.{_nearest(shown, whole, algorithm)}"
    if problem["type"] == "model_type":
        return f"{shown} is a section of settings, {shown}.NAME=VALUE; got {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "union_tag_invalid", "union_tag_not_found"):
        return f"{shown}: {message}" if shown else message
    return f"{shown}: {message}; got {problem['input']!r}"


def _nearest(wrong: str, whole: type[BaseModel], algorithm: object) -> str:
    """A hint: the same name in another section, else the nearest in this section, else all names of this section."""
    names = [name for name, _ in settings_of(whole)] + _algorithm_settings(algorithm)
    section, _, leaf = wrong.rpartition(".")
    elsewhere = [name for name in names if name.rpartition(".")[2] == leaf and name != wrong]
    here = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section and name != wrong}
    near = [here[found] for found in difflib.get_close_matches(leaf, here, n=1, cutoff=0.6)]
    if near or elsewhere:
        return f" Did you mean {(elsewhere or near)[0]!r}?"
    return f" Known here: {', '.join(here)}." if here else ""


def _algorithm_settings(given: object) -> list[str]:
    """Dotted names of the settings of an algorithm and its bases; ``given`` is the algorithm section."""
    if given is None:
        return []
    from turnwise.algorithms.registry import resolve  # here: an algorithm brings torch

    if isinstance(given, Mapping):
        given = {"type": DEFAULT_ALGORITHM, **given}
    found: list[str] = []
    prefix = "algorithm."
    while isinstance(given, Mapping | str | Settings):
        plain = (
            given.model_dump() if isinstance(given, Settings) else {"type": given} if isinstance(given, str) else given
        )
        try:
            section = resolve(str(plain.get("type"))).config
        except ValueError:
            break
        found += [name for name, _ in settings_of(section, prefix)]
        base = section.model_fields.get("base")
        given, prefix = plain.get("base", base.default if base else None), f"{prefix}base."
        if isinstance(given, Mapping) and "type" not in given and base is not None:
            given = {**given, "type": getattr(base.default, "type", "grpo")}
    return found


def settings_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of every setting below a configuration class."""
    for name, info in section.model_fields.items():
        yield f"{prefix}{name}", info
        for candidate in dict.fromkeys((info.annotation, *get_args(info.annotation), type(info.default))):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and candidate is not Settings:
                yield from settings_of(candidate, f"{prefix}{name}.")
