"""Configuration files and ``key=value`` settings."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.harness import clear
from tests.fuzz.texts import damaged, text, value
from turnwise.config.files import all_settings, config_folder, dump_config, load_config, parse_config, shipped_configs
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
    """One to three settings over a shipped configuration."""
    name = rng.choice(shipped_configs())
    used = list(_used(load_config(name).model_dump()))
    words = [
        setting(rng, rng.choice(used if rng.random() < 0.7 else _names())) for _ in range(rng.choice([1, 1, 1, 2, 3]))
    ]
    return loaded(name, words)


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
