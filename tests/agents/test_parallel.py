"""Engines that step at once: the episodes of one engine, and the same every time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.agents.test_collector import HOUSE, SAMPLING, same, tasks
from tests.agents.test_engine import check, engine, play, prompt
from tests.models import tiny_model, tokenizer
from turnwise.agents.collector import Collector, Rollouts
from turnwise.agents.engine import Sampling, SlotEngine
from turnwise.agents.episode import ModelAgent, jobs_for
from turnwise.agents.parallel import ParallelEngine
from turnwise.agents.prompts import AgentConfig, ChatFormat
from turnwise.envs.tasks import maker
from turnwise.trajectory import RolloutFinished, TurnFinished


def parallel(model: Any, *slots: int) -> ParallelEngine:
    return ParallelEngine([engine(model, num) for num in slots])


@pytest.mark.parametrize("forks", [False, True])
def test_every_token_has_the_logprob_of_a_full_forward(forks: bool) -> None:
    """With forks within an engine, and from a full one into another."""
    model = tiny_model()
    made = parallel(model, 2, 3)
    check(model, play(made, 0, 9, 3, forks=forks))
    assert made.num_free == made.num_slots == 5
    assert made.counts.sampled_tokens == sum(part.counts.sampled_tokens for part in made.engines) > 0


def collected(*slots: int) -> list[Any]:
    chat, config = ChatFormat(tokenizer()), AgentConfig(max_reply_tokens=6, max_context_tokens=512)
    model = tiny_model()
    parts = [SlotEngine(model, num_slots=n, max_length=512, end_ids=chat.end_ids, threads=1) for n in slots]
    own = parts[0] if len(parts) == 1 else ParallelEngine(parts)
    return Collector(maker(HOUSE), ModelAgent(own, chat, config)).collect(jobs_for(tasks(4, HOUSE), 2, 5), SAMPLING)


def test_episodes_are_those_of_one_engine_and_repeat_to_the_bit() -> None:
    first, second = collected(3, 2), collected(3, 2)
    assert same(first, second)
    for one, other in zip(first, second, strict=True):
        for turn, again in zip(one.turns, other.turns, strict=True):
            np.testing.assert_array_equal(turn.logprobs, again.logprobs)
    assert same(first, collected(5))


def test_they_step_at_once() -> None:
    """Each waits within its step for the other's: one after the other would break the barrier."""
    made, together = parallel(tiny_model(), 1, 1), threading.Barrier(2, timeout=30)
    for part in made.engines:
        forward = part._forward

        def both(live: list[int], forward: Any = forward) -> Any:
            together.wait()
            return forward(live)

        part._forward = both  # type: ignore[method-assign]
    rng = np.random.default_rng(0)
    for key in range(2):
        made.submit(made.open(), prompt(rng, 5), fresh=True, key=key, sampling=Sampling(max_tokens=1))
    assert sorted(reply.slot for reply in made.step()) == [0, 1]


def test_a_failing_engine_is_heard_after_the_others_have_ended() -> None:
    made = parallel(tiny_model(), 1, 1)
    rng, ended = np.random.default_rng(0), threading.Event()
    for key in range(2):
        made.submit(made.open(), prompt(rng, 5), fresh=True, key=key, sampling=Sampling(max_tokens=1))
    step = made.engines[1].step

    def fails() -> Any:
        raise RuntimeError("no memory")

    def steps() -> Any:
        found = step()
        ended.set()
        return found

    made.engines[0].step, made.engines[1].step = fails, steps  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no memory"):
        made.step()
    assert ended.is_set()


def test_time_is_divided_among_what_was_fed() -> None:
    made = parallel(tiny_model(), 2, 2)
    play(made, 1, 6, 2)
    work = made.clock.take()
    assert set(work.seconds) == {"prefill", "decode"}
    assert work.tokens["prefill"] == made.counts.prefill_tokens
    assert min(work.seconds.values()) > 0


def test_a_fork_goes_where_there_is_room() -> None:
    chat, config = ChatFormat(tokenizer()), AgentConfig(max_reply_tokens=6, max_context_tokens=512)
    made = parallel(tiny_model(), 1, 1)
    source = Collector(maker(HOUSE), ModelAgent(made, chat, config))
    rollouts = Rollouts(source, Sampling(temperature=0, max_tokens=6))
    first, found = rollouts.start(tasks(1, HOUSE)[0], 0), {}
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == 2:
            rollouts.fork(first, 3)
        if isinstance(event, RolloutFinished):
            found[event.rollout] = event.trajectory
    parent, child = found[first], found[first + 1]
    assert [t.action_ids.tolist() for t in child.turns] == [t.action_ids.tolist() for t in parent.turns]
    assert made.counts.prefill_tokens <= sum(len(t.prompt_ids) + 1 for t in [*parent.turns, *child.turns[3:]])
