"""An algorithm as a setting: what a modifier (EPO, EMPG, ...) has as its base, by name and with its own settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from turnwise.algorithms.registry import build, resolve
from turnwise.errors import UnusedSettingError
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


def refuse_unused_clip(config: Settings, base: Settings, *settings: str) -> None:
    """UnusedSettingError where ``base``, or what is below it, has one of the clip ``settings`` changed.

    For an algorithm, with settings ``config``, that takes the place of its base's clip. A setting is unchanged at the
    default of its class, and at that of the base that an algorithm has by default.
    """
    if changed := tuple(_changed(base, type(config).model_fields["base"].default, settings, "base.")):
        raise UnusedSettingError(
            changed, f"{', '.join(changed)}: no effect, as {getattr(config, 'type', '')} takes the place of that clip"
        )


def _changed(base: Settings, usual: Any, settings: tuple[str, ...], prefix: str) -> Iterator[str]:
    usual = usual if type(usual) is type(base) else type(base).model_construct()
    for name in settings:
        if name in type(base).model_fields and base.changed(name) and getattr(base, name) != getattr(usual, name, None):
            yield prefix + name
    if isinstance(below := getattr(base, "base", None), Settings):
        yield from _changed(below, getattr(usual, "base", None), settings, f"{prefix}base.")


def base_recipe(base: Settings, run: RunInfo) -> Recipe:
    """The recipe that a modifier adds to. What older weights need is added to the whole (stale.py)."""
    return build(base, replace(run, ahead=0))
