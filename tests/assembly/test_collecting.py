"""What a run's collectors have of its settings."""

from __future__ import annotations

from turnwise.agents.prompts import AgentConfig
from turnwise.agents.scripted import scripted
from turnwise.assembly.collecting import TRAIN, Cast
from turnwise.config.sections import RolloutConfig
from turnwise.envs.settings import EnvConfig


def test_worlds_in_threads_wait_as_the_settings_say() -> None:
    env = EnvConfig(id="turnwise/Household-v0")
    rollout = RolloutConfig(env_threads=3, env_waiting_share=0.25)
    agent = scripted("random")
    assert agent is not None
    cast = Cast(env.make(), env, AgentConfig(), rollout, None, 0, ())
    threads = cast._against("self", {"": agent}, None).threads  # type: ignore[dict-item]
    assert (threads.concurrent, threads.order, threads.waiting_share) == (True, "fixed", 0.25)
    assert TRAIN in cast.collectors({"": agent})  # type: ignore[dict-item]
    threads.close()
