"""Our engine against vLLM in the same process: the same scripts, the same draws, one torch thread.

Process CPU time on a CPU, wall time on a GPU. Both sides play the same scripted episodes (rollout.py), first two to
warm up. Because both draw by the same rule, the replies can be compared as well as the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.bench.floor import Stopwatch
from turnwise.bench.rollout import MAX_LENGTH, Played, Script, bench_model, run_on, scripts
from turnwise.models.engine import SlotEngine, torch_threads
from turnwise.models.kinds import is_fast
from turnwise.models.loading import load_model
from turnwise.models.packed_weights import wanted
from turnwise.models.policy import Policy
from turnwise.models.settings import DType, LoRAConfig
from turnwise.models.vllm.settings import VllmConfig


@dataclass(frozen=True, slots=True)
class VllmBench:
    """Seconds of both sides for the same ``sampled_tokens``; ``ratio`` = vLLM's / ours.

    ``same_replies`` is the share of replies whose tokens are all equal, ``max_logprob_gap`` the largest difference in
    nats on the tokens of those.
    """

    parameters: int
    dtype: str
    adapters: bool
    compiled: bool
    episodes: int
    turns: tuple[int, int]
    at_once: int
    sampled_tokens: int
    ours_s: float
    vllm_s: float
    vllm_start_s: float
    ours_prefilled: int
    vllm_prefilled: int
    same_replies: float
    max_logprob_gap: float

    @property
    def ratio(self) -> float:
        return self.vllm_s / self.ours_s


def bench_vllm(
    target: str | None = None,
    *,
    dtype: DType = "float32",
    lora: LoRAConfig | None = None,
    settings: VllmConfig | None = None,
    num_episodes: int = 16,
    turns: tuple[int, int] = (4, 8),
    at_once: int = 16,
    seed: int = 0,
) -> VllmBench:
    """Both engines on the same scripts, with the model of a folder or hub name; None: one of 5 M random weights.

    Raises ValueError where no vLLM that fits is installed.
    """
    from turnwise.models.vllm.local import local_engine

    model, tokenizer = bench_model(seed) if target is None else load_model(target, dtype=dtype)
    policy = Policy(model, tokenizer, lora=lora, seed=seed)
    first = next(policy.sampler.parameters())
    length = min(MAX_LENGTH, policy.sampler.config.max_position_embeddings)
    limits: dict[str, Any] = {"num_slots": at_once, "max_length": length, "end_ids": frozenset()}
    settings = settings or VllmConfig()
    with torch_threads(1):
        watch = Stopwatch(policy.device)
        began = watch()
        theirs = local_engine(policy, threads=1, settings=settings, **limits)
        started = watch() - began
        if wanted("auto", first) and is_fast(policy.sampler.config):
            policy.pack()
        ours = SlotEngine(policy.sampler, **limits)
        episodes = scripts(num_episodes, turns, policy.sampler.config.vocab_size, seed)
        found, seconds, prefilled = [], [], []
        for engine in (ours, theirs):
            run_on(engine, [episode.cut(2) for episode in episodes[:2]])
            before, began = engine.counts.prefill_tokens, watch()
            found.append(run_on(engine, episodes))
            seconds.append(watch() - began)
            prefilled.append(engine.counts.prefill_tokens - before)
    same, gap = alike(found[0], found[1], episodes)
    return VllmBench(
        parameters=sum(p.numel() for p in policy.sampler.parameters()),
        dtype=str(first.dtype).removeprefix("torch."),
        adapters=lora is not None,
        compiled=settings.compiled,
        episodes=num_episodes,
        turns=turns,
        at_once=at_once,
        sampled_tokens=sum(sum(episode.replies) for episode in episodes),
        ours_s=seconds[0],
        vllm_s=seconds[1],
        vllm_start_s=started,
        ours_prefilled=prefilled[0],
        vllm_prefilled=prefilled[1],
        same_replies=same,
        max_logprob_gap=gap,
    )


def alike(ours: Played, theirs: Played, episodes: Sequence[Script]) -> tuple[float, float]:
    """The share of replies that are equal, and the largest difference of log-probs on their tokens, in nats.

    Prompts are the same on both sides. After a reply that differs the contexts differ too, and its episode's later
    replies are not counted.
    """
    counted, same, gap = 0, 0, 0.0
    for number, episode in enumerate(episodes):
        place = 0
        for prompt, size in zip(episode.prompts, episode.replies, strict=True):
            span = slice(place + len(prompt), place + len(prompt) + size)
            place, counted = span.stop, counted + 1
            if not np.array_equal(ours.streams[number][span], theirs.streams[number][span]):
                break
            same += 1
            gap = max(gap, float(np.abs(ours.logprobs[number][span] - theirs.logprobs[number][span]).max()))
    return same / counted, gap
