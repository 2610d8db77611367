"""The targets of an evaluation: what is asked, and which panel each is measured on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnwise.agents.chat_client import REACHED, EndpointConfig
from turnwise.agents.endpoint import Endpoint
from turnwise.agents.episode import check_threshold
from turnwise.agents.seating import AnyAgent, ModelAgent, Seating
from turnwise.assembly.players import check_player
from turnwise.assembly.policies import WhichCheckpoint, open_run
from turnwise.config.checks import check_places
from turnwise.config.files import changed_grading, parse_section
from turnwise.config.sections import EvalConfig, EvaluationOverrides, GameConfig, RayConfig
from turnwise.envs.interface import Panel
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import closed_after, panel
from turnwise.errors import UnusedSettingError
from turnwise.evaluation.contenders import settings_of, start_of
from turnwise.evaluation.overlap import overlap_with
from turnwise.grading.settings import GradingConfig
from turnwise.models.drawing import DRAW
from turnwise.models.engine import Sampling
from turnwise.runs.directory import RunDirectory
from turnwise.shards.ray_actors import check_installed
from turnwise.trajectory import Task


class Overrides(EvaluationOverrides):
    """What ``turnwise evaluate`` may set beside its options."""

    endpoint: EndpointConfig = EndpointConfig()


@dataclass(frozen=True)
class Asked:
    """What an evaluation is asked besides its targets. None takes the run's own setting, or else the default."""

    env: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    tasks: int | None = None
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False  # beside sampling
    checkpoint: WhichCheckpoint | None = None
    agent: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, Any] = field(default_factory=dict)  # GradingConfig's, over the run's own
    success_threshold: float | None = None
    env_where: Mapping[str, Any] = field(default_factory=dict)  # EnvConfig's process and time limits
    num_slots: int = 64
    shards: int = 1
    ray: RayConfig | None = None  # where shards are, if not in processes of this machine
    env_threads: int = 0
    device: str = "cpu"
    seed: int | None = None
    opponent: str | None = None
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    max_error_share: float | None = None

    def __post_init__(self) -> None:
        for name in ("tasks", "samples", "num_slots"):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, int) or given < 1):
                raise ValueError(f"{name}={given!r}: expected a whole number of at least 1")
        check_places(self.shards, self.ray, self.device)
        if self.ray is not None:
            check_installed()
            if self.ray.cpus_per_rank != RayConfig().cpus_per_rank:
                raise UnusedSettingError("ray.cpus_per_rank", "ray.cpus_per_rank: an evaluation has no learner")

    def decodings(self) -> dict[str, tuple[Sampling, int]]:
        """Each decoding with its number of samples. Raises ValueError where all samples would be the same episode."""
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("--temperature 0 is greedy: every sample would be the same episode; leave --samples at 1")
        if self.temperature == 0 and (self.top_p != 1 or self.top_k):
            raise ValueError("--temperature 0 is greedy: leave --top-p and --top-k, which are about draws, out")
        greedy = {"greedy": (Sampling(0.0), 1)}
        if self.temperature == 0:
            return greedy
        sampled = {"sampled": (Sampling(self.temperature, self.top_p, self.top_k), self.samples)}
        return {**sampled, **greedy} if self.greedy else sampled

    def plain(self, targets: Sequence[str]) -> dict[str, Any]:
        """Everything that decides the numbers, as the evaluation's file holds it."""
        hidden = (
            "rewards",
            "env_where",
            "num_slots",
            "shards",
            "ray",
            "env_threads",
            "device",
            "endpoint",
            "max_error_share",
        )
        return {
            "targets": list(targets),
            **{name: value for name, value in vars(self).items() if name not in hidden},
            "endpoint": self.endpoint.model_dump(include={"base_url", "extra", "send_seed"}),
        }


@dataclass(frozen=True)
class Subject:
    """One target and the tasks that it is measured on. Its model is not loaded yet."""

    target: str
    run: RunDirectory | None
    checkpoint: WhichCheckpoint | None
    where: EnvConfig
    same_env: bool
    tasks: Sequence[Task]
    overlap: dict[str, int] | None
    grading: GradingConfig

    @classmethod
    def of(cls, target: str, asked: Asked) -> Subject:
        place, checkpoint = _checkpoint_in(target, asked.checkpoint)
        run = open_run(place)
        check_player(place)
        config = run.config() if run else None
        same_env = config is not None and asked.env in (None, config.env.id)
        where = config.env if config is not None and same_env else EnvConfig(id=asked.env or EnvConfig().id)
        if asked.env_kwargs:
            where = where.model_copy(update={"kwargs": {**where.kwargs, **asked.env_kwargs}})
        if asked.success_threshold is not None:
            where = where.model_copy(update={"success_threshold": asked.success_threshold})
        if asked.env_where:
            where = parse_section(EnvConfig, {**where.model_dump(), **asked.env_where}, "env")
        split, num = asked.split, asked.tasks
        if config is not None and same_env and split in (None, config.eval.test_split):
            split, num = config.eval.test_split, num or config.eval.test_tasks
        with closed_after(where.make()) as world:
            tasks = panel(world, split or "test")[:num]
            if (threshold := asked.success_threshold) is not None:
                check_threshold(world, tasks[0], "env.success_threshold", threshold)
        overlap = None
        if run is not None and config is not None:
            overlap = overlap_with(run, tasks, _chosen(checkpoint, config.keep_checkpoint), where.id)
        own = config.rewards if config is not None and same_env else GradingConfig()
        return cls(place, run, checkpoint, where, same_env, tasks, overlap, changed_grading(own, asked.rewards))

    def max_error_share(self, asked: Asked) -> float:
        """The asked share, else the run's own, else the default."""
        usual = self.run.config().eval if self.run is not None else EvalConfig()
        return usual.max_error_share if asked.max_error_share is None else asked.max_error_share

    @property
    def seed(self) -> int | None:
        return self.run.config().seed if self.run is not None else None

    @property
    def game(self) -> GameConfig:
        """Who has the other seats unless an opponent is asked for: the run's own setting, or the default."""
        own = self.run.config().game if self.run is not None and self.same_env else None
        return own or GameConfig()

    def described(self, seating: Seating, draws: int) -> dict[str, Any]:
        """Who plays where, on which panel. To continue an interrupted evaluation, all of this must be the same."""
        settings: dict[str, Any] = {}
        if self.run is not None:
            config = self.run.config()
            (agent, *_) = (model.config for model in seating.learners.values() if isinstance(model, ModelAgent))
            settings = settings_of(
                config.model_copy(update={"agent": agent, "env": self.where}).model_dump(mode="json")
            )
            settings["checkpoint"] = _chosen(self.checkpoint, config.keep_checkpoint)
        return {
            "target": self.target,
            "seed": self.seed,
            "draws": draws,
            "env": self.where.model_dump(include={"id", "kwargs", "success_threshold"}),
            "panel": {"split": self.tasks[0].split, "num": len(self.tasks), "hash": Panel("", "", (*self.tasks,)).hash},
            "players": {role or "all": _who(player) for role, player in seating.learners.items()},
            "opponents": {role or "all": _who(player) for role, player in (seating.opponents or {}).items()},
            "start": start_of(self.run) if self.run else None,
            "settings": settings,
            **({"draw": DRAW} if seating.models else {}),
            **({"rewards": _graders(self.grading)} if self.grading.grades else {}),
        }


def _checkpoint_in(target: str, asked: WhichCheckpoint | None) -> tuple[str, WhichCheckpoint | None]:
    """The run and the checkpoint that a target names; the target may be a checkpoint's folder."""
    path = Path(target)
    if path.parent.name != "checkpoints" or not path.name.startswith("update-"):
        return target, asked
    if asked is not None:
        raise ValueError(f"{target} is a checkpoint already: leave --checkpoint {asked} out")
    if open_run(path.parent.parent) is None or not path.name.removeprefix("update-").isdecimal():
        raise ValueError(f"{target} is no checkpoint of a run: expected RUN/checkpoints/update-NNNNN")
    return str(path.parent.parent), int(path.name.removeprefix("update-"))


def check_seeds(subjects: Sequence[Subject]) -> None:
    """Raise ValueError unless several targets are runs of one method with different seeds, at one checkpoint.

    Warns where the last checkpoints are after different numbers of updates.
    """
    if len(subjects) < 2:
        return
    first = subjects[0]
    for other in subjects:
        hint = "Evaluate them one by one with --out, and set them side by side with `turnwise compare`"
        if other.run is None or first.run is None:
            raise ValueError(f"{other.target} is not a run: several targets are pooled as seeds of one method. {hint}")
        a, b = (settings_of(each.run.config().model_dump(mode="json")) for each in (first, other) if each.run)
        if differing := [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]:
            told = ", ".join(f"{name}={a.get(name)} against {b.get(name)}" for name in differing[:4])
            raise ValueError(f"{first.target} and {other.target} are not one method ({told}). {hint}")
    _check_checkpoints(subjects)
    seeds = [subject.seed for subject in subjects]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}: one seed counted twice would make the interval too narrow")


def _chosen(asked: WhichCheckpoint | None, own: WhichCheckpoint) -> WhichCheckpoint:
    """The asked checkpoint, of which 0 is the one before training, or else the one that the run names."""
    return own if asked is None else asked


def _check_checkpoints(subjects: Sequence[Subject]) -> None:
    runs = [(subject, subject.run, subject.run.config()) for subject in subjects if subject.run is not None]
    chosen = {subject.target: _chosen(subject.checkpoint, config.keep_checkpoint) for subject, _, config in runs}
    if len(set(chosen.values())) > 1:
        told = ", ".join(f"{target}: {which}" for target, which in chosen.items())
        raise ValueError(f"the seeds are measured at different checkpoints ({told}): choose one with --checkpoint")
    reached = {subject.target: max(run.checkpoints.updates(), default=0) for subject, run, _ in runs}
    by_budget = any(config.max_sampled_tokens is not None for _, _, config in runs)
    if set(chosen.values()) == {"last"} and len(set(reached.values())) > 1 and not by_budget:
        told = ", ".join(f"{target}: {update}" for target, update in reached.items())
        warnings.warn(
            f"the seeds have different numbers of updates ({told}), and are pooled all the same: finish the shorter "
            "ones, or choose an update that all have with --checkpoint",
            stacklevel=4,
        )


def _graders(config: GradingConfig) -> dict[str, Any]:
    """What decides grades, without how the judge is reached."""
    how: Any = {"threads": True, "timeout_s": True, "judge": {"endpoint": set(REACHED)}}
    return config.model_dump(mode="json", exclude=how)


def _who(player: AnyAgent) -> dict[str, Any]:
    """What identifies a player: its weights or its endpoint, and the agent's settings."""
    if isinstance(player, ModelAgent):
        return {
            "update": player.version,
            "weights": player.adapter_hash,
            "agent": player.config.model_dump(mode="json"),
        }
    if isinstance(player.make, Endpoint):
        client, settings = player.make.client, player.make.settings
        return {
            "model": client.model,
            "base_url": client.config.base_url,
            "extra": client.config.extra,
            "agent": settings.model_dump(mode="json"),
        }
    return {"name": player.name}
