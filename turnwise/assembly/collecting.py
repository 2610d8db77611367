"""Who plays a run's episodes: its agents, and the collectors that seat them against others, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.opening import Example
from turnwise.agents.playing import Grader
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.agents.worldwork import WorldThreads
from turnwise.assembly.players import model_agent, opponents
from turnwise.config.sections import GameConfig, RolloutConfig
from turnwise.envs.interface import HasPlayers, capability, instructions_of
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import TextEnv
from turnwise.models.policy import Policy
from turnwise.models.vllm.settings import Backend

TRAIN, MEASURE = "train", "measure"
"""Uses of a collector: training, and measurements where the opponent is another one there."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Makes agents and collectors from sections of a settled configuration, with the examples that agents are shown.

    ``world`` is asked for its instructions and its players.
    """

    world: TextEnv
    env: EnvConfig
    shown: AgentConfig
    rollout: RolloutConfig
    game: GameConfig | None
    seed: int
    examples: tuple[Example, ...]

    def agent(self, name: str, policy: Policy, backend: Backend = "own", *, plays: bool = True) -> ModelAgent:
        """The agent of one side. ``backend`` samples. Without ``plays`` it only proves, as of ``model_agent``."""
        return model_agent(
            policy,
            self.shown,
            num_slots=self.rollout.num_slots,
            threads=self.rollout.threads,
            packed_weights=self.rollout.packed_weights,
            backend=backend,
            vllm=self.rollout.vllm,
            name=name,
            examples=self.examples,
            instructions=instructions_of(self.world),
            plays=plays,
        )

    def collectors(self, learners: Mapping[str, ModelAgent], grader: Grader | None = None) -> dict[str, Collector]:
        """By use, who collects and who measures; one for both in a world of one player."""
        if capability(self.world, HasPlayers) is None:
            return {TRAIN: self._against("self", learners, grader)}
        game = self.game or GameConfig()
        against = {TRAIN: game.opponent, MEASURE: game.eval_opponent}
        return {use: self._against(opponent, learners, grader) for use, opponent in against.items()}

    def _against(self, opponent: str, learners: Mapping[str, ModelAgent], grader: Grader | None) -> Collector:
        rollout = self.rollout
        others = opponents(opponent, self.world, num_slots=rollout.num_slots, threads=rollout.threads)
        return Collector(
            self.env.make,
            Seating(learners, others),
            seed=self.seed,
            success=SuccessRule(self.env.success_threshold),
            threads=WorldThreads(rollout.env_threads, rollout.env_order, waiting_share=rollout.env_waiting_share),
            grader=grader,
        )
