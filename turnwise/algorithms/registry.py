"""Algorithms by name, and what there is to know about each. One from outside is named ``module:recipe``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, cast

from pydantic import create_model

from turnwise.algorithms import (
    aepo,
    arpo,
    clip_cov,
    dapo,
    drbot,
    drgrpo,
    empg,
    epo,
    gigpo,
    grpo,
    gspo,
    kl_cov,
    opo,
    ppo,
    reinforce_pp,
    rloo,
    spear,
)
from turnwise.algorithms.composition import AnyAlgorithm
from turnwise.learning.recipe import About, Recipe
from turnwise.learning.settings import RunInfo, Settings

AlgorithmConfig = AnyAlgorithm
"""The settings of any algorithm, told apart by ``type``, for a pydantic model's field."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A configuration class and the function that composes its recipe."""

    name: str
    config: type[Settings]
    recipe: Callable[[Any, RunInfo], Recipe]

    @property
    def is_modifier(self) -> bool:
        """Whether it adds to another algorithm, its ``base``."""
        return "base" in self.config.model_fields


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its dotted name, type, default (None too where there is none) and meaning, units included.

    The default of a base is its name; its own settings follow, as the algorithm has them.
    """

    name: str
    type: str
    default: object
    meaning: str


@dataclass(frozen=True, slots=True)
class Description:
    """What ``turnwise algorithms NAME`` shows. ``summary`` is the first paragraph of ``text``, the recipe's module
    docstring, ``equations`` its indented lines; ``about`` is None where an algorithm from outside has none.
    """

    name: str
    is_modifier: bool
    summary: str
    equations: str
    text: str
    about: About | None
    settings: tuple[Setting, ...]


def _built_in(*modules: ModuleType) -> dict[str, Algorithm]:
    named = {module.__name__.rpartition(".")[2]: module for module in modules}
    return {name: _algorithm(name, module.recipe) for name, module in named.items()}


def resolve(name: str) -> Algorithm:
    """The algorithm of that name, or of ``module:recipe``; ValueError that names what was probably meant."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if ":" in name:
        return _imported(name)
    close = difflib.get_close_matches(name.lower(), ALGORITHMS, n=len(ALGORITHMS), cutoff=0.5)
    close.sort(key=lambda known: sorted(known) != sorted(name.lower()))  # swapped letters first
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(ALGORITHMS))}."
    raise ValueError(f"Unknown algorithm {name!r}. {hint} (One of your own: module:recipe)")


def build(config: Settings, run: RunInfo) -> Recipe:
    """The recipe of a configuration out of ``AlgorithmConfig``."""
    return resolve(str(getattr(config, "type", ""))).recipe(config, run)


def describe(name: str) -> Description:
    """All about an algorithm; ValueError for a name that is none."""
    algorithm = resolve(name)
    module = sys.modules[algorithm.recipe.__module__]
    text = inspect.cleandoc(module.__doc__ or algorithm.recipe.__doc__ or "")
    lines = [line if line.startswith("    ") else "" for line in text.splitlines()]
    return Description(
        name=name,
        is_modifier=algorithm.is_modifier,
        summary=" ".join(text.partition("\n\n")[0].split()),
        equations=textwrap.dedent("\n".join(lines)).strip("\n"),
        text=text,
        about=getattr(module, "ABOUT", None),
        settings=tuple(_settings(algorithm.config)),
    )


def _settings(config: type[Settings], prefix: str = "", default: Settings | None = None) -> Iterator[Setting]:
    """The settings of a section and of those in it, with what they are where ``default`` is the section's own default.

    A section that is off by default is listed with the defaults that it has where it is on.
    """
    for name, field in config.model_fields.items():
        if name == "type" and default is None:
            continue
        value = getattr(default, name) if default is not None else None if field.is_required() else field.default
        kind = field.annotation
        shown = kind.__name__ if isinstance(kind, type) else re.sub(r"(\w+\.)+", "", str(kind))
        if isinstance(value, Settings):
            yield Setting(prefix + name, shown, getattr(value, "type", "set"), field.description or "")
            yield from _settings(type(value), f"{prefix}{name}.", value)
            continue
        if name != "type":
            yield Setting(prefix + name, shown, value, field.description or "")
        for inner in (kind, *typing.get_args(kind)):
            if isinstance(inner, type) and issubclass(inner, Settings) and inner is not Settings:
                yield from _settings(inner, f"{prefix}{name}.")


def base_chain(config: Settings) -> str:
    """The algorithm and what it builds on, such as ``spear on drbot on drgrpo``."""
    name, base = str(getattr(config, "type", type(config).__name__)), getattr(config, "base", None)
    return f"{name} on {base_chain(base)}" if isinstance(base, Settings) else name


def _algorithm(name: str, function: Any) -> Algorithm:
    """The annotation of the function's first parameter gives the configuration class."""
    hints = typing.get_type_hints(function) if callable(function) else {}
    config = next(iter(hints.values()), None)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise ValueError(
            f"Algorithm {name!r}: expected a function recipe(config: C, run: RunInfo) -> Recipe whose C is a "
            f"subclass of turnwise.learning.settings.Settings; got {function!r}"
        )
    # So that a stored configuration says where its recipe is, also where the class extends a built-in one.
    if ":" in name or "type" not in config.model_fields:
        config = cast(type[Settings], create_model(config.__name__, __base__=config, type=(str, name)))
    return Algorithm(name, config, function)


@cache  # one class for one name: equal settings compare equal
def _imported(name: str) -> Algorithm:
    """``module:recipe``."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise ValueError(f"Algorithm {name!r} is not of the form module:recipe, such as my_package.brisk:recipe")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Algorithm {name!r} cannot be imported as module:recipe: {error}") from error
    return _algorithm(name, function)


ALGORITHMS: dict[str, Algorithm] = _built_in(
    grpo, drgrpo, dapo, gspo, rloo, opo, reinforce_pp, ppo, gigpo, epo, empg, clip_cov, kl_cov, drbot, spear, arpo, aepo
)
"""Every algorithm that comes with turnwise, bases first."""
