"""Settings of what pays an episode beside its world: reward functions, and a judge with its rubric.

Importing this module does not import torch, so that a configuration is read quickly.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from turnwise.agents.chat_client import EndpointConfig, addressed
from turnwise.errors import UnusedSettingError

_FIELD = re.compile(r"\{(\w+)\}")
_WORDS = {True: "yes", False: "no"}
"""What YAML makes of the words yes and no, which are the usual choices."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Criterion(_Section):
    """One question to the judge. ``choices`` are its answers, each with what it is worth in [0, 1]."""

    name: str = Field(min_length=1, description="what it is called in reports")
    text: str = Field(min_length=1, description="what must hold; {answer} stands for that key of the world's task")
    weight: float = Field(1.0, gt=0, description="its part in the verdict, relative to the other criteria")
    choices: dict[str, float] = Field(
        default={"no": 0.0, "yes": 1.0},
        description="the judge's answers and their worth in [0, 1]; a list is spread evenly, from 0 to 1",
    )

    @field_validator("choices", mode="before")
    @classmethod
    def _spread(cls, given: Any) -> Any:
        """A list from the worst to the best; YAML's yes and no are words again."""
        if isinstance(given, list | tuple):
            given = {choice: place / max(len(given) - 1, 1) for place, choice in enumerate(given)}
        if not isinstance(given, Mapping):
            raise ValueError(f"expected a list of answers, or answers with their worth; got {given!r}")
        return {_WORDS[key] if isinstance(key, bool) else str(key): worth for key, worth in given.items()}

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: dict[str, float]) -> dict[str, float]:
        if len({choice.strip().lower() for choice in choices}) < 2 or len({*map(str.lower, choices)}) < len(choices):
            raise ValueError(f"expected two answers or more, all different; got {', '.join(choices) or 'none'}")
        if not all(0 <= worth <= 1 for worth in choices.values()):
            raise ValueError(f"an answer is worth something in [0, 1]; got {choices}")
        return choices


class Rubric(_Section):
    """What a judge looks for."""

    instructions: str = Field("", description="what the judge should know of the tasks; {key} as in a criterion")
    criteria: tuple[Criterion, ...] = Field(min_length=1, description="the questions, answered one by one")

    @model_validator(mode="after")
    def _named_apart(self) -> Rubric:
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"each criterion needs a name of its own; got {', '.join(names)}")
        return self

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of the whole rubric, weights included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def fields(self) -> list[str]:
        """The keys of a task that the rubric names."""
        texts = (self.instructions, *(criterion.text for criterion in self.criteria))
        return list(dict.fromkeys(name for text in texts for name in _FIELD.findall(text)))

    def check(self, task: Mapping[str, Any]) -> None:
        """Raise ValueError where a task has no such key."""
        for name in self.fields:
            if name not in task:
                known = f"only {', '.join(task)}" if task else "no info['task'] at all"
                raise ValueError(f"the rubric names {{{name}}}, and the world tells {known}: correct the rubric")

    def filled(self, task: Mapping[str, Any]) -> Rubric:
        """The rubric with what it names of this task in its texts. Raises ValueError as ``check`` does."""
        self.check(task)
        criteria = tuple(c.model_copy(update={"text": _fill(c.text, task)}) for c in self.criteria)
        return self.model_copy(update={"instructions": _fill(self.instructions, task), "criteria": criteria})


def _fill(text: str, task: Mapping[str, Any]) -> str:
    def shown(found: re.Match[str]) -> str:
        value = task[found[1]]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _FIELD.sub(shown, text)


class AskedConfig(_Section):
    """A model that reads episodes, and how it is asked. ``section`` is its name in the rewards."""

    section: ClassVar[str] = ""

    model: str = Field(
        description="who judges: openai:MODEL, or openai:MODEL@URL for your own endpoint; MODEL names its verdicts"
    )
    weight: float = Field(1.0, description="what a verdict of 1 pays; 0: it is only reported")
    view: Literal["all", "last"] = Field(
        "all", description="what it sees. all: the whole episode; last: the first observation and the last reply"
    )
    thoughts: bool = Field(False, description="show it what the agent thought before its answers")
    answers: int = Field(3, ge=1, description="how often it may answer until its verdict can be read")
    max_tokens: int = Field(1024, ge=1, description="tokens of an answer")
    endpoint: EndpointConfig = Field(EndpointConfig(), description="how it is asked")

    @field_validator("model")
    @classmethod
    def _is_an_endpoint(cls, name: str) -> str:
        addressed(name, EndpointConfig())
        return name

    @model_validator(mode="after")
    def _what_is_for_players(self) -> Self:
        usual = EndpointConfig()
        if self.endpoint.concurrency != usual.concurrency:
            raise UnusedSettingError(
                "endpoint.concurrency", "the judge is asked by rewards.threads at once: set that in the place of it"
            )
        if self.endpoint.send_seed != usual.send_seed:
            raise UnusedSettingError(
                "endpoint.send_seed", "a judge draws nothing anew: give a seed as endpoint.extra={seed: 0}"
            )
        return self


class JudgeConfig(AskedConfig):
    """A model that judges each episode by a rubric."""

    section: ClassVar[str] = "judge"

    rubric: Rubric = Field(description="what it looks for: a YAML file, whose content the run keeps")
    structured: bool = Field(
        False,
        description="ask its server to hold answers to the form of a verdict (response_format with a JSON schema), for "
        "models that do not keep to it by themselves",
    )

    @field_validator("rubric", mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        return read_rubric(given) if isinstance(given, str | Path) else given


class RankingConfig(AskedConfig):
    """A model that reads all attempts at a task at once, and scores them relative to each other (RULER)."""

    section: ClassVar[str] = "ranking"

    instructions: str = Field("", description="what it should know of the tasks, and what is better")
    max_tokens: int = Field(4096, ge=1, description="tokens of an answer, which has a reason for each attempt")


class GradingConfig(_Section):
    """What pays an episode beside its world, and how much of the world's own rewards counts."""

    world: float = Field(
        1.0, ge=0, description="weight of the world's own rewards; 0: functions and the judge alone pay"
    )
    functions: dict[str, float] = Field(
        default_factory=dict,
        description="Python functions of episode and task, module:name, with their weights; a list of names: 1 each",
    )
    judge: JudgeConfig | None = Field(None, description="a model that judges each episode by a rubric")
    ranking: RankingConfig | None = Field(
        None, description="a model that scores the attempts at a task relative to each other, in training alone"
    )
    success_threshold: float | None = Field(
        None, description="total reward that counts as success, where the world does not say what success is"
    )
    threads: int = Field(
        8, ge=0, description="threads for functions and the judge, which work during generation; 0: no threads"
    )
    timeout_s: float = Field(
        300.0, gt=0, description="seconds that an async function may take; a plain one has no limit"
    )

    @field_validator("functions", mode="before")
    @classmethod
    def _weighed(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {given: 1.0}
        if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
            return dict.fromkeys(given, 1.0)
        return given

    @field_validator("functions")
    @classmethod
    def _places(cls, functions: dict[str, float]) -> dict[str, float]:
        for name in functions:
            module, colon, attribute = name.partition(":")
            if not colon or not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
                raise ValueError(f"{name!r} is no module:name, such as my_rewards:exact")
        return functions

    @property
    def grades(self) -> bool:
        """Whether anything but the world pays an episode by itself."""
        return bool(self.functions) or self.judge is not None

    @model_validator(mode="after")
    def _something_grades(self) -> GradingConfig:
        unused = () if self.grades else ("success_threshold", "timeout_s")
        for name in unused if self.grades or self.ranking is not None else ("world", "threads", *unused):
            if getattr(self, name) != GradingConfig.model_fields[name].default:
                raise UnusedSettingError(
                    name, f"rewards.{name} is for rewards.functions or rewards.judge, and neither is set"
                )
        return self


def read_rubric(path: str | Path) -> Rubric:
    """The rubric in a YAML file. Raises ValueError where it is none."""
    try:
        return Rubric.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"no rubric can be read from {str(path)!r} ({error.strerror}): expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the rubric {path} is not valid YAML: {error}") from None
    except ValueError as error:  # pydantic's
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())  # type: ignore[attr-defined]
        raise ValueError(f"the rubric {path} does not fit ({told}): expected criteria with name and text") from None
