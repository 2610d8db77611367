"""How an agent is shown the world, beside its model: settings, examples and a steering vector, written and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from turnwise.agents.decoding import STEERING_FILE
from turnwise.agents.opening import Example, read_examples, write_examples
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.untrained import settings_of_untrained
from turnwise.assembly.policies import open_run
from turnwise.assembly.steering import keep_vector
from turnwise.cloning.examples import examples_for
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.files import parse_section
from turnwise.envs.tasks import TextEnv
from turnwise.jsonfile import read_object
from turnwise.learning.settings import laid_over
from turnwise.models.loading import from_anywhere
from turnwise.models.settings import ORIGIN_FILE, ModelConfig, PretrainedModelConfig, made_from_scratch

AGENT_FILE = "agent.json"


def agent_settings(
    target: str | Path, trained: AgentConfig | None, changes: Mapping[str, Any], in_roles: bool = False
) -> AgentConfig:
    """A run's, an exported folder's, or those of an untrained model, with ``changes``; ValueError for unknown ones.

    A model from elsewhere has not been trained on the world: it is told what to do, as an endpoint's is, and gets chats
    with roles where the world says that it speaks so (``in_roles``). A small model of ours knows nothing but its
    demonstrations, which have no instructions.
    """
    trained = trained or exported_agent(target)
    if trained is not None:
        known = _changed(trained.model_dump(), changes)
    else:
        known = dict(changes) if made_from_scratch(target) else settings_of_untrained(changes, in_roles)
    return parse_section(AgentConfig, known, "agent")


def exported_agent(folder: str | Path) -> AgentConfig | None:
    """The settings that an exported model's folder holds; None for any other. Raises ValueError for damaged ones."""
    saved = Path(folder) / AGENT_FILE
    if not saved.is_file():
        return None
    return parse_section(AgentConfig, {"examples": 0, **read_object(saved)}, "agent").kept_in(folder)


def _changed(known: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """An agent's settings with ``changes``; those of decoding method by method."""
    given, methods = changes.get("decoding"), known.get("decoding")
    if isinstance(given, Mapping) and isinstance(methods, Mapping):
        changes = {**changes, "decoding": laid_over(methods, given)}
    return {**known, **changes}


def with_decoding_from_anywhere(settings: AgentConfig) -> AgentConfig:
    """An agent's settings whose second model and steering vector have names for any working directory."""
    second, steering = settings.decoding.second, settings.decoding.steering
    named: dict[str, Any] = {}
    if second is not None:
        named["second"] = second.model_copy(update={"model": from_anywhere(second.model)})
    if steering is not None:
        named["steering"] = steering.model_copy(update={"file": str(Path(steering.file).expanduser().absolute())})
    return settings.model_copy(update={"decoding": settings.decoding.model_copy(update=named)})


def examples_of(
    target: str | Path, settings: AgentConfig, changes: Mapping[str, Any], world: Callable[[], TextEnv]
) -> tuple[Example, ...]:
    """The examples that a run or an exported model was trained with; new ones of ``world`` where ``changes`` say so.

    A model from elsewhere gets the usual ones. Raises ValueError as ``examples_for`` does.
    """
    stored = read_examples(target)
    if stored is not None and not any(name.startswith("examples") for name in changes):
        return stored
    usual = open_run(target) is None and not was_trained_here(target)
    if settings.examples == 0 or (settings.examples is None and not usual):
        return ()
    return examples_for(world(), settings, usual=usual)


def describe_agent(folder: Path, settings: AgentConfig, examples: tuple[Example, ...]) -> None:
    """Write beside a model how its agent is shown the world and steered, for ``evaluate``."""
    keep_vector(settings.decoding, folder)
    plain = settings.model_dump(mode="json")
    if plain["decoding"]["steering"]:
        plain["decoding"]["steering"]["file"] = STEERING_FILE
    (folder / AGENT_FILE).write_text(json.dumps(plain, indent=1))
    if examples:
        write_examples(folder, examples)


def was_trained_here(folder: str | Path) -> bool:
    """Whether a model's folder is one that turnwise wrote: its agent is known, or it was cloned."""
    return any((Path(folder) / name).is_file() for name in (AGENT_FILE, ORIGIN_FILE))


def is_untrained(model: ModelConfig, warmstart: WarmstartConfig | None) -> bool:
    """Whether a run begins with a pretrained model that has seen nothing of the world: one that needs examples."""
    return isinstance(model, PretrainedModelConfig) and warmstart is None and not was_trained_here(model.path)
