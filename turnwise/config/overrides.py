"""``key.path=value`` settings, laid over a configuration that is a mapping yet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from turnwise.models.settings import PretrainedModelConfig


def override(config: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The configuration with ``key.path=value`` settings laid over it; values are YAML (``true``, ``0.1``, ``[1, 2]``).

    Of two settings for one key the later wins. Changing the ``type`` of a section drops the settings of the old type,
    but keeps those that are given here.
    """
    made: dict[str, Any] = deep_copy(config)
    given: list[str] = []
    for key, value in map(_setting, settings):
        if isinstance(value, str) and _chooses_a_type(key):
            key = f"{key}.type"
        section, leaf = _place(made, key)
        if isinstance(value, Mapping) and _chooses_a_type(key) and "type" not in value:  # settings of the present one
            present = section.get(leaf)
            present = present.get("type") if isinstance(present, Mapping) else present
            value = value if present is None else {"type": present, **value}
        if leaf == "type" and section.get("type", value) != value:
            above = key.removesuffix("type")
            _keep(section, [name.removeprefix(above).split(".") for name in given if name.startswith(above)])
        section[leaf] = value
        given.append(key)
        if key == "model.path":  # another kind of model: what described the old one goes
            known = set(PretrainedModelConfig.model_fields) - {"type"}
            made["model"] = {k: v for k, v in section.items() if k in known or f"model.{k}" in given}
            made["model"].pop("type", None)
    return made


def beside(shorthands: Sequence[str], settings: Sequence[str], by: str = "an option") -> list[str]:
    """The settings that options or arguments stand for, such as ``seed=3`` for ``--seed 3``, then those by name.

    Raises ValueError where the two leave different values: one of them would be dropped without a word.
    """
    words = [*shorthands, *settings]
    meant, made = override({}, shorthands), override({}, words)
    for name in leaves(meant):
        asked, found = (_at(each, name.split(".")) for each in (meant, made))
        if asked != found:
            one, other = (json.dumps(value, default=str) for value in (asked, found))
            raise ValueError(f"two values of {name} are asked for, {one} by {by} and {other} by a setting: keep one")
    return words


def set_by(settings: Sequence[str]) -> set[str]:
    """Dotted names of the values that ``key.path=value`` settings set."""
    return set(leaves(override({}, settings)))


def _setting(text: str) -> tuple[str, Any]:
    """The two sides of ``key.path=value``."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not of the form key.path=value, such as optimizer.lr=1e-3")
    return key, _yaml_value(value)


def _chooses_a_type(key: str) -> bool:
    """Whether a word given for ``key`` is the name of an algorithm: ``algorithm=spear``, ``algorithm.base=drbot``."""
    return key == "algorithm" or (key.startswith("algorithm.") and set(key.split(".")[1:]) == {"base"})


def _keep(section: dict[str, Any], places: Sequence[Sequence[str]]) -> None:
    """Drop everything from a section except some places in it."""
    kept = [(place, _at(section, place)) for place in places]
    section.clear()
    for place, value in kept:
        inner, leaf = _place(section, ".".join(place))
        inner[leaf] = value


def _at(section: Any, place: Sequence[str]) -> Any:
    for part in place:
        section = section[part] if isinstance(section, Mapping) and part in section else None
    return section


def _place(made: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section that a dotted key leads to, made where it is missing, and the key's last part."""
    *parents, leaf = key.split(".")
    section, above = made, ""
    for parent in parents:
        below = section.setdefault(parent, {})
        if isinstance(below, str) and parent in ("algorithm", "base"):  # a base in a file, by its name
            below = section[parent] = {"type": below}
        if below is None:
            below = section[parent] = {}
        if not isinstance(below, dict):
            raise ValueError(f"'{key}=...': {above + parent!r} is a value, not a section")
        section, above = below, f"{above}{parent}."
    return section, leaf


def _yaml_value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2020-99-99 looks like a date
        raise ValueError(f"{text!r} is not a YAML value (an open bracket or quote?)") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: deep_copy(v) for k, v in value.items()}
    return list(value) if isinstance(value, list) else value


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the values that a mapping sets, in nested sections too."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
