"""An algorithm as a setting: what a modifier (EPO, EMPG, ...) has as its base, by name and with its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from turnwise.algorithms.registry import build, resolve
from turnwise.learning.settings import RunInfo, Settings

if TYPE_CHECKING:
    from turnwise.learning.recipe import Recipe


def read_algorithm(value: Any) -> Settings:
    """``"dapo"``, ``{"type": "dapo", ...}`` (GRPO where there is no type), or settings as they are."""
    if isinstance(value, Settings):
        return value
    given = {"type": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise ValueError("a base is the name of an algorithm, such as grpo, or its settings with a `type:`")
    given = {"type": "grpo", **given}
    return resolve(str(given["type"])).config.model_validate(given)


AnyAlgorithm = Annotated[SerializeAsAny[Settings], BeforeValidator(read_algorithm)]
"""The settings of any algorithm there is, one from outside (``module:recipe``) too, for a pydantic field."""


def base_recipe(base: Settings, run: RunInfo) -> Recipe:
    """The recipe that a modifier adds to."""
    return build(base, run)
