"""Who plays a run's episodes: its agents, and the collectors that seat them against others, in this process."""

from __future__ import annotations

from collections.abc import Mapping

from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.opening import Example
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.agents.worldwork import WorldThreads
from turnwise.assembly.players import model_agent, opponents
from turnwise.config.schema import RunConfig
from turnwise.config.sections import GameConfig
from turnwise.envs.interface import HasPlayers, capability, instructions_of
from turnwise.envs.tasks import TextEnv
from turnwise.models.policy import Policy

TRAIN, MEASURE = "train", "measure"
"""Uses of a collector: training, and measurements where the opponent is another one there."""


class Cast:
    """Makes agents and collectors of a settled configuration. ``world`` is asked for its instructions and players."""

    def __init__(self, config: RunConfig, world: TextEnv, examples: tuple[Example, ...]) -> None:
        self.config, self.world, self.examples = config, world, examples

    def agent(self, name: str, policy: Policy) -> ModelAgent:
        """The agent of one side."""
        rollout = self.config.rollout
        return model_agent(
            policy,
            self.config.agent,
            num_slots=rollout.num_slots,
            threads=rollout.threads,
            packed_weights=rollout.packed_weights,
            name=name,
            examples=self.examples,
            instructions=instructions_of(self.world),
        )

    def collectors(self, learners: Mapping[str, ModelAgent]) -> dict[str, Collector]:
        """By use, who collects and who measures; one for both in a world of one player."""
        if capability(self.world, HasPlayers) is None:
            return {TRAIN: self._against("self", learners)}
        game = self.config.game or GameConfig()
        return {TRAIN: self._against(game.opponent, learners), MEASURE: self._against(game.eval_opponent, learners)}

    def _against(self, opponent: str, learners: Mapping[str, ModelAgent]) -> Collector:
        config, rollout = self.config, self.config.rollout
        others = opponents(opponent, self.world, num_slots=rollout.num_slots, threads=rollout.threads)
        return Collector(
            config.env.make,
            Seating(learners, others),
            seed=config.seed,
            success=SuccessRule(config.env.success_threshold),
            threads=WorldThreads(rollout.env_threads, rollout.env_order),
        )
