"""The engine against the way most people start: ``generate()`` over the whole history, every turn.

Scripted episodes (random observations, reply lengths drawn beforehand) make both sides do the same work: the same
number of turns, observation tokens and sampled tokens at T = 1. Process CPU time, one thread; on a GPU wall time. The
baseline is batched, uses generate()'s key/value cache within a reply, drops finished episodes and admits new ones in
their place between turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from turnwise.bench.floor import Load, Machine, Stopwatch
from turnwise.models.engine import Engine, EngineCounts, Sampling, SlotEngine, torch_threads
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.models.settings import ScratchModelConfig
from turnwise.trajectory import IntArray, Trajectory

BENCH_MODEL = ScratchModelConfig(
    hidden_size=256, num_layers=5, num_heads=8, num_kv_heads=4, head_dim=32, ffn_size=1024, vocab_size=1024
)


MAX_LENGTH = 8192
"""Tokens of a context, at most."""


class CountingEngine(Engine, Protocol):
    """An engine that counts its work."""

    counts: EngineCounts


@dataclass(frozen=True, slots=True)
class Script:
    """One episode: its prompts, how many tokens each reply has, and which prompts open a new context, [N] each."""

    prompts: tuple[IntArray, ...]
    replies: tuple[int, ...]
    fresh: tuple[bool, ...]

    def cut(self, turns: int) -> Script:
        """Its first turns."""
        return Script(self.prompts[:turns], self.replies[:turns], self.fresh[:turns])

    @classmethod
    def of(cls, trajectory: Trajectory) -> Script:
        """What an episode asked of the model, to be repeated with other tokens."""
        turns = [turn for turn in trajectory.turns if len(turn.action_ids)]
        return cls(
            tuple(turn.prompt_ids for turn in turns),
            tuple(len(turn.action_ids) for turn in turns),
            tuple(not turn.continues for turn in turns),
        )


@dataclass(frozen=True, slots=True)
class Played:
    """What an engine did with scripts: its counts, and per episode the token stream and log-probs (0 on prompts).

    Streams are of episodes with one context.
    """

    counts: EngineCounts
    streams: list[IntArray]
    logprobs: list[np.ndarray]

    def contexts(self) -> tuple[float, float]:
        """Mean number of tokens that a prompt's and a sampled token come after."""
        sampled = [row != 0 for row in self.logprobs]
        before = [np.arange(len(row)) for row in self.logprobs]
        decode = np.concatenate([place[mask] for place, mask in zip(before, sampled, strict=True)])
        prefill = np.concatenate([place[~mask] for place, mask in zip(before, sampled, strict=True)])
        return float(prefill.mean()), float(decode.mean())


@dataclass(frozen=True, slots=True)
class RolloutBench:
    """Seconds of both sides for the same ``sampled_tokens``; ``ratio`` = theirs / ours.

    ``floor_s``: what reading weights and cache, and the matrix products, would take on this machine (floor.py).
    """

    parameters: int
    episodes: int
    turns: tuple[int, int]
    sampled_tokens: int
    mean_length: float
    ours_s: float
    generate_s: float
    floor_s: float
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
        fresh = tuple(turn == 0 for turn in range(count))
        made.append(Script(prompts, tuple(size(15) for _ in range(count)), fresh))
    return made


def run_engine(model: Any, episodes: Sequence[Script], num_slots: int) -> Played:
    """Play all scripts, up to ``num_slots`` at once, on our own engine."""
    return run_on(SlotEngine(model, num_slots=num_slots, max_length=MAX_LENGTH, end_ids=frozenset()), episodes)


def run_on(engine: CountingEngine, episodes: Sequence[Script]) -> Played:
    """Play all scripts on an engine, in as many slots as it has."""
    queue = deque(range(len(episodes)))
    playing: dict[int, tuple[int, int]] = {}
    streams: list[list[np.ndarray]] = [[] for _ in episodes]
    logprobs: list[list[np.ndarray]] = [[] for _ in episodes]

    def ask(slot: int, index: int, turn: int) -> None:
        prompt = episodes[index].prompts[turn]
        streams[index].append(prompt)
        logprobs[index].append(np.zeros(len(prompt), np.float32))
        sampling = Sampling(max_tokens=episodes[index].replies[turn])
        fresh = episodes[index].fresh[turn]
        engine.submit(slot, prompt, fresh=fresh, key=1000 * index + turn, sampling=sampling)

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
    return Played(replace(engine.counts), [np.concatenate(s) for s in streams], [np.concatenate(p) for p in logprobs])


def run_generate(model: Any, episodes: Sequence[Script], at_once: int, pad: int) -> int:
    """The same scripts through ``generate()``; the sampled tokens that count."""
    queue, counted = deque(range(len(episodes))), 0
    playing: list[tuple[int, int]] = []
    histories: list[IntArray] = [np.zeros(0, np.int32) for _ in episodes]
    while queue or playing:
        while queue and len(playing) < at_once:
            playing.append((queue.popleft(), 0))
        for index, turn in playing:
            history = histories[index][:0] if episodes[index].fresh[turn] else histories[index]
            histories[index] = np.concatenate([history, episodes[index].prompts[turn]])
        wanted = [episodes[index].replies[turn] for index, turn in playing]
        width = max(len(histories[index]) for index, _ in playing)
        ids = np.full((len(playing), width), pad, np.int64)
        seen = np.zeros_like(ids)
        for row, (index, _) in enumerate(playing):
            ids[row, width - len(histories[index]) :] = histories[index]
            seen[row, width - len(histories[index]) :] = 1
        out = model.generate(
            input_ids=torch.from_numpy(ids).to(model.device),
            attention_mask=torch.from_numpy(seen).to(model.device),
            max_new_tokens=max(wanted),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=None,
            pad_token_id=pad,
        )
        for row, (index, _) in enumerate(playing):
            reply = out[row, width : width + wanted[row]].cpu().numpy().astype(np.int32)
            histories[index] = np.concatenate([histories[index], reply])
            counted += wanted[row]
        playing = [(i, t + 1) for i, t in playing if t + 1 < len(episodes[i].prompts)]
    return counted


def max_logprob_error(model: Any, played: Played) -> float:
    """Largest |engine - fresh full forward with transformers' sdpa| over the sampled tokens (nats)."""
    worst = 0.0
    with torch.inference_mode():
        for stream, seen in zip(played.streams, played.logprobs, strict=True):
            ids = torch.from_numpy(stream.astype(np.int64))[None].to(model.device)
            full = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
            chosen = full.gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
            sampled = seen[1:] != 0
            worst = max(worst, float(np.abs(chosen - seen[1:])[sampled].max()))
    return worst


def floor_s(load: Load, machine: Machine, counts: EngineCounts, contexts: tuple[float, float]) -> float:
    """Seconds that the work of an engine needs at least: its prompts, then its steps at their mean width."""
    prefill = load.prefill_s(machine, counts.prefill_tokens, contexts[0])
    return prefill + counts.steps * load.decode_s(machine, counts.sampled_tokens / counts.steps, contexts[1])


def race(model: Any, episodes: Sequence[Script], at_once: int, pad: int) -> tuple[float, float, Played]:
    """Seconds of the engine and of ``generate()`` for the same scripts, each after two to warm up; what was played."""
    watch = Stopwatch(model.device)
    run_engine(model, episodes[:2], at_once)
    began = watch()
    played = run_engine(model, episodes, at_once)
    ours = watch() - began
    run_generate(model, episodes[:2], at_once, pad)
    began = watch()
    same = run_generate(model, episodes, at_once, pad)
    theirs = watch() - began
    assert same == played.counts.sampled_tokens
    return ours, theirs, played


def bench_model(seed: int) -> tuple[Any, Any]:
    """A model of 5 M random weights, and a tokenizer that only supplies the vocabulary's size: tokens are random."""
    words = (f"word{i} thing{i * 7} place{i * 13}" for i in range(2000))
    tokenizer = train_tokenizer(words, BENCH_MODEL.vocab_size)
    return new_model(BENCH_MODEL, tokenizer, seed=seed, max_length=MAX_LENGTH), tokenizer


def bench_rollout(
    *, num_episodes: int = 32, turns: tuple[int, int] = (10, 20), at_once: int = 16, seed: int = 0
) -> RolloutBench:
    """Both sides on scripts, with a model of 5 M parameters; one torch thread, process CPU time."""
    with torch_threads(1):
        model, tokenizer = bench_model(seed)
        episodes = scripts(num_episodes, turns, len(tokenizer), seed)
        ours, theirs, played = race(model, episodes, at_once, tokenizer.pad_token_id)
        floor = floor_s(Load.of(model), Machine.measure(model), played.counts, played.contexts())
        error = max_logprob_error(model, played)
    return RolloutBench(
        parameters=sum(p.numel() for p in model.parameters()),
        episodes=num_episodes,
        turns=turns,
        sampled_tokens=played.counts.sampled_tokens,
        mean_length=float(np.mean([len(s) for s in played.streams])),
        ours_s=ours,
        generate_s=theirs,
        floor_s=floor,
        max_logprob_error=error,
    )
