"""Configuration files and ``key=value`` settings."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import ge, gt, le, lt
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from tests.fuzz.harness import clear
from tests.fuzz.texts import damaged, text, value
from turnwise.config.files import (
    all_settings,
    config_folder,
    dump_config,
    load_config,
    parse_config,
    shipped_configs,
)
from turnwise.config.schema import RunConfig


def configuration_file(rng: random.Random, folder: Path) -> str:
    """A shipped configuration, changed as data or as text."""
    content = _shipped(rng.choice(shipped_configs()))
    path = folder / "c.yaml"
    if rng.random() < 0.6:
        raw = yaml.safe_load(content)
        for _ in range(rng.randint(1, 3)):
            change(rng, raw)
        path.write_text(yaml.safe_dump(raw, allow_unicode=True), errors="surrogatepass")
    elif rng.random() < 0.7:
        path.write_bytes(damaged(rng, content.encode()))
    else:
        path.write_text(yaml.safe_dump(value(rng), allow_unicode=True), errors="surrogatepass")
    return loaded(path, [])


def settings(rng: random.Random, folder: Path) -> str:
    """One to three settings of any value over a shipped configuration."""
    name = rng.choice(shipped_configs())
    used = list(_used(load_config(name).model_dump()))
    words = [
        setting(rng, rng.choice(used if rng.random() < 0.7 else _names())) for _ in range(rng.choice([1, 1, 1, 2, 3]))
    ]
    return loaded(name, words)


def combinations(rng: random.Random, folder: Path) -> str:
    """One to four settings over a shipped configuration, each of a value that its field allows."""
    return loaded(rng.choice(shipped_configs()), combined(rng))


def combined(rng: random.Random) -> list[str]:
    """Every section has the same chance, however many settings it has."""
    sections = _sections()
    return [fitting(rng, *rng.choice(sections[rng.choice(list(sections))])) for _ in range(rng.choice([1, 2, 3, 4]))]


def fitting(rng: random.Random, name: str, field: Any) -> str:
    """Such as ``optimizer.lr=0.5``: a value of one of the field's types, within its limits."""
    found = [each for each in _values(field.annotation) if _within(each, field.metadata)]
    return f"{name}={json.dumps(rng.choice(found))}"


_VALUES: dict[Any, list[Any]] = {
    bool: [True, False],
    int: [0, 1, 2, 3, 8, 64, 300],
    float: [0.0, 0.001, 0.1, 0.5, 0.9, 1.0, 1.5, 3.0],
    str: ["train", "test", "x", "self", "random", "expert", "full", "roles", "cuda", "openai:m@http://127.0.0.1:9/v1"],
    type(None): [None],
    tuple: [[], ["x"], [0.9, 0.99]],
    dict: [{}, {"x": 1}],
}


def _values(annotation: Any) -> Iterator[Any]:
    """Some values of an annotation; {} for a section."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _values(each)
    else:
        yield from _VALUES.get(get_origin(annotation) or annotation, [{}])


def _within(found: Any, limits: Sequence[Any]) -> bool:
    """Whether a number is within limits such as ``ge=0``; other values are."""
    tests: dict[str, Callable[[Any, Any], bool]] = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(found, bool) or not isinstance(found, int | float):
        return True
    return all(
        test(found, getattr(each, name)) for each in limits for name, test in tests.items() if hasattr(each, name)
    )


@cache
def _sections() -> dict[str, list[tuple[str, Any]]]:
    """Settings by the first part of their names, those of algorithms included."""
    made: dict[str, list[tuple[str, Any]]] = {}
    for name, field in all_settings():
        made.setdefault(name.partition(".")[0], []).append((name, field))
    return made


def loaded(name: str | Path, words: list[str]) -> str:
    try:
        config = load_config(name, words)
    except ValueError as error:
        return clear(str(error))
    assert not _infinite(config.model_dump(exclude={"env": {"kwargs"}})), f"taken: {words}"
    assert same(parse_config(yaml.safe_load(dump_config(config))), config), "it does not survive being written down"
    return "taken"


def same(a: RunConfig, b: RunConfig) -> bool:
    return a.model_dump(mode="json") == b.model_dump(mode="json")


def _used(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, inner in section.items():
        yield f"{prefix}{name}"
        if isinstance(inner, dict):
            yield from _used(inner, f"{prefix}{name}.")


def setting(rng: random.Random, name: str) -> str:
    """Such as ``optimizer.lr=-1``, or not at all such."""
    way = rng.random()
    if way < 0.1:
        name = _typo(rng, name)
    elif way < 0.15:
        return text(rng)
    elif way < 0.2:
        name = name + "." + rng.choice(_names())
    given = value(rng)
    written = (
        given if isinstance(given, str) else yaml.safe_dump(given, default_flow_style=True).removesuffix("\n...\n")
    )
    return f"{name}={written}"


def change(rng: random.Random, raw: Any) -> None:
    """One accident somewhere in a nested dictionary."""
    section = raw
    while isinstance(section, dict) and (below := [v for v in section.values() if isinstance(v, dict)]):
        if rng.random() < 0.4:
            break
        section = rng.choice(below)
    keys = list(section)
    way = rng.random()
    if way < 0.2 or not keys:
        section[rng.choice(["x", "lr", "type", "extends", "", 7, *_names()])] = value(rng)
    elif way < 0.3:
        section[_typo(rng, str(keys[0]))] = section.pop(keys[0])
    elif way < 0.4:
        del section[rng.choice(keys)]
    else:
        section[rng.choice(keys)] = value(rng)


def _typo(rng: random.Random, word: str) -> str:
    place = rng.randrange(len(word) + 1)
    return word[:place] + rng.choice(["", "x", ".", "_"]) + word[place + 1 :]


def _infinite(found: Any) -> bool:
    if isinstance(found, dict):
        return any(map(_infinite, found.values()))
    if isinstance(found, list | tuple):
        return any(map(_infinite, found))
    return isinstance(found, float) and not math.isfinite(found)


@cache
def _shipped(name: str) -> str:
    return (config_folder() / f"{name}.yaml").read_text()


@cache
def _names() -> list[str]:
    return [name for name, _ in all_settings()]
