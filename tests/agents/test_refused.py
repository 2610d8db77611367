"""A request that does not fit into the context is told to the world's client, which may go on with another one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.clients.dictation import deviation
from tests.envs.programs import agents
from tests.models import chatting_folder
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.rollouts import Rollouts
from turnwise.assembly.players import model_agent
from turnwise.envs.programs.world import ProgramEnv
from turnwise.envs.tasks import panel
from turnwise.models.engine import Sampling
from turnwise.models.policy import Policy
from turnwise.replay.codec import from_record, to_record
from turnwise.trajectory import RolloutFinished, TurnFinished


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
    assert played.num_refused == (2 if twice else 1)
    assert from_record(json.loads(json.dumps(to_record(played)))).num_refused == played.num_refused
    assert [turn.continues for turn in played.turns] == ([False] if twice else [False, True])
    assert deviation([played], policy.sampler) < 1e-4


def test_a_program_hears_that_its_episode_was_ended(tmp_path: Path) -> None:
    """At the last turn that the agent may play, while its world is kept for the next episode."""
    policy = Policy.load(chatting_folder(tmp_path / "model"), lora=None)
    config = AgentConfig(
        context="roles", action_format="calls", max_reply_tokens=8, max_context_tokens=256, max_turns=2
    )
    env = ProgramEnv("tests.envs.programs.agents:asks_for_ever", {"train": [{"question": "x"}]})
    collector = Collector(lambda: env, model_agent(policy, config, num_slots=1))
    agents.SEEN.clear()
    (played,) = collector.collect([Job(panel(env, "train")[0])], Sampling(max_tokens=8))
    assert (played.end, played.end_reason) == ("truncated", "max_turns")
    until = time.monotonic() + 10
    while agents.SEEN != [200, 200, 409] and time.monotonic() < until:
        time.sleep(0.01)
    assert agents.SEEN == [200, 200, 409]
    collector.close()


def test_a_fork_hears_of_the_stored_replies_what_was_heard_of_them(tmp_path: Path) -> None:
    """Their tokens, and why they ended: at a limit, at a text, or by themselves."""
    policy = Policy.load(chatting_folder(tmp_path / "model"), lora=None)
    config = AgentConfig(context="roles", action_format="calls", max_reply_tokens=8, max_context_tokens=256)
    made = lambda: ProgramEnv("tests.envs.programs.agents:keeps_what_it_hears", {"train": [{"stop": "e"}]})  # noqa: E731
    collector = Collector(made, model_agent(policy, config, num_slots=2))
    rollouts = Rollouts(collector, Sampling(max_tokens=8))
    agents.SEEN.clear()
    first = rollouts.start(panel(made(), "train")[0], 0)
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == 2:
            rollouts.fork(first, 2)
    collector.close()
    one, two = agents.SEEN
    assert one[:2] == two[:2]
    assert one[0][1]["completion_tokens"] > 0


def test_an_episode_with_a_refusal_is_not_forked_and_says_so(tmp_path: Path) -> None:
    policy = Policy.load(chatting_folder(tmp_path / "model"), lora=None)
    config = AgentConfig(context="roles", action_format="calls", max_reply_tokens=8, max_context_tokens=256)
    made = lambda: ProgramEnv("tests.envs.programs.agents:overflows", {"train": [{"twice": False}]})  # noqa: E731
    collector = Collector(made, model_agent(policy, config, num_slots=2))
    rollouts, ends = Rollouts(collector, Sampling(max_tokens=8)), {}
    first = rollouts.start(panel(made(), "train")[0], 0)
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == 1:
            rollouts.fork(first, 1)
        if isinstance(event, RolloutFinished):
            ends[event.rollout] = event.trajectory
    collector.close()
    assert ends[first].end == "terminated"
    assert (ends[1].end, "was refused: such an episode cannot be forked" in ends[1].end_reason) == ("error", True)
