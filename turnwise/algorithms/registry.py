"""Algorithms by name. One from outside is named ``module:recipe`` and needs no entry here."""

from __future__ import annotations

import difflib
import importlib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, cast

from pydantic import Field, create_model

from turnwise.algorithms import epo, grpo
from turnwise.algorithms.recipe import Recipe, RunInfo, Settings


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A configuration class and the function that composes its recipe."""

    name: str
    config: type[Settings]
    recipe: Callable[[Any, RunInfo], Recipe]


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm("grpo", grpo.GRPOConfig, grpo.recipe),
    "epo": Algorithm("epo", epo.EPOConfig, epo.recipe),
}

AlgorithmConfig = Annotated[grpo.GRPOConfig | epo.EPOConfig, Field(discriminator="type")]
"""The configurations of ``ALGORITHMS`` as a union keyed on ``type``, for a pydantic model's field."""


def resolve(name: str) -> Algorithm:
    """The algorithm of that name, or of ``module:recipe``; ValueError that names what was probably meant."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if ":" in name:
        return _imported(name)
    close = difflib.get_close_matches(name.lower(), ALGORITHMS, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(ALGORITHMS))}."
    raise ValueError(f"Unknown algorithm {name!r}. {hint} (One of your own: module:recipe)")


def build(config: Settings, run: RunInfo) -> Recipe:
    """The recipe of a configuration out of ``AlgorithmConfig``."""
    return resolve(str(getattr(config, "type", ""))).recipe(config, run)


@cache  # one class for one name: equal settings compare equal
def _imported(name: str) -> Algorithm:
    """``module:recipe``; the annotation of the function's first parameter gives the configuration class."""
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Algorithm {name!r} cannot be imported as module:recipe: {error}") from error
    hints = typing.get_type_hints(function) if callable(function) else {}
    config = next(iter(hints.values()), None)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise ValueError(
            f"Algorithm {name!r}: expected a function recipe(config: C, run: RunInfo) -> Recipe whose C is a "
            f"subclass of turnwise.algorithms.recipe.Settings; got {function!r}"
        )
    if "type" not in config.model_fields:  # so that a stored configuration says where its recipe is
        config = cast(type[Settings], create_model(config.__name__, __base__=config, type=(str, name)))
    return Algorithm(name, config, function)
