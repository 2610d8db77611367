"""Warm start: a model cloned from a world's expert, before RL begins.

The model is made once and kept in the cache, under a hash of everything it depends on. Of a model that is cloned with
LoRA the cache holds the adapter alone, which names its base.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.chat import ChatFormat
from turnwise.agents.decoding import DecodingConfig
from turnwise.agents.episode import SuccessRule
from turnwise.agents.opening import Example
from turnwise.agents.prompts import AgentConfig
from turnwise.cache import cache_dir
from turnwise.cloning.cloner import MISSES, Measure, OnProgress, Progress, clone
from turnwise.cloning.contents import contents
from turnwise.cloning.demonstrations import demonstrations, shown_texts
from turnwise.cloning.losses import ByPolicy, CloningRow, Whole
from turnwise.cloning.partial import Partial
from turnwise.cloning.rounds import Ground, Learner, Rounds, shared_out
from turnwise.cloning.rows import Rows, Stored, expert_rows, takeover_rows
from turnwise.cloning.selection import TokenSelection
from turnwise.cloning.settings import EXPERT, WarmstartConfig
from turnwise.envs.interface import instructions_of, world_name
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import TextEnv
from turnwise.models.drawing import DRAW
from turnwise.models.kinds import check_length
from turnwise.models.loading import adapter_place, check_trainable, save_model
from turnwise.models.policy import Policy
from turnwise.models.precision import chosen_dtype
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import (
    ORIGIN_FILE,
    ModelConfig,
    PretrainedModelConfig,
    ScratchModelConfig,
    made_from_scratch,
)
from turnwise.seeds import mix
from turnwise.trajectory import Trajectory

COURSE_FILE = "cloning.jsonl"
"""In the folder of a clone: a line for each optimizer step, with its loss and how each kind of token was predicted."""

TAKEOVERS_FILE = "takeovers.jsonl.gz"
"""In the folder of a clone: the episodes of its rounds of takeovers, as trajectories."""

FORMAT = 3  # 2: Muon in float32; 3: the mistakes and the thoughts of WebShop's experts
"""Raise whenever the same configuration may give another model."""


_ADDED: Mapping[str, Any] = {
    **{name: AgentConfig.model_fields[name].default for name in ("examples_split", "examples_seed")},
    **{"examples": 0, "constrained": False, "thought_tokens": None},
    **{"admissible_format": "commas", "template": {}, "thoughts": "keep"},
    **{"tool_calls": "auto", "tools_in": "template"},
    "decoding": DecodingConfig().model_dump(exclude={"steering"}),
}
"""Settings of the agent that came after FORMAT, where they say what was so before: they leave a model's key alone."""

_ADDED_TO_SCRATCH: Mapping[str, Any] = {"rope_theta": 10_000.0, "induction_heads": False, "tools": False}
"""The same of a model from nothing."""


@dataclass(frozen=True, slots=True)
class Cloning:
    """Everything that decides a warm-started model.

    ``env`` is the world that the agent is trained for. ``content`` is a hash of what is cloned, where it is stored.
    ``described`` is the whole configuration as JSON values; it is stored beside the model for the reader, and is not
    part of ``key``.
    """

    settings: WarmstartConfig
    model: ModelConfig
    agent: AgentConfig
    env: EnvConfig
    seed: int
    device: str
    described: Mapping[str, Any]
    examples: tuple[Example, ...] = ()
    content: str = ""

    @property
    def key(self) -> str:
        """16 hex digits over environment, model, agent, cloning settings and seed, and the user's files they name."""
        parts = {
            "format": FORMAT,
            **({"draw": DRAW} if _samples(self.settings) else {}),
            "env": [self.env.id, self.env.kwargs],
            "model": self._model_parts(),
            "agent": self._shown(),
            "warmstart": _parts(self.settings),
            "success_threshold": self.env.success_threshold,
            "seed": self.seed,
            **({"content": self.content} if self.content else {}),
            **({"files": files} if (files := self._files()) else {}),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _files(self) -> dict[str, str]:
        """Hashes of the user's files that the settings name: of worlds, and of a model's folder."""
        worlds = {self.env.id: self.env.kwargs}
        if self.settings.env is not None:
            worlds[self.settings.env] = self.settings.env_kwargs
        return contents(worlds, self.model.path if isinstance(self.model, PretrainedModelConfig) else None)

    def _model_parts(self) -> dict[str, Any]:
        """The model's settings, without those that change nothing in the clone."""
        if isinstance(self.model, ScratchModelConfig):
            return _without(_ADDED_TO_SCRATCH, self.model.model_dump())
        goes_on = {} if adapter_place(self.model.path) is None else {"adapter": self.model.adapter}
        computed = {"dtype": chosen_dtype(self.model.dtype, self.device)}
        return {**self.model.model_dump(exclude={"adapter", "gradient_checkpointing"}), **computed, **goes_on}

    def _shown(self) -> dict[str, Any]:
        """The agent's settings, without those that are newer than the format, where they say what was so before."""
        return _without(_ADDED, self.agent.model_dump(exclude={"decoding": {"steering"}}))  # a clone is not steered

    @property
    def rule(self) -> SuccessRule:
        return SuccessRule(self.env.success_threshold)


def _without(added: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of ``added`` that say what was so before."""
    return {name: value for name, value in found.items() if name not in added or value != added[name]}


_LATER = (
    *("lora", "microbatch_tokens", "source", "max_per_task", "num_steps", "takeovers"),
    *("token_share", "entropy_coef", "own_share"),
)


def _samples(settings: WarmstartConfig) -> bool:
    """Whether what the model samples decides when it ends, or what is learned."""
    return settings.stop_success is not None or settings.takeovers is not None


def _parts(settings: WarmstartConfig) -> dict[str, Any]:
    """The settings that decide what is cloned. Microbatches decide memory, so that any size of them counts as one."""
    found = settings.model_dump(exclude=_unset(settings))
    found["cooldown_share"] = settings.cooldown
    return found if settings.microbatch_tokens is None else {**found, "microbatch_tokens": 1024}


def _unset(settings: WarmstartConfig) -> set[str]:
    """Settings that came later than the first models in the cache, where they change nothing in what is cloned."""
    usual = WarmstartConfig()
    unset = {name for name in _LATER if getattr(settings, name) == getattr(usual, name)}
    return unset if settings.source == EXPERT else (unset - {"max_per_task"}) | {"source"}  # its content counts


def cached_model(cloning: Cloning) -> Path | None:
    """The folder of the cloned model, if it was made before."""
    folder = _folder(cloning)
    return folder if folder.exists() else None


def warmstart(
    cloning: Cloning,
    worlds: Sequence[Ground],
    measure: Measure,
    on_progress: OnProgress | None = None,
    *,
    stored: Stored | None = None,
    learner: Learner | None = None,
    resumable: bool = True,
) -> Path:
    """Clone experts into a model folder in the cache; returns the folder.

    ``worlds`` are those whose experts are cloned, the run's own last.
    ``measure(model, tokenizer)`` returns the success that is compared with ``stop_success``. ``stored`` is cloned in
    the place of the expert. ``learner`` plays in rounds of takeovers, where the settings ask for them. A warm start
    that was interrupted goes on where it was saved, if it is ``resumable``. Raises ValueError where a world has no
    such expert, the model cannot be trained, or the expert cannot take over.
    """
    world = worlds[0].world
    cloned, tokenizer = _beginning(cloning, worlds)
    folder, partial = _folder(cloning), _partial(cloning) if resumable else None
    rounds = None if learner is None else _rounds(cloning, tokenizer, worlds, learner)
    progress, lines = clone(
        cloned,
        tokenizer,
        _expert_rows(cloning, tokenizer, worlds) if stored is None else stored.rows(tokenizer, world, cloning.examples),
        cloning.settings,
        measure=measure,
        on_progress=on_progress,
        partial=partial,
        rounds=rounds,
    )
    tasks = None if stored is None or stored.tasks is None else [task.key for task in stored.tasks]
    _store(folder, cloned, tokenizer, cloning, _Made(progress, lines, tasks, None if rounds is None else rounds.path))
    forget(cloning)
    return folder


def forget(cloning: Cloning) -> None:
    """Drop what an interrupted warm start has left."""
    _partial(cloning).remove()
    _takeovers(cloning).unlink(missing_ok=True)


def _partial(cloning: Cloning) -> Partial:
    folder = _folder(cloning)
    return Partial(folder.with_name(f"{folder.name}.partial.safetensors"))


def _takeovers(cloning: Cloning) -> Path:
    """Where the episodes of rounds are kept until the clone's folder is made."""
    folder = _folder(cloning)
    return folder.with_name(f"{folder.name}.{TAKEOVERS_FILE}")


def _rounds(cloning: Cloning, tokenizer: Any, worlds: Sequence[Ground], learner: Learner) -> Rounds | None:
    settings, agent = cloning.settings, cloning.agent
    if settings.takeovers is None:
        return None
    chat = ChatFormat.of(tokenizer, agent)

    def rows_of(episode: Trajectory, world: TextEnv) -> list[CloningRow]:
        weight = settings.observation_weight
        return takeover_rows(episode, chat, agent, instructions_of(world), weight, cloning.examples)

    return Rounds(worlds, learner, settings, cloning.seed, cloning.rule, rows_of, _takeovers(cloning))


def _expert_rows(cloning: Cloning, tokenizer: Any, worlds: Sequence[Ground]) -> Rows:
    chat = ChatFormat.of(tokenizer, cloning.agent)
    rule, examples = cloning.rule, cloning.examples
    first, *others = [
        expert_rows(of.world, chat, cloning.agent, cloning.settings, cloning.seed, rule, examples) for of in worlds
    ]
    if not others:
        return first
    return _mixed(worlds, [first, *others], mix("worlds", cloning.seed))


def _mixed(worlds: Sequence[Ground], rows: Sequence[Rows], seed: int) -> Rows:
    """Demonstrations of several worlds, each drawn with the share of its world.

    Raises ValueError where those of one do not fit into the context: it would vanish without a word.
    """
    rng, shares, missed = np.random.default_rng(seed), [of.share for of in worlds], [0] * len(worlds)
    while True:
        place = int(rng.choice(len(worlds), p=shares))
        made = next(rows[place])
        missed[place] = 0 if made else missed[place] + 1
        if missed[place] >= MISSES:
            raise ValueError(
                f"no demonstration of {world_name(worlds[place].world)} fits into the context: raise "
                "agent.max_context_tokens"
            )
        yield made


def _beginning(cloning: Cloning, worlds: Sequence[Ground]) -> tuple[Whole | ByPolicy, Any]:
    """What is cloned into, and its tokenizer."""
    settings, model = cloning.settings, cloning.model
    all_tokens = settings.token_share == 1
    selection = None if all_tokens else TokenSelection(settings.token_share, settings.entropy_coef)
    if isinstance(model, ScratchModelConfig):
        made, tokenizer = new_scratch_model(cloning, model, worlds)
        return Whole(made, selection), tokenizer
    policy = begin_policy(cloning, model)
    if settings.lora is None and settings.microbatch_tokens is None:
        return Whole(policy.model, selection), policy.tokenizer
    return ByPolicy(policy, settings.microbatch_tokens, selection), policy.tokenizer


def begin_policy(cloning: Cloning, model: PretrainedModelConfig) -> Policy:
    """A pretrained model before cloning, with fresh adapters where ``warmstart.lora`` asks for them.

    Raises ValueError where the model cannot be trained like this.
    """
    settings = cloning.settings
    if adapter_place(model.path) is not None:
        if settings.lora is None:
            raise ValueError(f"{model.path} is an adapter, and warmstart.lora=null clones all weights: keep LoRA")
        if model.adapter == "merge":
            raise ValueError(
                f"{model.path} is an adapter: a warm start trains it on (model.adapter=continue) or a new one above it "
                "(model.adapter=frozen). Merged, it would be in no folder"
            )
    policy = Policy.load(
        model.path,
        lora=settings.lora,
        dtype=model.dtype,
        device=cloning.device,
        seed=cloning.seed,
        gradient_checkpointing=model.gradient_checkpointing,
        use=model.adapter,
    )
    check_length(policy.sampler.config, cloning.agent.max_context_tokens)
    check_trainable(policy.sampler, model.path)
    return policy


def new_scratch_model(cloning: Cloning, model: ScratchModelConfig, worlds: Sequence[Ground]) -> tuple[Any, Any]:
    """A model with random weights and a tokenizer of the worlds' words, before cloning."""
    texts = _texts(cloning, worlds)
    tokenizer = train_tokenizer(
        texts, model.vocab_size, model.num_phrases, split_digits=model.split_digits, tools=model.tools
    )
    length = max(4096, cloning.agent.max_context_tokens)
    return new_model(model, tokenizer, seed=cloning.seed, max_length=length).to(cloning.device), tokenizer


def _texts(cloning: Cloning, worlds: Sequence[Ground]) -> list[str]:
    """Texts of demonstrations for training a tokenizer: the worlds' words, as often as they occur."""
    texts: list[str] = []
    for of, num in zip(worlds, shared_out(cloning.settings.tokenizer_episodes, worlds), strict=True):
        source = demonstrations(of.world, cloning.settings, mix("tokenizer", cloning.seed), cloning.rule)
        for shown in islice(source, num):
            texts += shown_texts(shown, cloning.agent)
    return texts


def _folder(cloning: Cloning) -> Path:
    return cache_dir() / "warmstart" / cloning.key


@dataclass(frozen=True, slots=True)
class _Made:
    """How a clone came to be.

    The last progress, a record of each step, the keys of its stored tasks, if known, and the file of its takeovers.
    """

    progress: Progress
    lines: list[dict[str, Any]]
    tasks: list[str] | None
    takeovers: Path | None


def _store(folder: Path, cloned: Whole | ByPolicy, tokenizer: Any, cloning: Cloning, made: _Made) -> None:
    """Write the folder under another name, then rename it: an interrupted warm start leaves no incomplete folder."""
    partial_folder = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    if isinstance(cloned, ByPolicy) and cloned.policy.lora is not None:
        cloned.policy.save_adapter(partial_folder)
    else:
        save_model(cloned.model, tokenizer, partial_folder)
    about = {
        "from_scratch": isinstance(cloning.model, ScratchModelConfig) or made_from_scratch(cloning.model.path),
        "config": dict(cloning.described),
        "progress": asdict(made.progress),
        "tasks": made.tasks,
    }
    (partial_folder / ORIGIN_FILE).write_text(json.dumps(about, indent=1))
    (partial_folder / COURSE_FILE).write_text("".join(json.dumps(line) + "\n" for line in made.lines))
    if made.takeovers is not None:
        shutil.copy(made.takeovers, partial_folder / TAKEOVERS_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)
