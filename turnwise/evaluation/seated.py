"""Who sits where in an evaluation, made from plain data: in this process, and in each of its shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from turnwise import __version__
from turnwise.agents.chat_client import EndpointConfig
from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.playing import Grader, Playing
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.agents.worldwork import WorldThreads
from turnwise.assembly.players import opponents, player_from_anywhere, players
from turnwise.assembly.policies import WhichCheckpoint
from turnwise.assembly.shards import host_of, opponents_in, shares_memory
from turnwise.config.sections import RayConfig, RolloutConfig
from turnwise.envs.interface import HasPlayers, capability
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import TextEnv, closed_after
from turnwise.models.loading import from_anywhere
from turnwise.shards.children import Children
from turnwise.shards.connection import Patience
from turnwise.shards.messages import Described
from turnwise.shards.rollouts import ShardedCollector, Shards
from turnwise.shards.shard import Shard

USE = "measure"


@dataclass(frozen=True, slots=True)
class Seated:
    """Everything that decides who plays. ``opponent`` None: nobody was asked for; ``usual_opponent`` then plays.

    ``shards`` processes play in the place of this one, where ``ray`` says, or else on this machine; None: this one.
    """

    target: str
    checkpoint: WhichCheckpoint | None
    agent: Mapping[str, Any]
    env: EnvConfig
    opponent: str | None
    usual_opponent: str
    num_slots: int
    num_players: int
    env_threads: int
    device: str
    endpoint: EndpointConfig
    seed: int
    shards: int | None = None
    ray: RayConfig | None = None

    def seating(self, world: TextEnv, threads: int | None = None) -> tuple[Seating, int]:
        """Who has which seat, and how many seats of an episode are stored. ``threads`` of torch, while sampling."""
        game = capability(world, HasPlayers)
        here = shares_memory(self.ray)
        made: dict[str, Any] = {
            "num_slots": self.num_slots if here else self.num_players,
            "threads": threads,
            "device": self.device,
            "asked": self.endpoint,
            "shards": self._num_shards * here if self.shards else None,
        }
        learners = players(self.target, world, checkpoint=self.checkpoint, agent=self.agent, **made)
        if game is None:
            if self.opponent is not None:
                raise ValueError(
                    f"an opponent ({self.opponent}) needs a game of several players; this is a world of one"
                )
            return Seating(learners), 1
        others = opponents(self.opponent or self.usual_opponent, world, **made)
        return Seating(learners, others), len(game.players) if others is None else 1

    def collector(self, seating: Seating, grader: Grader | None = None) -> Collector:
        """Who plays in this process."""
        return Collector(
            self.env.make,
            seating,
            seed=self.seed,
            success=SuccessRule(self.env.success_threshold),
            threads=WorldThreads(self.env_threads),
            grader=grader,
        )

    @property
    def _num_shards(self) -> int:
        """Fewer than asked for where each could not hold an episode."""
        return max(1, min(self.shards or 1, self.num_slots // self.num_players))

    def sharded(self, seating: Seating, grader: Grader | None = None) -> Playing:
        """Who plays in the shards, where ``seating`` is who would play in this process; close it."""
        num_shards, num_slots, ray = self._num_shards, self.num_slots, self.ray
        if shares_memory(ray):  # as many as fit
            num_slots = min(model.engine.num_slots for model in seating.models)
        shares = [len(range(number, num_slots, num_shards)) for number in range(num_shards)]
        there = replace(self if ray is None else self._elsewhere(ray), shards=None, ray=None)
        drawn = [_SeatedShard(number, replace(there, num_slots=share)) for number, share in enumerate(shares)]
        usual = RolloutConfig()
        shards = Shards(
            Children(__name__) if ray is None else host_of(ray, shards=num_shards),
            [(made, made.apart()) for made in drawn],
            _described(seating),
            {},
            Patience(usual.shard_timeout_s, usual.shard_losses),
            num_slots,
        )
        return ShardedCollector(shards, USE, grader)

    def _elsewhere(self, ray: RayConfig) -> Seated:
        """The same where the working directory is another one, and the device is the cluster's."""
        return replace(
            self,
            target=player_from_anywhere(self.target),
            agent=_agent_elsewhere(self.agent),
            opponent=self.opponent if self.opponent in (None, "self") else player_from_anywhere(str(self.opponent)),
            usual_opponent="self" if self.usual_opponent == "self" else player_from_anywhere(self.usual_opponent),
            device="cuda" if ray.gpus_per_shard else "cpu",
        )


@dataclass(frozen=True, slots=True)
class _SeatedShard:
    """What a shard of an evaluation is made from. Called where the shard is to be."""

    number: int
    seated: Seated

    def __call__(self) -> Shard:
        torch.set_num_threads(1)
        with closed_after(self.seated.env.make()) as world:
            seating, _ = self.seated.seating(world, threads=1)
        return Shard(self.number, {USE: self.seated.collector(seating)}, {}, _described(seating))

    def apart(self) -> _SeatedShard:
        """The same with every world in a process of its own."""
        return replace(self, seated=replace(self.seated, env=self.seated.env.model_copy(update={"process": True})))


def _agent_elsewhere(agent: Mapping[str, Any]) -> Mapping[str, Any]:
    """The agent's settings whose second model and steering vector have names for any working directory."""
    decoding = dict(agent.get("decoding") or {})
    if "model" in (second := decoding.get("second") or {}):
        decoding["second"] = {**second, "model": from_anywhere(second["model"])}
    if "file" in (steering := decoding.get("steering") or {}):
        decoding["steering"] = {**steering, "file": str(Path(steering["file"]).expanduser().absolute())}
    return {**agent, "decoding": decoding} if decoding else agent


def _described(seating: Seating) -> Described:
    agents = {name: agent for name, agent in seating.learners.items() if isinstance(agent, ModelAgent)}
    seconds = {name: agent.second.weights for name, agent in agents.items() if agent.second is not None}
    weights = {name: agent.adapter_hash for name, agent in agents.items()}
    return Described(__version__, weights, seconds, opponents_in({USE: seating}))
