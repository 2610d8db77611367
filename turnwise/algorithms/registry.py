"""Algorithms by name.

The algorithm ``grpo`` is the function ``recipe`` of the module ``turnwise.algorithms.grpo``, and so on. A module is
imported when its name is looked up, and not before. An algorithm from outside is named ``module:recipe``.
"""

from __future__ import annotations

import difflib
import importlib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from pydantic import create_model

from turnwise.learning.settings import RunInfo, Settings

if TYPE_CHECKING:  # so that a name is looked up without torch
    from turnwise.learning.recipe import Recipe

ALGORITHMS = (
    *("grpo", "drgrpo", "dapo", "gspo", "rloo", "opo", "reinforce_pp", "ppo", "gigpo", "hapo", "distill"),
    *("maxrl", "bnpo", "canon", "riskpo", "rae", "dpo", "cpl", "hgpo", "g2po", "graphgpo"),
    *("copo", "d3s", "pear", "funrl", "igpo", "ares", "seed_grpo", "empo"),
    *("epo", "empg", "clip_cov", "kl_cov", "drbot", "spear", "arpo", "aepo", "aepo_arbitrary"),
    *("counterfactual", "cure", "etmr", "drpo", "oreo", "weighted_cloning"),
    *("cispo", "dppo", "bapo", "forking", "steer", "entropy_advantage", "ear", "sac", "tea", "echo"),
    *("lp_reg", "siren", "capo"),
)
"""The names of the algorithms that come with turnwise, bases first: each is a module of this package."""


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


def resolve(name: str) -> Algorithm:
    """The algorithm of that name, or of ``module:recipe``; ValueError that names what was probably meant."""
    if name in ALGORITHMS:
        return _built_in(name)
    if ":" in name:
        return _imported(name)
    close = difflib.get_close_matches(name.lower(), ALGORITHMS, n=len(ALGORITHMS), cutoff=0.5)
    close.sort(key=lambda known: sorted(known) != sorted(name.lower()))  # swapped letters first
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(ALGORITHMS))}."
    raise ValueError(f"Unknown algorithm {name!r}. {hint} (One of your own: module:recipe)")


def build(config: Settings, run: RunInfo) -> Recipe:
    """The recipe of an algorithm's settings, ready for episodes that are played ahead where the run has them.

    Raises ValueError for an algorithm that makes none or cannot be played ahead, and for votes beside what asks for
    labels.
    """
    from turnwise.learning.recipe import Recipe  # here: a recipe brings torch

    name = str(getattr(config, "type", ""))
    made = resolve(name).recipe(config, run)
    if not isinstance(made, Recipe):
        raise ValueError(f"Algorithm {name!r}: recipe() returned {made!r}; expected a turnwise.learning.recipe.Recipe")
    if made.compares_answers:
        from turnwise.algorithms.votes import without_labels

        made = without_labels(made)
    if not run.ahead:
        return made
    from turnwise.algorithms.stale import ready_for_stale

    return ready_for_stale(made, run, config)


def base_chain(config: Settings) -> str:
    """The algorithm and what it builds on, such as ``spear on drbot on drgrpo``."""
    name, base = str(getattr(config, "type", type(config).__name__)), getattr(config, "base", None)
    return f"{name} on {base_chain(base)}" if isinstance(base, Settings) else name


@cache
def _built_in(name: str) -> Algorithm:
    return _algorithm(name, importlib.import_module(f"turnwise.algorithms.{name}").recipe)


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
