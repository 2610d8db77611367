"""Many programs at once through one endpoint: each has the episode that it has alone, and hears what is recorded."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.agents.test_rendering import HERMES
from tests.agents.test_templates import bytes_of
from tests.envs.programs import agents
from tests.models import TINY
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.dialogue import asked
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.agents.worldwork import WorldThreads
from turnwise.envs.programs.world import ProgramEnv
from turnwise.envs.said import heard
from turnwise.envs.tasks import panel
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.scratch import new_model
from turnwise.trajectory import Trajectory, Turn

NUM = 32
TOKENS = 5

Script = list[tuple[str, str, str]]
KINDS = ["go", "go", "go", "edit", "cut", "retry", "stream"]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]


def scripts_of(seed: int, kinds: list[str]) -> list[Script]:
    """A random program for each session."""
    rng = random.Random(seed)
    return [
        [(rng.choice(kinds), rng.choice("ab"), rng.choice(["x", "so"])) for _ in range(rng.randint(1, 5))]
        for _ in range(NUM)
    ]


@cache
def made() -> tuple[Any, ChatFormat, AgentConfig]:
    config = AgentConfig(context="roles", action_format="calls", max_reply_tokens=TOKENS, max_context_tokens=512)
    tokenizer = bytes_of(HERMES)
    size = TINY.model_copy(update={"vocab_size": len(tokenizer), "max_length": 512})
    return new_model(size, tokenizer, seed=0), ChatFormat.of(tokenizer, config), config


def played(scripts: list[Script], numbers: list[int], at_once: int) -> dict[int, Trajectory]:
    """The episodes of some of the scripts, by number."""
    model, chat, config = made()
    rows = [{"number": number, "script": script} for number, script in enumerate(scripts)]
    engine = SlotEngine(model, num_slots=at_once, max_length=512, end_ids=chat.end_ids)
    threads = WorldThreads(at_once, order="free")
    envs: list[ProgramEnv] = []

    def make() -> ProgramEnv:
        envs.append(ProgramEnv("tests.envs.programs.agents:follows", {"train": rows, "test": [{"number": -1}]}))
        return envs[-1]

    collector = Collector(make, ModelAgent(engine, chat, config), threads=threads)
    try:
        tasks = panel(make(), "train")
        jobs = [Job(tasks[number], 0, 0, number) for number in numbers]
        found = collector.collect(jobs, Sampling(max_tokens=TOKENS))
    finally:
        threads.close()
        for env in envs:
            env.close()
    errors = [each.end_reason for each in found if each.end == "error"]
    assert not errors, errors
    return {each.task.index: each for each in found}


def described(turn: Turn) -> tuple[Any, ...]:
    ids = (turn.prompt_ids.tolist(), turn.action_ids.tolist())
    return (*ids, turn.continues, turn.observation, turn.action, turn.request, turn.valid)


def context(turns: tuple[Turn, ...], number: int) -> list[int]:
    """The tokens before a turn's reply, as the engine had them: from the turn that opened the context."""
    first = max(n for n in range(number + 1) if not turns[n].continues)
    ids = list(turns[first].prompt_ids)
    for before, turn in pairwise(turns[first : number + 1]):
        ids += [*before.action_ids, *turn.prompt_ids]
    return [int(number) for number in ids]


def check_tree(trajectory: Trajectory) -> None:
    """A request that goes on from a turn has that turn's tokens before its own, and nobody else's words."""
    chat, turns = made()[1], trajectory.turns
    for number, turn in enumerate(turns):
        after = asked(turn).get("after")
        whole = context(turns, number)
        if after is not None:
            parent = [*context(turns, after), *turns[after].action_ids.tolist()]
            assert whole[: len(parent)] == parent
        assert turn.continues == (after is not None and after == number - 1)
        spoken = chat.tokenizer.decode(whole)
        assert f"session {trajectory.task.index} " in spoken
        assert spoken.count("session ") == 1


def check_echo(found: dict[int, Trajectory]) -> None:
    """What each client heard is what its turns say."""
    told = dict(agents.SEEN)
    agents.SEEN.clear()
    for number, trajectory in found.items():
        said = [heard(turn.action).content for turn in trajectory.turns]
        assert sorted(said) == sorted(answer for _, answer in told[number])
        assert trajectory.total_reward == sum(map(len, said))


@pytest.fixture(autouse=True)
def _clean() -> None:
    agents.SEEN.clear()


@pytest.mark.parametrize("seed", SEEDS)
def test_each_of_many_sessions_is_as_if_it_were_alone(seed: int) -> None:
    scripts = scripts_of(seed, KINDS)
    found = played(scripts, list(range(NUM)), NUM)
    check_echo(found)
    assert len(found) == NUM
    for number, trajectory in found.items():
        assert len(trajectory.turns) == len(scripts[number]), "a retry is no turn"
        check_tree(trajectory)
    kinds = [turn.continues for each in found.values() for turn in each.turns]
    assert np.mean(kinds) not in (0.0, 1.0), "some requests go on, some begin afresh"
    alone = played(scripts, list(range(0, NUM, 4)), 1)  # one after the other
    for number, trajectory in alone.items():
        assert [*map(described, trajectory.turns)] == [*map(described, found[number].turns)]
        for one, other in zip(trajectory.turns, found[number].turns, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_sessions_that_ask_several_things_at_once(seed: int) -> None:
    """The order of their turns varies; whose words are whose does not."""
    scripts = scripts_of(seed, [*KINDS, "together", "together"])
    found = played(scripts, list(range(NUM)), NUM)
    check_echo(found)
    for number, trajectory in found.items():
        assert len(trajectory.turns) == sum(1 + (kind == "together") for kind, _, _ in scripts[number])
        check_tree(trajectory)
