"""An engine whose replies are dictated: the tokens are given, their log-probs are the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.agents.test_rendering import FAMILIES
from tests.agents.test_templates import bytes_of
from tests.models import TINY
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import Job
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.seating import ModelAgent
from turnwise.agents.worldwork import WorldThreads
from turnwise.envs.programs.world import ProgramEnv
from turnwise.envs.said import Said
from turnwise.envs.tasks import panel
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.models.scratch import new_model
from turnwise.replay.batch import layout
from turnwise.trajectory import Trajectory, group_by_task

Say = Callable[[str], Said]
"""From the text of a context to the reply to it."""


class Dictated(SlotEngine):
    """Says what ``say`` tells it to, letter by letter, as no tokenizer would cut it."""

    def __init__(self, model: Any, chat: ChatFormat, say: Say, **more: Any) -> None:
        super().__init__(model, end_ids=chat.end_ids, **more)
        self.chat, self.say = chat, say
        self.script: dict[int, list[int]] = {}

    def submit(self, slot: int, ids: Any, *, fresh: bool, **more: Any) -> None:
        state = self._slots[slot]
        whole = [*([] if fresh else [*state.context, *state.pending]), *ids.tolist()]
        super().submit(slot, ids, fresh=fresh, **more)
        text = self.chat.dialect.write(self.say(str(self.chat.tokenizer.decode(whole))))
        spelled = [token for letter in text for token in self.chat.within(letter)]
        self.script[slot] = [*spelled, self.chat.end_id]

    def _sample(self, logits: Tensor, states: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        slots = {id(state): slot for slot, state in self._slots.items()}
        ids = torch.tensor([self.script[slots[id(state)]][len(state.ids)] for state in states])
        logprobs = torch.log_softmax(logits, -1)
        return ids, logprobs.gather(-1, ids[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def model_of(family: str) -> tuple[Any, ChatFormat, AgentConfig]:
    """A tiny model with a tokenizer of bytes, whose chat template is that of a ``family``."""
    config = AgentConfig(context="roles", action_format="calls", max_reply_tokens=400, max_context_tokens=8192)
    tokenizer = bytes_of(FAMILIES[family])
    size = TINY.model_copy(update={"vocab_size": len(tokenizer), "max_length": 8192})
    return new_model(size, tokenizer, seed=0), ChatFormat.of(tokenizer, config), config


def played(
    program: str, say: Say, family: str = "hermes", num: int = 2, rows: list[dict[str, Any]] | None = None, **world: Any
) -> tuple[list[Trajectory], float]:
    """The episodes of a program, and the largest deviation of sampler and learner, in nats."""
    model, chat, config = model_of(family)
    engine = Dictated(model, chat, say, num_slots=4, max_length=8192)
    rows = rows or [{"question": f"Where is mug {number}?"} for number in range(40)]
    envs = []

    def make() -> ProgramEnv:
        envs.append(ProgramEnv(program, rows, **{"timeout_s": 120.0, **world}))
        return envs[-1]

    threads = WorldThreads(4)
    collector = Collector(make, ModelAgent(engine, chat, config), threads=threads)
    try:
        tasks = panel(make(), "train")
        found = collector.collect([Job(tasks[n], 0, 0, n) for n in range(num)], Sampling(max_tokens=400))
    finally:
        threads.close()
        for env in envs:
            env.close()
    assert [each.end_reason for each in found if each.end == "error"] == []
    return found, deviation(found, model)


def deviation(trajectories: list[Trajectory], model: Any) -> float:
    """The largest difference between a token's recorded log-prob and that of a plain forward pass over its row."""
    batch, worst = layout(group_by_task(trajectories)), 0.0
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.tokens[row, :length]
        with torch.no_grad():
            full = torch.log_softmax(model(ids[None]).logits[0], -1)[:-1].gather(-1, ids[1:, None])[:, 0]
        mask = batch.action_mask[row, 1:length]
        assert mask.any()
        worst = max(worst, float((full[mask] - batch.behaviour_logprobs[row, 1:length][mask]).abs().max()))
    return worst
