"""Whole jobs, as the command line and Python call them: train, resume, evaluate, export."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from turnwise.agents.collector import Collector, OnEpisode, SuccessRule
from turnwise.agents.engine import SlotEngine
from turnwise.agents.policy import Policy, check_device, load_model
from turnwise.agents.prompts import AgentConfig, ChatFormat
from turnwise.agents.scripted import Agent, RandomAgent, expert_of
from turnwise.config import EnvConfig, PretrainedModelConfig, RunConfig, parse_section
from turnwise.envs.tasks import TextEnv, make_env, maker, panel
from turnwise.evaluation import Report, evaluate_agent, evaluate_policy, write_json
from turnwise.rundir import CheckpointName, RunDirectory
from turnwise.statistics import Estimate, paired_difference
from turnwise.trainer import TEST_KEY, Observer, Silent, Trainer, open_panels
from turnwise.warmstart import warmstart

AGENT_FILE = "agent.json"


@dataclass(frozen=True, slots=True)
class Result:
    """What a run reached. ``gain`` is paired by task on the test panel; None where there was no test panel.

    ``seconds`` (wall) and ``cpu_seconds`` (process) are of this call, warm start included.
    """

    path: Path
    before: dict[str, Report]
    after: dict[str, Report]
    gain: Estimate | None
    seconds: float
    cpu_seconds: float


class _Clock:
    """Seconds since it was made: on the wall, and of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def wall(self) -> float:
        return time.perf_counter() - self._wall

    def cpu(self) -> float:
        return time.process_time() - self._cpu


def train(config: RunConfig, out: str | Path, observer: Observer | None = None) -> Result:
    """Make a run in ``out``: warm start, measure, train, measure. Raises ValueError for what cannot be run."""
    observer = observer or Silent()
    began = _Clock()
    torch.set_num_threads(config.threads)
    check_device(config.device)
    run = RunDirectory.create(out, config, open_panels(config).hashes())
    if config.warmstart is not None:
        observer.stage("clone")
        shutil.copytree(warmstart(config, observer.cloning), run.model_path)
    trainer = Trainer(config, run, load_policy(run), observer)
    observer.stage("measure")
    before = trainer.final()
    write_json(run.evaluation_path, {"before": _plain(before)})
    trainer.save("last")
    return _finish(trainer, before, began)


def resume(path: str | Path, observer: Observer | None = None) -> Result:
    """Continue a run after its last checkpoint, to the same numbers as an unbroken one."""
    observer = observer or Silent()
    began = _Clock()
    run = RunDirectory.open(path)
    torch.set_num_threads(run.config().threads)
    if not run.has("last"):
        raise ValueError(f"{run.path} stopped before training began and has no checkpoint: start a new run")
    run.cut(run.load("last").update)
    trainer = Trainer(run.config(), run, load_policy(run), observer)
    trainer.load("last")
    return _finish(trainer, _read_reports(run), began)


def _finish(trainer: Trainer, before: dict[str, Report], began: _Clock) -> Result:
    trainer.observer.stage("train")
    while trainer.finished < trainer.config.num_updates:
        trainer.step()
    if trainer.config.keep_checkpoint == "best" and trainer.run.has("best"):
        trainer.load("best")
    trainer.observer.stage("measure")
    after = trainer.final()
    gain = _gain(before["sampled"], after["sampled"]) if before and after else None
    result = Result(trainer.run.path, before, after, gain, began.wall(), began.cpu())
    measured = {
        "before": _plain(before),
        "after": _plain(after),
        "gain": asdict(gain) if gain else None,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
    }
    write_json(trainer.run.evaluation_path, measured)
    return result


def _gain(before: Report, after: Report) -> Estimate | None:
    """Paired by task, over the tasks that have a sound episode on both sides."""
    pairs = [(b, a) for b, a in zip(before.outcomes, after.outcomes, strict=True) if b and a]
    return paired_difference([b for b, _ in pairs], [a for _, a in pairs]) if pairs else None


def load_policy(run: RunDirectory, checkpoint: CheckpointName | None = None, device: str | None = None) -> Policy:
    """The policy of a run: its base model with fresh adapters, or as a checkpoint left it.

    ``device`` None is the run's own.
    """
    config = run.config()
    pretrained = config.model if isinstance(config.model, PretrainedModelConfig) else None
    if run.model_path.exists():
        path: str | Path = run.model_path
    elif pretrained is not None:
        path = pretrained.path
    else:
        raise ValueError(f"{run.path} has no model folder: its warm start did not finish; start a new run")
    model, tokenizer = load_model(
        path, dtype=pretrained.dtype if pretrained else "float32", device=device or config.device
    )
    policy = Policy(
        model,
        tokenizer,
        lora=config.lora,
        seed=config.seed,
        gradient_checkpointing=pretrained.gradient_checkpointing if pretrained else False,
    )
    if checkpoint is not None:
        saved = run.load(checkpoint)
        policy.load_trainable_state(saved.policy_tensors())
        policy.sync(saved.update)
    return policy


def evaluate(
    target: str | Path,
    *,
    env: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    split: str | None = None,
    tasks: int | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    checkpoint: CheckpointName | None = None,
    agent: Mapping[str, Any] | None = None,
    success_threshold: float | None = None,
    num_slots: int = 64,
    device: str = "cpu",
    seed: int | None = None,
    on_episode: OnEpisode | None = None,
) -> Report:
    """Success on a fixed panel: every task ``samples`` times, in panel order.

    ``target`` is a run folder, a model folder or hub name, ``random``, ``expert:searching`` or ``expert:knowing``.
    A run brings its own environment, agent settings, test panel, seed, and the checkpoint that it names best or last;
    an exported folder brings its agent settings; ``agent`` changes some of them. ``temperature`` 0 is greedy. Raises
    ValueError for a target, environment or split that is not there.
    """
    run = RunDirectory.open(target) if (Path(target) / "config.yaml").is_file() else None
    config = run.config() if run else None
    same_env = config is not None and (env is None or env == config.env.id)
    where = config.env if config is not None and same_env else EnvConfig(id=env or EnvConfig().id)
    if env_kwargs:
        where = where.model_copy(update={"kwargs": {**where.kwargs, **env_kwargs}})
    if success_threshold is not None:
        where = where.model_copy(update={"success_threshold": success_threshold})
    world = make_env(where.id, **where.kwargs)
    if config is not None and same_env and split in (None, config.eval.test_split):
        split, tasks = config.eval.test_split, tasks or config.eval.test_tasks
    whole = panel(world, split or "test")
    chosen = whole if tasks is None else whole[:tasks]
    rule = SuccessRule(where.success_threshold)
    scripted = scripted_agent(str(target), world)
    if scripted is not None:
        if agent or checkpoint:
            raise ValueError(f"{target} plays without a model: agent settings and checkpoints do not apply")
        report, _ = evaluate_agent(
            world,
            scripted,
            chosen,
            name=str(target),
            samples=samples,
            success=rule,
            on_episode=on_episode,
        )
        return report
    settings = _agent_settings(target, config, agent or {})
    if run is not None and config is not None:
        policy = load_policy(run, checkpoint or config.keep_checkpoint, device)
    else:
        policy = Policy.load(target, lora=None, device=device)
    chat = ChatFormat(policy.tokenizer, settings.system)
    engine = SlotEngine(
        policy.sampler, num_slots=num_slots, max_length=settings.max_context_tokens, end_ids=chat.end_ids
    )
    if seed is None:
        seed = config.seed if config is not None else 0
    collector = Collector(maker(where.id, **where.kwargs), engine, chat, settings, seed=seed, success=rule)
    report, _ = evaluate_policy(
        collector,
        chosen,
        name=str(target),
        temperature=temperature,
        samples=samples,
        max_tokens=settings.max_reply_tokens,
        top_p=top_p,
        top_k=top_k,
        key=TEST_KEY,
        on_episode=on_episode,
    )
    return report


def _agent_settings(target: str | Path, config: RunConfig | None, changes: Mapping[str, Any]) -> AgentConfig:
    """A run's, an exported folder's, or the default settings, with ``changes``; ValueError for unknown ones."""
    saved = Path(target) / AGENT_FILE
    if config is not None:
        known = config.agent.model_dump()
    else:
        known = json.loads(saved.read_text()) if saved.is_file() else {}
    return parse_section(AgentConfig, {**known, **changes}, "agent")


def scripted_agent(name: str, env: TextEnv) -> Any:
    """A factory ``seed -> Agent`` for ``random``, ``expert`` and ``expert:KIND``; None for any other name."""
    if name == "random":
        return RandomAgent
    kind, _, which = name.partition(":")
    if kind != "expert":
        return None

    def make(seed: int) -> Agent:
        return expert_of(env, which or "searching", seed)

    return make


def export(
    path: str | Path, out: str | Path, *, adapter: bool = False, checkpoint: CheckpointName | None = None
) -> Path:
    """Write a run's policy as an ordinary Hugging Face folder, or as its peft ``adapter`` alone.

    Beside it goes ``agent.json``: how the agent is shown the world, which ``evaluate`` reads. Raises ValueError where
    the run or checkpoint is missing, or ``out`` is a folder with something in it.
    """
    target, run = Path(out), RunDirectory.open(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder: export writes a new one")
    policy = load_policy(run, checkpoint or run.config().keep_checkpoint, device="cpu")
    if adapter:
        policy.save_adapter(target)
    else:
        policy.save_merged(target)
    (target / AGENT_FILE).write_text(run.config().agent.model_dump_json(indent=1))
    return target


def _plain(reports: dict[str, Report]) -> dict[str, Any]:
    return {name: asdict(report) for name, report in reports.items()}


def _read_reports(run: RunDirectory) -> dict[str, Report]:
    if not run.evaluation_path.exists():
        return {}
    raw = json.loads(run.evaluation_path.read_text()).get("before", {})
    return {name: Report.from_plain(report) for name, report in raw.items()}
