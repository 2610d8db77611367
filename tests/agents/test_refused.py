"""A request that does not fit into the context is told to the world's client, which may go on with another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.dictation import deviation
from tests.envs.programs import agents
from tests.models import chatting_folder
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.players import model_agent
from turnwise.envs.programs.world import ProgramEnv
from turnwise.envs.tasks import panel
from turnwise.models.engine import Sampling
from turnwise.models.policy import Policy


@pytest.mark.parametrize("twice", [False, True])
def test_the_conversation_goes_on_with_what_fits(twice: bool, tmp_path: Path) -> None:
    """From the exact tokens of the turn before; at the second refusal in a row the episode is truncated."""
    policy = Policy.load(chatting_folder(tmp_path / "model"), lora=None)
    config = AgentConfig(context="roles", action_format="calls", max_reply_tokens=8, max_context_tokens=256)
    env = ProgramEnv("tests.envs.programs.agents:overflows", {"train": [{"twice": twice}]})
    collector = Collector(lambda: env, model_agent(policy, config, num_slots=1))
    agents.SEEN.clear()
    (played,) = collector.collect([Job(panel(env, "train")[0])], Sampling(max_tokens=8))
    collector.close()
    assert agents.SEEN == [400]
    assert (played.end, played.total_reward) == (("truncated", 0.0) if twice else ("terminated", 1.0))
    assert [turn.continues for turn in played.turns] == ([False] if twice else [False, True])
    assert deviation([played], policy.sampler) < 1e-4
