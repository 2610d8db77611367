"""From a run's configuration to its shards: what each is made from, and where they are placed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from turnwise import __version__
from turnwise.agents.endpoint import is_endpoint
from turnwise.agents.opening import Example
from turnwise.agents.playing import Playing
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.assembly.collecting import Cast
from turnwise.assembly.learners import launched
from turnwise.assembly.policies import new_policies, sides_of
from turnwise.config.files import parse_config
from turnwise.config.sections import GameConfig, LearnerConfig, RayConfig, RolloutConfig, in_shards
from turnwise.envs.given import is_given
from turnwise.envs.interface import HasPlayers, capability
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import TextEnv, closed_after
from turnwise.learning.planning import Planner
from turnwise.models.policy import Policy
from turnwise.models.vllm.install import check_installed as check_vllm
from turnwise.shards.children import Children
from turnwise.shards.connection import Host, Patience
from turnwise.shards.messages import Described
from turnwise.shards.ray_actors import RayActors, check_installed
from turnwise.shards.rollouts import ShardedCollector, Shards
from turnwise.shards.shard import Player, Shard
from turnwise.training.ahead import Ahead
from turnwise.training.side import Side
from turnwise.training.tasksets import TaskOrder
from turnwise.training.trainer import LoopSettings


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything that a shard of a run is made from, as plain data. Called where the shard is to be.

    ``settings`` are the run's resolved ones, as if the shard were all that plays. ``model`` is the folder or hub name
    of the model that the run began with.
    """

    number: int
    settings: Mapping[str, Any]
    model: str
    examples: tuple[Example, ...]

    def __call__(self) -> Shard:
        config = parse_config(self.settings)
        torch.set_num_threads(config.threads)
        with closed_after(config.env.make()) as world:
            cast = Cast(world, config.env, config.agent, config.rollout, config.game, config.seed, self.examples)
            policies = new_policies(
                self.model,
                sides_of(world, config.game, config.env.id),
                model=config.model,
                lora=config.lora,
                seed=config.seed,
                device=config.device,
            )
            for policy in policies.values():
                policy.temperature = config.rollout.temperature
            backend = config.rollout.backend or "own"
            players = {name: Player(policy, cast.agent(name, policy, backend)) for name, policy in policies.items()}
            collectors = cast.collectors({name: player.agent for name, player in players.items()})
        seconds = {name: p.agent.second.weights for name, p in players.items() if p.agent.second is not None}
        against = {use: collector.seating for use, collector in collectors.items()}
        return Shard(
            self.number, collectors, players, replace(_described(policies, seconds), opponents=opponents_in(against))
        )

    def apart(self) -> Blueprint:
        """The same with every world in a process of its own."""
        env = {**self.settings["env"], "process": True}
        return replace(self, settings={**self.settings, "env": env})


def _described(policies: Mapping[str, Policy], seconds: Mapping[str, str]) -> Described:
    return Described(__version__, {side: policy.frozen_hash() for side, policy in policies.items()}, seconds)


def opponents_in(uses: Mapping[str, Seating]) -> dict[str, str]:
    """The hashes of the weights of the models among the opponents, by use and role."""
    return {
        f"{use}/{role}": player.adapter_hash
        for use, seating in uses.items()
        for role, player in (seating.opponents or {}).items()
        if isinstance(player, ModelAgent)
    }


def is_sharded(rollout: RolloutConfig, ray: RayConfig | None) -> bool:
    """Whether episodes are played outside this process."""
    return in_shards(rollout, ray)


def shares_memory(ray: RayConfig | None) -> bool:
    """Whether shards are in the main memory of this machine."""
    return ray is None or (ray.address == "local" and not ray.gpus_per_shard)


def check_shards(
    world: TextEnv, env: EnvConfig, rollout: RolloutConfig, game: GameConfig | None, ray: RayConfig | None
) -> None:
    """Raise ValueError for what shards cannot play, and where Ray is asked for and not installed.

    That is a world that another process cannot make, a game with more players than a shard has slots, and in several
    shards an endpoint as an opponent. Shards of this machine that are to sample with vLLM need one that fits.
    """
    if ray is not None:
        check_installed()
    elif rollout.backend == "vllm" and rollout.vllm.url is None:  # a cluster's nodes have what they have
        check_vllm()
    if is_given(env.id):
        raise ValueError(
            f"rollout.shards: another process does not know {env.id}, which was given as an object. Register it in a "
            'module (env="your_module:Your/Env-v0"), or leave rollout.shards at 1, rollout.ahead at 0 and ray out'
        )
    if (played := capability(world, HasPlayers)) is None:
        return
    least, slots = len(played.players), rollout.num_slots // rollout.shards
    if slots < least:
        raise ValueError(
            f"a game of {least} players needs as many slots, and a shard has {slots}: set "
            f"rollout.num_slots={least * rollout.shards} or more, or lower rollout.shards={rollout.shards}"
        )
    for name in (game.opponent, game.eval_opponent) if game else ():
        check_endpoints(rollout.shards, [name] if is_endpoint(name) else [])


def check_endpoints(shards: int, names: Sequence[str]) -> None:
    """Raise ValueError where endpoints would be asked by several shards."""
    if shards > 1 and names:
        raise ValueError(
            f"rollout.shards={shards}: {', '.join(names)} would be asked by every shard, each with a limit of requests "
            "and a count of tokens of its own: leave rollout.shards at 1"
        )


def shards_of(
    settings: Mapping[str, Any],
    model: str,
    examples: tuple[Example, ...],
    policies: Mapping[str, Policy],
    host: Host | None = None,
    seconds: Mapping[str, str] | None = None,
) -> Shards:
    """The shards that a run's resolved settings ask for, on a ``host``, by default the one that they name; close them.

    ``seconds`` are, by side, the hashes of the weights of second models (``Side.second``).
    Raises ShardError where they cannot be made.
    """
    config = parse_config(settings)
    path = str(Path(model).resolve()) if Path(model).exists() else model
    drawn = [Blueprint(number, own, path, examples) for number, own in enumerate(_divided(settings))]
    rollout, needed = config.rollout, {type(policy.sampler).__module__ for policy in policies.values()}
    ranks = config.learner.ranks - 1 if launched() is None else 0  # torchrun's are not the cluster's
    return Shards(
        host or host_of(config.ray, needed, rollout.shards, ranks, config.device),
        [(made, made.apart()) for made in drawn],
        _described(policies, seconds or {}),
        policies,
        Patience(rollout.shard_timeout_s, rollout.shard_losses),
        rollout.num_slots,
    )


def _divided(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each shard's settings: those of a run by itself, with its share of the slots."""
    rollout, ray, default = settings["rollout"], settings["ray"], RolloutConfig()
    learner = LearnerConfig().model_dump(mode="json")  # a shard does not learn
    device = settings["device"] if ray is None else "cuda" if ray["gpus_per_shard"] else "cpu"
    alone = {name: getattr(default, name) for name in rollout if name.startswith("shard")} | {"ahead": 0}
    for number in range(rollout["shards"]):
        slots = len(range(number, rollout["num_slots"], rollout["shards"]))
        played = {**rollout, **alone, "num_slots": slots}
        own = {**settings, "rollout": played, "learner": learner, "ray": None, "device": device}
        yield {name: section for name, section in own.items() if name != "stale"}


def ahead_of(
    num: int, collector: Playing, sides: Sequence[Side], planner: Planner, order: TaskOrder, settings: LoopSettings
) -> Ahead | None:
    """Who plays updates ``num`` updates ahead, in the collector's shards; None where num is 0."""
    if not num:
        return None
    assert isinstance(collector, ShardedCollector)
    for side in sides:  # the planner's counts are of the session that is played, not of the update that learns
        side.learner.recipe = replace(side.learner.recipe, planner=None)
    grader = collector.grader
    return Ahead(
        num,
        collector=ShardedCollector(collector.shards, collector.use, grader),
        planner=planner,
        order=order,
        sampling=settings.sampling,
        weights=lambda version: {side.name: side.policy.past.of(version) for side in sides},
        last=settings.num_updates - 1 if settings.max_sampled_tokens is None else None,
        spent=dict if grader is None else grader.take_spent,
    )


def host_of(
    ray: RayConfig | None, needed: Iterable[str] = (), shards: int = 1, ranks: int = 0, device: str = "cpu"
) -> Host:
    """Where ``shards`` are placed: in child processes, or on a Ray cluster. ``needed`` are modules of their models.

    The cluster also has ``ranks`` of a learner on ``device``. Raises ValueError where it is too small, or not there.
    """
    if ray is None:
        return Children(__name__, "peft", *needed)
    actors = RayActors(ray.address, ray.cpus_per_shard, ray.gpus_per_shard)
    actors.check_room(shards, ranks, ray.cpus_per_rank, int(device != "cpu"))
    return actors
