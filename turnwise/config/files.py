"""Reading a configuration: one YAML file, and ``key.path=value`` settings laid over it.

Unknown keys, wrong types, impossible combinations and settings that the run would not use are errors of one line each,
with the nearest right name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from turnwise.agents.untrained import settings_of_untrained
from turnwise.config.names import DEFAULT_ALGORITHM, explained, names_of, settings_of
from turnwise.config.overrides import beside, deep_copy, leaves, override, set_by
from turnwise.config.schema import RunConfig
from turnwise.envs.settings import EnvConfig
from turnwise.errors import UnusedSettingError
from turnwise.grading.settings import GradingConfig
from turnwise.learning.settings import laid_over
from turnwise.models.settings import made_from_scratch

Section = TypeVar("Section", bound=BaseModel)

CONFIG_SUFFIXES = (".yaml", ".yml")


def config_folder() -> Path:
    """The folder of the configuration files that come with turnwise."""
    shipped = Path(str(files("turnwise"))) / "configs"
    return shipped if shipped.is_dir() else Path(__file__).parent.parent.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of the shipped configurations, such as ``household``."""
    root = config_folder()
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def read_config(name: str | Path, *, scratch: bool = True) -> dict[str, Any]:
    """A configuration file by path, or a shipped one by name, as one mapping.

    ``extends: NAME`` in a file takes that configuration and lays the file's own settings over it. The sections
    ``scratch:`` and ``pretrained:`` hold settings for a model with random weights and for a pretrained one; the
    argument ``scratch`` says which of the two apply. Raises ValueError, with the nearest name, for an unknown one.
    """
    return _settled(_layers(name), scratch)[0]


@dataclass(frozen=True)
class _Layer:
    """One file's own settings. A ``shipped`` file comes with turnwise: the user did not set what it says."""

    settings: dict[str, Any]
    shipped: bool


def _layers(name: str | Path, above: tuple[str, ...] = ()) -> list[_Layer]:
    """A file and those that it extends, the lowest first. ``above`` are the files that led to this one."""
    read, shipped = _read_yaml(name)
    below = read.pop("extends", None)
    own = _Layer(read, shipped)
    if below is None:
        return [own]
    if not isinstance(below, str) or below in (*above, str(name)):
        raise ValueError(f"{name}: extends should name another configuration, and not lead back; got {below!r}")
    return [*_layers(below, (*above, str(name))), own]


def _settled(layers: Sequence[_Layer], scratch: bool) -> tuple[dict[str, Any], set[str]]:
    """Layers as one mapping for the kind of model, and the dotted names that the user's own files set."""
    made: dict[str, Any] = {}
    own: set[str] = set()
    for layer in layers:
        settings = deep_copy(layer.settings)
        kinds = {kind: settings.pop(kind, None) or {} for kind in ("scratch", "pretrained")}
        for kind, found in kinds.items():
            if not isinstance(found, Mapping):
                raise ValueError(f"{kind}: expected a section of settings for that kind of model; got {found!r}")
        for section in (settings, taken := kinds["scratch" if scratch else "pretrained"]):
            _open_names(section, "algorithm")
        settings = laid_over(settings, taken)
        made = laid_over(made, settings)
        if isinstance(chosen := made.get("algorithm"), dict):  # also for the next layer to be laid over
            made["algorithm"] = _typed(chosen, DEFAULT_ALGORITHM)
        if not layer.shipped:
            own |= set(leaves(settings))
    return made, own


def _open_names(settings: dict[str, Any], place: str) -> None:
    """Replace an algorithm that is given by its name alone by a section with that type; likewise its bases."""
    if isinstance(settings.get(place), str):
        settings[place] = {"type": settings[place]}
    if isinstance(settings.get(place), dict):
        _open_names(settings[place], "base")


def _typed(section: Mapping[str, Any], default: str) -> dict[str, Any]:
    """An algorithm's section with its type written out, and likewise the sections of its bases."""
    made = {"type": default, **section}
    if isinstance(made.get("base"), Mapping):
        from turnwise.algorithms.registry import resolve

        try:
            field = resolve(str(made["type"])).config.model_fields.get("base")
        except ValueError:  # an unknown name is reported when the whole is validated
            return made
        made["base"] = _typed(made["base"], str(getattr(field and field.default, "type", "grpo")))
    return made


def _read_yaml(name: str | Path) -> tuple[dict[str, Any], bool]:
    """The content of a file, and whether it comes with turnwise."""
    path = Path(name)
    if path.suffix in CONFIG_SUFFIXES and not _is_file(path):
        near = difflib.get_close_matches(str(path), _files_beside(path), n=1, cutoff=0.6)
        raise ValueError(f"there is no file {str(name)!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
    if not _is_file(path):
        path = config_folder() / f"{name}.yaml"
    if not _is_file(path):
        near = difflib.get_close_matches(str(name), shipped_configs(), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no configuration {str(name)!r}.{hint} Shipped: {', '.join(shipped_configs())}; or a path to a YAML file"
        )
    try:
        read = _parsed(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or 2020-99-99 as a date
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} should hold `key: value` lines; got {type(read).__name__}")
    return deep_copy(read), path.resolve().is_relative_to(config_folder().resolve())


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """YAML as Python values: read, not changed. Files extend each other, and the parser takes 10 ms a file."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a name that a section has twice, of which YAML would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; False for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _files_beside(path: Path) -> list[str]:
    try:
        return [str(found) for found in path.parent.iterdir() if found.suffix in CONFIG_SUFFIXES and found.is_file()]
    except (OSError, ValueError):  # no folder, or a name that none can have
        return []


def with_algorithm(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration with algorithm ``name``. Its section is kept if it is for that one, and dropped otherwise."""
    made: dict[str, Any] = deep_copy(config)
    present = made.get("algorithm", DEFAULT_ALGORITHM)
    if (present.get("type", DEFAULT_ALGORITHM) if isinstance(present, Mapping) else present) != name:
        made["algorithm"] = {"type": name}
    return made


def config_for_env(env_id: str) -> str:
    """Name of the shipped configuration for an environment; ``default`` where there is none of its own."""
    name = env_id.rpartition("/")[2].rpartition("-v")[0].lower()
    return name if name in shipped_configs() else "default"


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Validate a configuration. Raises ValueError with one line for each problem, with the nearest right name."""
    return parse_section(RunConfig, raw)


def parse_section(
    section: type[Section], raw: Mapping[str, Any], prefix: str = "", own: Collection[str] | None = None
) -> Section:
    """Validate a configuration, or a section of one, whose name is ``prefix``.

    ``own`` are the dotted names that the user set (None: all). A setting that the run does not use is an error where
    the user set it; otherwise it goes back to its default. Raises ValueError as ``parse_config`` does.
    """
    place = (prefix,) if prefix else ()
    left: dict[str, Any] = deep_copy(raw)
    while True:
        try:
            made = section.model_validate(left)
            break
        except ValidationError as error:
            problems = error.errors()
            if own is None or not _drop_unused(left, problems, own):
                whole = RunConfig if prefix else section
                chosen = left.get("algorithm", DEFAULT_ALGORITHM) if whole is RunConfig else None
                found = [{**problem, "loc": (*place, *problem["loc"])} for problem in problems]
                lines = [explained(problem, whole, chosen) for problem in found]
                raise ValueError("\n".join(dict.fromkeys(lines))) from None
    if infinite := [".".join((*place, *name)) for name in _not_finite(made.model_dump())]:
        raise ValueError(f"{', '.join(infinite)}: expected a finite number (what can be switched off is so by null)")
    return made


def _drop_unused(raw: dict[str, Any], problems: Sequence[Any], own: Collection[str]) -> bool:
    """Drop settings that are not used and that the user did not set; returns whether there were any."""
    found = False
    for problem in problems:
        error = (problem.get("ctx") or {}).get("error")
        for name in error.names if isinstance(error, UnusedSettingError) else ():
            path = [*names_of(problem["loc"]), *name.split(".")]
            if ".".join(path) in own:
                continue
            section: Any = raw
            for part in path[:-1]:
                section = section.get(part) if isinstance(section, dict) else None
            if isinstance(section, dict) and path[-1] in section:
                del section[path[-1]]
                found = True
    return found


def _not_finite(found: Any) -> Iterator[tuple[str, ...]]:
    """Places of nan and infinite numbers, except in the arguments of a world."""
    if isinstance(found, float) and not math.isfinite(found):
        yield ()
    named = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list | tuple) else ()
    for name, inner in named:
        if name != "kwargs":
            yield from ((str(name), *below) for below in _not_finite(inner))


def changed_grading(own: GradingConfig, changes: Mapping[str, Any]) -> GradingConfig:
    """Graders with some settings changed; ``functions`` replace the earlier ones. Raises as ``parse_config`` does."""
    made = laid_over(own.model_dump(include=set(GradingConfig.model_fields)), changes)
    if "functions" in changes:
        made["functions"] = changes["functions"] or {}
    return parse_section(GradingConfig, made, "rewards", own=set(leaves(changes)))


def load_config(
    name: str | Path | None = None,
    settings: Sequence[str] = (),
    *,
    env: str | None = None,
    algorithm: str | None = None,
) -> RunConfig:
    """Read a configuration, lay settings over it, and validate it.

    Without ``name`` it is the shipped configuration for ``env``. Raises ValueError with one line for each problem, and
    where ``env`` or ``algorithm`` is one and the settings name another.
    """
    layers = _layers(name if name is not None else config_for_env(env or EnvConfig().id))
    raw, own = _settled(layers, scratch=True)
    if not _is_from_scratch(override(raw, settings)):
        raw, own = _settled(layers, scratch=False)
    if env is not None and raw.get("env", {}).get("id") != env:
        raw["env"] = {"id": env}
    if algorithm is not None:
        raw = with_algorithm(raw, algorithm)
    resolved = override(raw, settings)
    if not _is_from_scratch(resolved) and isinstance(resolved.setdefault("agent", {}), dict):
        resolved["agent"] = settings_of_untrained(resolved["agent"])
    _check_one("worlds", env, resolved.get("env"), "id")
    _check_one("algorithms", algorithm, resolved.get("algorithm"), "type")
    return parse_section(RunConfig, resolved, own={*own, *set_by(settings)})


def _check_one(what: str, asked: str | None, section: Any, key: str) -> None:
    """Raise ValueError where ``asked``, given by its name, is not what the settings of its section left."""
    if asked is not None and isinstance(section, dict) and (found := section.setdefault(key, asked)) != asked:
        raise ValueError(f"two {what} are asked for, {asked!r} by name and {found!r} by a setting: keep one")


def target_config(target: str, settings: Sequence[str] = (), *, env: str | None = None) -> RunConfig:
    """The configuration that ``target`` names: by a path or a shipped name, or for a model by its folder or hub name.

    A model is used as it is, without a warm start. Raises ValueError for a misspelt name of a shipped configuration,
    and as ``load_config`` does.
    """
    shipped = shipped_configs()
    if target in shipped or Path(target).suffix in CONFIG_SUFFIXES:
        return load_config(target, settings, env=env)
    if near := difflib.get_close_matches(target, shipped, n=1, cutoff=0.8):
        raise ValueError(f"no run, model or configuration {target!r}. Did you mean {near[0]!r}?")
    words = beside([f"model.path={target}"], settings, by="name")
    return load_config(None, ["model={}", "warmstart=null", *words], env=env)


def _is_from_scratch(raw: Mapping[str, Any]) -> bool:
    """Whether the model began with random weights: in this run, or before, in the folder ``model.path``."""
    model = raw.get("model")
    path = model.get("path") if isinstance(model, Mapping) else None
    return path is None or made_from_scratch(str(path))


def resolved(raw: Mapping[str, Any], own: Collection[str] | None = None) -> dict[str, Any]:
    """A configuration as JSON values, with defaults filled in. Raises ValueError as ``parse_config`` does."""
    return parse_section(RunConfig, raw, own=own).model_dump(mode="json")


def all_settings() -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of every setting, with those of all algorithms."""
    from turnwise.algorithms.registry import ALGORITHMS, resolve

    yield from run_settings()
    for name in ALGORITHMS:
        yield from settings_of(resolve(name).config, "algorithm.")


def run_settings() -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of every setting of a run, without those of its algorithm."""
    return settings_of(RunConfig)


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; ``parse_config`` of it gives the same configuration."""
    return str(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=False), sort_keys=False))
