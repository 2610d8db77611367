"""Whole jobs, as the command line and Python call them: train, resume, export."""

from __future__ import annotations

import gc
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from turnwise.agents.decoding import STEERING_FILE
from turnwise.agents.opening import read_examples
from turnwise.agents.templates import dated
from turnwise.algorithms.registry import base_chain
from turnwise.assembly.agent_files import describe_agent
from turnwise.assembly.learners import follow_if_told as follow_if_told
from turnwise.assembly.policies import load_policies
from turnwise.assembly.run import Assembly
from turnwise.assembly.settling import fitted, sampling_of
from turnwise.cloning.cloner import OnProgress
from turnwise.config.files import parse_config
from turnwise.config.schema import RunConfig
from turnwise.errors import unknown
from turnwise.evaluation.report import Report
from turnwise.jsonfile import read_object
from turnwise.models.loading import check_device
from turnwise.models.settings import ORIGIN_FILE, ScratchModelConfig, made_from_scratch
from turnwise.models.steering import Steering
from turnwise.models.vllm import server
from turnwise.models.vllm.install import check_installed
from turnwise.monitoring.mirrors import check_mirrors
from turnwise.runs.checkpoints import CheckpointName, write_text
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import Estimate, paired_difference
from turnwise.training.changes import changed, check_goes_on, differences
from turnwise.training.faults import InterruptedRunError, UpdateMemoryError, storage
from turnwise.training.interrupt import Interrupts
from turnwise.training.observing import Callback, Observer
from turnwise.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Result:
    """What a run reached. ``gain`` is paired by task on the test panel, in success (in return where the world does
    not say what success is).

    It is None without a test panel, where nothing was ``trained`` (the run made no update, and ``after`` is
    ``before``), and where one measurement knows what success is and the other does not. ``seconds`` (wall) and
    ``cpu_seconds`` (process) are of this call, warm start included.
    """

    path: Path
    before: dict[str, Report]
    after: dict[str, Report]
    gain: Estimate | None
    seconds: float
    cpu_seconds: float
    trained: bool = True


class _Clock:
    """Seconds since it was made: on the wall, and of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def wall(self) -> float:
        return time.perf_counter() - self._wall

    def cpu(self) -> float:
        return time.process_time() - self._cpu


def train(
    config: RunConfig,
    out: str | Path,
    observer: Observer | None = None,
    model: tuple[Any, Any] | None = None,
) -> Result:
    """Make a run in ``out``: warm start, measure, train, measure.

    ``model`` is a loaded (model, tokenizer) in the place of the one that the configuration names. Raises ValueError for
    what cannot be run, StoppedRunError where something else ends it (``turnwise.training.faults``). What fails before
    the first checkpoint leaves no folder. Under torchrun the first process returns; the others work for it, and end.
    """
    follow_if_told()
    began = _Clock()
    _prepare(config)
    config = fitted(config)
    with closing(Assembly(config, model)) as assembly:
        run = RunDirectory.create(out, assembly.settled(), assembly.panels.hashes())
        with _kept_once_begun(run), storage(run.path), run.locked():
            return _from_the_start(assembly, run, observer or Callback(), began)


def resume(path: str | Path, observer: Observer | None = None, settings: Sequence[str] = ()) -> Result:
    """Continue a run after its newest sound checkpoint, to the same numbers as an unbroken one.

    ``settings`` (``key.path=value``) change what may change (``turnwise.training.changes``), such as ``num_updates`` of
    a run that is finished; they are kept in its configuration. A run that stopped before its first checkpoint begins
    again. Raises as ``train`` does.
    """
    follow_if_told()
    began = _Clock()
    run = RunDirectory.open(path)
    config = resumed_config(run, settings)
    _prepare(config)
    with storage(run.path), run.locked(), closing(Assembly(config)) as assembly:
        run.check_unchanged(assembly.panels.hashes())
        assembly.check_server()
        if settings:
            _note(run, config)
        if not run.has_checkpoint:
            run.restart(keep_model=config.warmstart is None)  # one that was given is nowhere else
            return _from_the_start(assembly, run, observer or Callback(), began)
        (observer or Callback()).engine(*sampling_of(config))
        with closing(assembly.trainer(run, observer)) as trainer:
            trainer.rewind()
            before = _read_reports(run)
            if not trainer.is_over:
                _set_aside(run)
            return _finish(trainer, before, began)


def new_folder(config: RunConfig) -> Path:
    """The first free ``runs/WORLD-ALGORITHM-sSEED-NUMBER``."""
    world = config.env.id.rpartition("/")[2].lower()
    kind = str(getattr(config.algorithm, "type", type(config.algorithm).__name__)).replace(":", "-")
    stem = f"{world}-{kind}-s{config.seed}"
    number = next(n for n in range(1, 10_000) if not (Path("runs") / f"{stem}-{n}").exists())
    return Path("runs") / f"{stem}-{number}"


def resumed_config(run: RunDirectory, settings: Sequence[str]) -> RunConfig:
    """The configuration that a run goes on with. Raises ValueError for settings that may not change."""
    return parse_config(changed(run.config().model_dump(mode="json"), settings)) if settings else run.config()


def title_of(config: RunConfig) -> str:
    """What a display says of a run: world, algorithm with its bases, seed."""
    return f"turnwise · {config.env.id} · {base_chain(config.algorithm)} · seed {config.seed}"


def _prepare(config: RunConfig) -> None:
    torch.set_num_threads(config.threads)
    check_device(config.device)
    check_mirrors(config.mirrors)
    if config.rollout.backend == "vllm" and config.rollout.vllm.url is None and config.ray is None:
        check_installed()  # a cluster's nodes have what they have


def _check_server(assembly: Assembly) -> None:
    """Raise ValueError where a vLLM server does not answer, or cannot have the model yet."""
    config = assembly.config
    if config.rollout.vllm.url is None:
        return
    server.check(config.rollout.vllm.url, config.agent.max_context_tokens)
    if assembly.model is None and isinstance(config.model, ScratchModelConfig) and not assembly.warmstart.is_cached:
        raise ValueError(
            "rollout.vllm.url: the warm start is yet to make this run's model, so that no server can have it. Make it "
            "with `turnwise warmstart CONFIG --to FOLDER`, of the same configuration, then `turnwise serve-vllm FOLDER`"
        )


def _note(run: RunDirectory, config: RunConfig) -> None:
    """Write changed settings down, once it is certain that the run goes on with them."""
    before, newest = run.config(), run.load("last") if run.has_checkpoint else None
    lengths = [(each.num_updates, each.max_sampled_tokens) for each in (before, config)]
    if newest is not None and lengths[0] != lengths[1]:
        check_goes_on(
            newest.update,
            newest.state["sampled_tokens"],
            num_updates=config.num_updates,
            budget=config.max_sampled_tokens,
            span=config.span,
            rate=config.optimizer,
        )
    if config != before:
        found = differences(before.model_dump(mode="json"), config.model_dump(mode="json"))
        run.change(config, {"after_update": newest.update if newest else 0, "changed": found})


@contextmanager
def _kept_once_begun(run: RunDirectory) -> Iterator[None]:
    """A context that removes the run's folder where an error ends it before the first checkpoint."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError):
        if not run.has_checkpoint:
            run.remove()
        raise


def _from_the_start(assembly: Assembly, run: RunDirectory, observer: Observer, began: _Clock) -> Result:
    assembly.check_sources()  # before it is cloned for long
    assembly.check_grader(run)
    _check_server(assembly)
    observer.engine(*sampling_of(assembly.config))
    if assembly.config.warmstart is not None:
        observer.stage("cached" if assembly.warmstart.is_cached else "clone")
    assembly.make_model(run, observer.cloning)
    with closing(assembly.trainer(run, observer)) as trainer:
        before = trainer.final()
        _write_reports(run, {"before": _plain(before)})
        trainer.save()
        return _finish(trainer, before, began)


def _finish(trainer: Trainer, before: dict[str, Report], began: _Clock) -> Result:
    if not trainer.is_over:
        trainer.observer.stage("train")
    with Interrupts(lambda: trainer.observer.stage("stop")) as interrupts:
        while not trainer.is_over:
            _step(trainer)
            if interrupts.received is not None:
                trainer.save()
                raise InterruptedRunError(
                    f"stopped after update {trainer.finished} of {trainer.settings.num_updates}, which is saved: "
                    f"`turnwise train --resume {trainer.run.path}` goes on",
                    interrupts.received,
                )
    if trainer.settings.keep_checkpoint == "best" and trainer.best.update >= 0:
        trainer.load("best")
    trained = trainer.finished > 0
    after = trainer.final() if trained else before  # without an update it is the same model
    gain = _gain(before["sampled"], after["sampled"]) if before and after and trained else None
    result = Result(trainer.run.path, before, after, gain, began.wall(), began.cpu(), trained)
    measured = {
        "before": _plain(before),
        "after": _plain(after),
        "gain": asdict(gain) if gain else None,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
    }
    _write_reports(trainer.run, measured)
    return result


def _step(trainer: Trainer) -> None:
    """One update. Where it does not fit into memory: again, once in a run, with microbatches half as big.

    Where several ranks learn, the others are in the middle of the update: the run ends.
    """
    try:
        trainer.step()
        return
    except UpdateMemoryError as error:
        if trainer.halved or any(side.leader.leads for side in trainer.sides):
            raise
        warnings.warn(f"{error}. Going on with half of optimizer.microbatch_tokens", stacklevel=2)
    gc.collect()  # what the failed update held; its frames are gone here
    torch.cuda.empty_cache()
    trainer.rewind()
    trainer.halve_microbatches()


def _gain(before: Report, after: Report) -> Estimate | None:
    """Paired by task, over the tasks that have a sound episode on both sides.

    None where there are none, and where one side has successes and the other returns.
    """
    if (before.success is None) != (after.success is None):
        return None
    pairs = [(b, a) for b, a in zip(before.outcomes, after.outcomes, strict=True) if b and a]
    return paired_difference([b for b, _ in pairs], [a for _, a in pairs]) if pairs else None


def warmstart(
    config: RunConfig, on_progress: OnProgress | None = None, *, fresh: bool = False, to: str | Path | None = None
) -> Path:
    """The folder of the warm-started model that ``config`` asks for; cloned unless the cache holds it.

    With ``to`` a copy there, with ``agent.json`` beside it as ``export`` writes it, without a steering vector. Raises
    ValueError where the configuration has no warmstart section, the environment no expert, or ``to`` holds something.
    """
    if to is not None:
        check_new(Path(to), "warmstart")
    with closing(Assembly(config)) as assembly:
        folder = assembly.warmstart.make(on_progress, fresh=fresh)
        if to is None:
            return folder
        shutil.copytree(folder, to, dirs_exist_ok=True)
        describe_agent(Path(to), assembly.agent.unsteered, assembly.examples)
    return Path(to)


def has_warmstart(config: RunConfig) -> bool:
    """Whether the cache holds the model that ``config`` asks for, so that ``warmstart`` need not clone."""
    with closing(Assembly(config)) as assembly:
        return assembly.warmstart.is_cached


def check_new(folder: Path, who: str) -> None:
    """Raises ValueError for a folder that holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: {who} writes a new one")


def export(
    path: str | Path,
    out: str | Path,
    *,
    adapter: bool = False,
    checkpoint: CheckpointName | None = None,
    side: str | None = None,
) -> Path:
    """Write a run's policy as an ordinary Hugging Face folder, or as its peft ``adapter`` alone.

    Beside it goes ``agent.json``: how the agent is shown the world, which ``evaluate`` reads. The weights of a steered
    run do not hold its vector, which goes beside them, with a warning. ``side`` is the role whose policy is meant,
    where a game has one for each. Raises ValueError where the run, checkpoint, side or vector is missing, or ``out`` is
    a folder with something in it.
    """
    target, run = Path(out), RunDirectory.open(path)
    check_new(target, "export")
    config = run.config()
    with closing(Assembly(config)) as assembly:
        sides = assembly.side_names
    chosen = sides[0] if side is None and len(sides) == 1 else side
    if chosen not in sides:
        raise unknown("side", side, sides, str(path))
    if (steering := config.agent.decoding.steering) is not None:
        Steering.read(steering.file)
        warnings.warn(
            f"{run.path} is a run of a steered policy, and the weights alone are another one: `turnwise evaluate "
            f"{target}` and `turnwise serve` steer them by the {STEERING_FILE} beside them, and nobody else does",
            stacklevel=2,
        )
    policy = load_policies(run, sides, checkpoint or config.keep_checkpoint, device="cpu")[chosen]
    shown = policy.tokenizer.get_chat_template()
    if (fixed := dated(shown, config.agent.date)) != shown:  # elsewhere, too, it shows the day of the training
        policy.tokenizer.chat_template = fixed
    if adapter:
        policy.save_adapter(target)
    else:
        policy.save_merged(target)
    describe_agent(target, config.agent, read_examples(run.path) or ())
    origin = run.model_path if run.model_path.exists() else Path(getattr(config.model, "path", run.model_path))
    if made_from_scratch(origin):  # what is trained from here on keeps to the settings of a small model
        shutil.copy(origin / ORIGIN_FILE, target / ORIGIN_FILE)
    return target


def _write_reports(run: RunDirectory, reports: dict[str, Any]) -> None:
    write_text(run.evaluation_path, json.dumps(reports, indent=1))


def _set_aside(run: RunDirectory) -> None:
    """Keep what was measured after fewer updates as ``earlier``: it is not of the model that trains on."""
    found = read_object(run.evaluation_path) if run.evaluation_path.exists() else {}
    if "after" in found:
        before = {"before": found.pop("before", {})}
        _write_reports(run, {**before, "earlier": found})


def _plain(reports: dict[str, Report]) -> dict[str, Any]:
    return {name: asdict(report) for name, report in reports.items()}


def _read_reports(run: RunDirectory) -> dict[str, Report]:
    if not run.evaluation_path.exists():
        return {}
    raw = read_object(run.evaluation_path).get("before", {})
    try:
        return {name: Report.from_plain(report) for name, report in raw.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{run.evaluation_path} is damaged, or not of this version of turnwise ({error!r})") from None
