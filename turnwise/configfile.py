"""Configuration files: one YAML file and ``key.path=value`` overrides, read and checked at the edge.

Unknown keys, wrong types, impossible combinations and settings that the run would not use are errors of one line
each, with the nearest right name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from turnwise.algorithms.recipe import Settings
from turnwise.algorithms.registry import ALGORITHMS, resolve
from turnwise.config import EnvConfig, PretrainedModelConfig, RunConfig

Section = TypeVar("Section", bound=BaseModel)

CONFIG_SUFFIXES = (".yaml", ".yml")


def config_folder() -> Path:
    """The folder of the configuration files that come with turnwise."""
    shipped = Path(str(files("turnwise"))) / "configs"
    return shipped if shipped.is_dir() else Path(__file__).parent.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of the shipped configurations, such as ``household``."""
    root = config_folder()
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def read_config(name: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration file by path, or a shipped one by name; ValueError that names the nearest.

    ``extends: NAME`` in a file takes that configuration and lays the file's own settings over it. ``above`` are those
    that lead here.
    """
    read = _read_yaml(name)
    below = read.pop("extends", None)
    if below is None:
        return read
    if not isinstance(below, str) or below in (*above, str(name)):
        raise ValueError(f"{name}: extends should name another configuration, and not lead back; got {below!r}")
    return _over(read_config(below, (*above, str(name))), read)


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings laid over others; a section of another ``type`` replaces the one below."""
    made = dict(below)
    for key, value in above.items():
        old = made.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("type", old.get("type")) == old.get("type"):
            made[key] = _over(old, value)
        else:
            made[key] = value
    return made


def _read_yaml(name: str | Path) -> dict[str, Any]:
    path = Path(name)
    if path.suffix not in CONFIG_SUFFIXES and not _is_file(path):
        path = config_folder() / f"{name}.yaml"
    if not _is_file(path):
        near = difflib.get_close_matches(str(name), shipped_configs(), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no configuration {str(name)!r}.{hint} Shipped: {', '.join(shipped_configs())}; or a path to a YAML file"
        )
    try:
        read = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or 2020-99-99 as a date
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} should hold `key: value` lines; got {type(read).__name__}")
    return read


def _is_file(path: Path) -> bool:
    """Also for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def override(config: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """``key.path=value`` settings laid over a configuration; values are YAML (``true``, ``0.1``, ``[1, 2]``)."""
    made: dict[str, Any] = _deep_copy(config)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"{setting!r} is not of the form key.path=value, such as optimizer.lr=1e-3")
        *parents, leaf = key.split(".")
        section = made
        for parent in parents:
            below = section.setdefault(parent, {})
            if isinstance(below, str) and parent == "algorithm":
                below = section[parent] = {"type": below}
            if below is None:
                below = section[parent] = {}
            if not isinstance(below, dict):
                raise ValueError(f"{setting!r}: {parent!r} is a value, not a section")
            section = below
        section[leaf] = _yaml_value(text)
        if key == "model.path":  # another kind of model: what described the old one goes
            made["model"] = {
                k: v for k, v in section.items() if k in PretrainedModelConfig.model_fields and k != "type"
            }
    return made


def with_algorithm(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration with another algorithm; settings that both have are kept.

    EPO on GRPO to GRPO takes the base; GRPO to EPO makes it the base.
    """
    made: dict[str, Any] = _deep_copy(config)
    present = made.get("algorithm") or {}
    present = {"type": present} if isinstance(present, str) else present
    if present.get("type") == name:
        return made
    base = present.get("base") or present
    if base.get("type", "grpo") == name:
        made["algorithm"] = {**base, "type": name}
    elif "base" in resolve(name).config.model_fields:
        made["algorithm"] = {"type": name, **({"base": base} if base else {})}
    else:
        fields = resolve(name).config.model_fields
        made["algorithm"] = {**{key: value for key, value in base.items() if key in fields}, "type": name}
    return made


def config_for_env(env_id: str) -> str:
    """The shipped configuration that fits an environment: its own, else ``default``."""
    name = env_id.rpartition("/")[2].rpartition("-v")[0].lower()
    return name if name in shipped_configs() else "default"


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


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deep_copy(v) for k, v in value.items()}
    return list(value) if isinstance(value, list) else value


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Validate; a ValueError with one line per problem, each with the nearest right name."""
    return parse_section(RunConfig, raw)


def parse_section(section: type[Section], raw: Mapping[str, Any], prefix: str = "") -> Section:
    """The same for a part of the configuration that stands alone; ``prefix`` is its name."""
    place = (prefix,) if prefix else ()
    try:
        made = section.model_validate(raw)
    except ValidationError as error:
        lines = [_explain({**problem, "loc": (*place, *problem["loc"])}) for problem in error.errors()]
        raise ValueError("\n".join(dict.fromkeys(lines))) from None
    if infinite := [".".join((*place, *name)) for name in _not_finite(made.model_dump())]:
        raise ValueError(f"{', '.join(infinite)}: expected a finite number (what can be switched off is so by null)")
    return made


def _not_finite(found: Any) -> Iterator[tuple[str, ...]]:
    """Where nan and infinite numbers are, but for what a world is given."""
    if isinstance(found, float) and not math.isfinite(found):
        yield ()
    named = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list | tuple) else ()
    for name, inner in named:
        if name != "kwargs":
            yield from ((str(name), *below) for below in _not_finite(inner))


def load_config(
    name: str | Path | None = None,
    settings: Sequence[str] = (),
    *,
    env: str | None = None,
    algorithm: str | None = None,
) -> RunConfig:
    """Read, override, validate. Without ``name`` the shipped configuration that fits ``env`` is taken."""
    raw = read_config(name if name is not None else config_for_env(env or EnvConfig().id))
    if env is not None and raw.get("env", {}).get("id") != env:
        raw["env"] = {"id": env}
    if algorithm is not None:
        raw = with_algorithm(raw, algorithm)
    return parse_config(override(raw, settings))


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; ``parse_config`` of it gives the same configuration."""
    return str(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=False), sort_keys=False))


def _explain(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    shown = ".".join(part for part in place if part not in ("scratch", "pretrained"))
    if problem["type"] == "extra_forbidden":
        return f"Unknown setting {shown!r}.{_nearest(shown)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "model_type", "union_tag_invalid", "union_tag_not_found"):
        return f"{shown}: {message}" if shown else message
    return f"{shown}: {message}; got {problem['input']!r}"


def _nearest(wrong: str) -> str:
    """A hint: the same name in another section, else the nearest in this one, else what this section knows."""
    names = [name for name, _ in all_settings()]
    section, _, leaf = wrong.rpartition(".")
    elsewhere = [name for name in names if name.rpartition(".")[2] == leaf and name != wrong]
    here = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section and name != wrong}
    near = [here[found] for found in difflib.get_close_matches(leaf, here, n=1, cutoff=0.6)]
    if near or elsewhere:
        return f" Did you mean {(elsewhere or near)[0]!r}?"
    return f" Known here: {', '.join(here)}." if here else ""


def all_settings() -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of every setting there is, those of each algorithm included."""
    yield from settings_of(RunConfig)
    for algorithm in ALGORITHMS.values():
        yield from settings_of(algorithm.config, "algorithm.")


def settings_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of every setting below a configuration class."""
    for name, info in section.model_fields.items():
        yield f"{prefix}{name}", info
        for candidate in dict.fromkeys((info.annotation, *get_args(info.annotation), type(info.default))):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and candidate is not Settings:
                yield from settings_of(candidate, f"{prefix}{name}.")
