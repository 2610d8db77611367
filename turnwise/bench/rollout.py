"""The engine against the way most people start: ``generate()`` over the whole history, every turn.

Scripted episodes (random observations, reply lengths drawn beforehand) make both sides do the same work: the same
number of turns, observation tokens and sampled tokens at T = 1. Process CPU time, one thread. The baseline is
batched, uses generate()'s key/value cache within a reply, drops finished episodes and admits new ones in their
place between turns.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from turnwise.agents.engine import Sampling, SlotEngine
from turnwise.agents.scratch import ScratchModelConfig, new_model, train_tokenizer
from turnwise.trajectory import IntArray

BENCH_MODEL = ScratchModelConfig(
    hidden_size=256, num_layers=5, num_heads=8, num_kv_heads=4, head_dim=32, ffn_size=1024, vocab_size=1024
)


@dataclass(frozen=True, slots=True)
class Script:
    """One episode: its prompts (first the opening one) and how many tokens each reply has, [N] each."""

    prompts: tuple[IntArray, ...]
    replies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RolloutBench:
    """CPU seconds of both sides for the same ``sampled_tokens``; ``ratio`` = theirs / ours."""

    parameters: int
    episodes: int
    turns: tuple[int, int]
    sampled_tokens: int
    mean_length: float
    ours_s: float
    generate_s: float
    max_logprob_error: float

    @property
    def ratio(self) -> float:
        return self.generate_s / self.ours_s


def scripts(num: int, turns: tuple[int, int], vocab: int, seed: int) -> list[Script]:
    """Prompt 120, then 40 observation and 15 reply tokens a turn (normal, sd a third of the mean)."""
    rng = np.random.default_rng(seed)

    def size(mean: int) -> int:
        return max(2, round(rng.normal(mean, mean / 3)))

    made = []
    for _ in range(num):
        count = int(rng.integers(turns[0], turns[1] + 1))
        sizes = [120] + [size(40) for _ in range(count - 1)]
        prompts = tuple(rng.integers(5, vocab, n).astype(np.int32) for n in sizes)
        made.append(Script(prompts, tuple(size(15) for _ in range(count))))
    return made


def run_engine(model: Any, episodes: list[Script], num_slots: int) -> tuple[int, list[np.ndarray], list[np.ndarray]]:
    """Play all scripts; sampled tokens, and per episode its token stream and log-probs (0 on prompts)."""
    engine = SlotEngine(model, num_slots=num_slots, max_length=8192, end_ids=frozenset())
    queue = deque(range(len(episodes)))
    playing: dict[int, tuple[int, int]] = {}
    streams: list[list[np.ndarray]] = [[] for _ in episodes]
    logprobs: list[list[np.ndarray]] = [[] for _ in episodes]

    def ask(slot: int, index: int, turn: int) -> None:
        prompt = episodes[index].prompts[turn]
        streams[index].append(prompt)
        logprobs[index].append(np.zeros(len(prompt), np.float32))
        sampling = Sampling(max_tokens=episodes[index].replies[turn])
        engine.submit(slot, prompt, fresh=turn == 0, key=1000 * index + turn, sampling=sampling)

    while queue or playing:
        while queue and engine.num_free:
            slot = engine.open()
            playing[slot] = (queue.popleft(), 0)
            ask(slot, *playing[slot])
        for reply in engine.step():
            index, turn = playing.pop(reply.slot)
            streams[index].append(reply.ids)
            logprobs[index].append(reply.logprobs)
            if turn + 1 == len(episodes[index].prompts):
                engine.close(reply.slot)
                continue
            playing[reply.slot] = (index, turn + 1)
            ask(reply.slot, index, turn + 1)
    joined = [np.concatenate(s) for s in streams], [np.concatenate(p) for p in logprobs]
    return engine.counts.sampled_tokens, *joined


def run_generate(model: Any, episodes: list[Script], at_once: int, pad: int) -> int:
    """The same scripts through ``generate()``; the sampled tokens that count."""
    queue, counted = deque(range(len(episodes))), 0
    playing: list[tuple[int, int]] = []
    histories: list[IntArray] = [np.zeros(0, np.int32) for _ in episodes]
    while queue or playing:
        while queue and len(playing) < at_once:
            playing.append((queue.popleft(), 0))
        for index, turn in playing:
            histories[index] = np.concatenate([histories[index], episodes[index].prompts[turn]])
        wanted = [episodes[index].replies[turn] for index, turn in playing]
        width = max(len(histories[index]) for index, _ in playing)
        ids = np.full((len(playing), width), pad, np.int64)
        for row, (index, _) in enumerate(playing):
            ids[row, width - len(histories[index]) :] = histories[index]
        mask = torch.from_numpy(ids != pad)
        out = model.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=mask.long(),
            max_new_tokens=max(wanted),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=None,
            pad_token_id=pad,
        )
        for row, (index, _) in enumerate(playing):
            reply = out[row, width : width + wanted[row]].numpy().astype(np.int32)
            histories[index] = np.concatenate([histories[index], np.maximum(reply, 1)])
            counted += wanted[row]
        playing = [(i, t + 1) for i, t in playing if t + 1 < len(episodes[i].prompts)]
    return counted


def max_logprob_error(model: Any, streams: list[np.ndarray], logprobs: list[np.ndarray]) -> float:
    """Largest |engine - fresh full forward with transformers' sdpa| over the sampled tokens (nats)."""
    worst = 0.0
    with torch.inference_mode():
        for stream, seen in zip(streams, logprobs, strict=True):
            ids = torch.from_numpy(stream.astype(np.int64))[None]
            full = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
            chosen = full.gather(-1, ids[0, 1:, None])[:, 0].numpy()
            sampled = seen[1:] != 0
            worst = max(worst, float(np.abs(chosen - seen[1:])[sampled].max()))
    return worst


def bench_rollout(
    *, num_episodes: int = 32, turns: tuple[int, int] = (10, 20), at_once: int = 16, seed: int = 0
) -> RolloutBench:
    """Time both sides on the same scripts; one torch thread, process CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A tokenizer only supplies the vocabulary size here: tokens are random.
        words = (f"word{i} thing{i * 7} place{i * 13}" for i in range(2000))
        tokenizer = train_tokenizer(words, BENCH_MODEL.vocab_size)
        model = new_model(BENCH_MODEL, tokenizer, seed=seed, max_length=8192)
        episodes = scripts(num_episodes, turns, len(tokenizer), seed)
        run_engine(model, episodes[:2], at_once)  # warm-up
        start = time.process_time()
        tokens, streams, logprobs = run_engine(model, episodes, at_once)
        ours = time.process_time() - start
        model.set_attn_implementation("sdpa")
        run_generate(model, episodes[:2], at_once, tokenizer.pad_token_id)  # warm-up
        start = time.process_time()
        same = run_generate(model, episodes, at_once, tokenizer.pad_token_id)
        theirs = time.process_time() - start
        assert same == tokens
        error = max_logprob_error(model, streams, logprobs)
    finally:
        torch.set_num_threads(threads)
    return RolloutBench(
        parameters=sum(p.numel() for p in model.parameters()),
        episodes=num_episodes,
        turns=turns,
        sampled_tokens=tokens,
        mean_length=float(np.mean([len(s) for s in streams])),
        ours_s=ours,
        generate_s=theirs,
        max_logprob_error=error,
    )
