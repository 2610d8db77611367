"""From an environment's expert to a model folder: made once, cached by the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.prompts import ChatFormat
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.assembly.players import AGENT_FILE, opponents
from turnwise.cloning.cloner import OnProgress, Progress, clone, demonstrations
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.schema import GameConfig, RunConfig
from turnwise.envs.cache import cache_dir
from turnwise.envs.tasks import TextEnv, closed_after, panel
from turnwise.evaluation.report import evaluate_policy
from turnwise.models.drawing import DRAW
from turnwise.models.engine import SlotEngine
from turnwise.models.loading import check_length, check_trainable, end_ids, load_model, save_model
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import ORIGIN_FILE, ScratchModelConfig, made_from_scratch
from turnwise.seeds import mix
from turnwise.trajectory import Task

FORMAT = 1
"""Raise whenever the same configuration may give another model."""

_STOP_KEY = 1 << 42


def warmstart(
    config: RunConfig, on_progress: OnProgress | None = None, *, fresh: bool = False, to: str | Path | None = None
) -> Path:
    """The folder of the warm-started model that ``config`` asks for; trains it unless the cache holds it.

    With ``to`` a copy there, with ``agent.json`` beside it as ``export`` writes it. Raises ValueError where the
    configuration has no warmstart section, the environment no expert, or ``to`` holds something.
    """
    if to is None:
        return _cached(config, on_progress, fresh)
    check_new(Path(to), "warmstart")
    shutil.copytree(_cached(config, on_progress, fresh), to, dirs_exist_ok=True)
    (Path(to) / AGENT_FILE).write_text(config.agent.model_dump_json(indent=1))
    return Path(to)


def check_new(folder: Path, who: str) -> None:
    """Raises ValueError for a folder that holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: {who} writes a new one")


def _cached(config: RunConfig, on_progress: OnProgress | None, fresh: bool) -> Path:
    if config.warmstart is None:
        raise ValueError("this configuration has no `warmstart:` section: nothing to clone")
    folder = cache_dir() / "warmstart" / warmstart_key(config)
    if folder.exists() and not fresh:
        return folder
    with closed_after(config.demonstration_env()) as env, closed_after(config.env.make()) as measured:
        model, tokenizer = start_model(config, env)
        progress = clone(
            model,
            tokenizer,
            env,
            config.agent,
            config.warmstart,
            seed=config.seed,
            rule=SuccessRule(config.env.success_threshold),
            measure=partial(_success, config, panel(measured, config.warmstart.stop_split)),
            on_progress=on_progress,
        )
    _store(folder, model, tokenizer, config, progress)
    return folder


def warmstart_key(config: RunConfig) -> str:
    """16 hex digits over environment, model, agent, cloning settings and seed."""
    measured = config.warmstart is not None and config.warmstart.stop_success is not None  # sampled success ends it
    parts = {
        "format": FORMAT,
        **({"draw": DRAW} if measured else {}),
        "env": [config.env.id, config.env.kwargs],
        "model": config.model.model_dump(),
        "agent": config.agent.model_dump(),
        "warmstart": config.warmstart.model_dump() if config.warmstart else None,
        "success_threshold": config.env.success_threshold,
        "seed": config.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def start_model(config: RunConfig, env: TextEnv) -> tuple[Any, Any]:
    """Model and tokenizer before cloning: random weights, or the pretrained ones."""
    if not isinstance(config.model, ScratchModelConfig):
        found = load_model(config.model.path, dtype=config.model.dtype, device=config.device)
        check_length(found[0].config, config.agent.max_context_tokens)
        check_trainable(found[0], config.model.path)
        return found
    assert config.warmstart is not None
    texts = _texts(env, config.warmstart, config.seed, SuccessRule(config.env.success_threshold))
    model = config.model
    tokenizer = train_tokenizer(texts, model.vocab_size, model.num_phrases, split_digits=model.split_digits)
    length = max(4096, config.agent.max_context_tokens)
    return new_model(model, tokenizer, seed=config.seed, max_length=length).to(config.device), tokenizer


def _texts(env: TextEnv, config: WarmstartConfig, seed: int, rule: SuccessRule) -> list[str]:
    """Text of demonstrations, the world's words in their natural shares."""
    source = demonstrations(env, config, mix("tokenizer", seed), rule)
    texts: list[str] = []
    for _ in range(config.tokenizer_episodes):
        shown = next(source)
        texts += [*shown.observations, *shown.actions]
    return texts


def _success(config: RunConfig, tasks: Sequence[Task], model: Any, tokenizer: Any) -> float:
    """Sampled success (T = 1) of the model being cloned on the first ``stop_tasks`` of the stopping panel.

    A quarter of them is enough to see that a model is far from the goal.
    """
    assert config.warmstart is not None
    chat = ChatFormat(tokenizer, config.agent.system, date=config.agent.date, end_ids=end_ids(model))
    engine = SlotEngine(
        model,
        num_slots=config.rollout.num_slots,
        max_length=config.agent.max_context_tokens,
        end_ids=chat.end_ids,
        threads=config.rollout.threads,
    )
    game = config.game or GameConfig()
    with closed_after(config.env.make()) as world:
        others = opponents(game.eval_opponent, world, num_slots=config.rollout.num_slots)
    collector = Collector(
        config.env.make,
        Seating({"": ModelAgent(engine, chat, config.agent)}, others),
        seed=config.seed,
        success=SuccessRule(config.env.success_threshold),
    )
    with closing(collector):
        return _rate(config, config.warmstart, collector, tasks)


def _rate(config: RunConfig, settings: WarmstartConfig, collector: Collector, tasks: Sequence[Task]) -> float:
    """The measurement's success, or mean return where success is unknown."""
    assert settings.stop_success is not None
    rate = 0.0
    for num in (max(1, settings.stop_tasks // 4), settings.stop_tasks):
        report, _ = evaluate_policy(
            collector,
            tasks[:num],
            name="warmstart",
            max_tokens=config.agent.max_reply_tokens,
            key=_STOP_KEY,
        )
        if why := report.too_many_errors(config.eval.max_error_share):
            raise ValueError(why)
        rate = report.success.value if report.success else report.mean_return
        if rate < settings.stop_success - 0.15:
            break
    return rate


def _store(folder: Path, model: Any, tokenizer: Any, config: RunConfig, progress: Progress) -> None:
    """Write beside, then rename: an interrupted warm start leaves no half folder."""
    partial_folder = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    save_model(model, tokenizer, partial_folder)
    about = {
        "from_scratch": isinstance(config.model, ScratchModelConfig) or made_from_scratch(config.model.path),
        "config": config.model_dump(mode="json"),
        "progress": asdict(progress),
    }
    (partial_folder / ORIGIN_FILE).write_text(json.dumps(about, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)
