"""Does everything run on this GPU, and how near the floors? A model of 1.5 B random parameters, in bfloat16.

It is trained as in ``configs/papers``: with thoughts and tags in a window of two turns, by adapters and in all weights.
Random weights change no speed but the length of replies. ``TINY`` takes every path in seconds on a CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from turnwise.agents.prompts import AgentConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.assembly.players import model_agent
from turnwise.assembly.settling import demand_of
from turnwise.bench.against_vllm import bench_vllm
from turnwise.bench.floor import Load, Machine, Stopwatch
from turnwise.bench.own import own_bench
from turnwise.bench.random_model import SMALL, random_model, write_random_model
from turnwise.bench.rollout import Played, Script, floor_s, race, scripts
from turnwise.config.files import target_config
from turnwise.learning.learner import Learner
from turnwise.learning.metrics import Agreement, Metrics
from turnwise.learning.ranks import Ranks
from turnwise.learning.settings import OptimizerConfig, RunInfo
from turnwise.models.policy import Policy, weights_hash
from turnwise.models.settings import LoRAConfig
from turnwise.models.vllm.install import fits, installed
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.training.noise import limits_of
from turnwise.training.plan import plan
from turnwise.training.ranks import ProcessRanks
from turnwise.trajectory import Group, Task, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class Size:
    """What is built and played: an architecture, in its own size or another, and ``settings`` of the short runs."""

    model: str
    shape: Mapping[str, Any] | None
    episodes: int
    turns: tuple[int, int]
    at_once: int
    settings: tuple[str, ...]


FULL = Size(
    "Qwen2.5-1.5B",
    None,
    episodes=64,
    turns=(6, 10),
    at_once=64,
    settings=(
        *("rollout.num_tasks=4", "rollout.group_size=8", "env.kwargs.step_limit=8"),
        *("agent.max_reply_tokens=128", "agent.max_context_tokens=2048", "optimizer.microbatch_tokens=16384"),
    ),
)
TINY = Size(
    "Qwen2.5-1.5B",
    {**SMALL, "vocab": 1500},  # more than the tokenizer has, as in the real model
    episodes=8,
    turns=(2, 2),
    at_once=4,
    settings=(
        *("rollout.num_tasks=1", "rollout.group_size=2", "env.kwargs.step_limit=2", "threads=1"),
        *("agent.max_reply_tokens=4", "agent.max_context_tokens=1024"),
    ),
)

WORLD = "turnwise/Household-v0"
PAPERS = (
    *("agent.context=window", "agent.window=2", "agent.action_format=tags", "agent.examples=0"),
    *("agent.instructions=true", "agent.show_admissible=true", "rewards.scale=10", "optimizer.lr=1e-6"),
    "algorithm={type: grpo, drop_uniform_groups: false}",
)
"""How ``configs/papers`` show a model the world and train it. A reference is scored."""

TRAINED: Mapping[str, LoRAConfig | None] = {"adapters": LoRAConfig(), "all weights": None}


@dataclass(slots=True)
class Findings:
    """Rows of (what, measured, of what), and what is wrong."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, measured: str, beside: str = "") -> None:
        self.rows.append((what, measured, beside))

    def markdown(self) -> str:
        lines = ["| | measured | beside it |", "| --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, *(f"\n**Fault:** {fault}" for fault in self.faults)]) + "\n"


def gpu_check(device: str, size: Size = FULL) -> Findings:
    """Decode against ``generate()`` and the floor, updates against the floor, agreement, ranks, short runs, vLLM."""
    found = Findings()
    model, tokenizer = _model(size, device)
    machine = Machine.measure(model)
    found.add(
        "device", _name(device), f"torch {torch.__version__}, {sum(p.numel() for p in model.parameters()):,} parameters"
    )
    found.add("reading the weights", f"{machine.bandwidth / 1e9:,.0f} GB/s")
    found.add("matrix products, bfloat16", f"{machine.matmul_rate / 1e12:,.2f} TFLOP/s")
    episodes = scripts(size.episodes, size.turns, len(tokenizer), seed=0)
    with _peak(found, "decode", device):
        played = _decode(found, model, episodes, size.at_once, machine, tokenizer.pad_token_id)
    for name, lora in TRAINED.items():
        with _peak(found, f"update of {name}", device):
            _update(found, name, Policy(model, tokenizer, lora=lora), episodes, played, machine)
        del model  # it has been trained, and the next memory is its own
        model = _model(size, device)[0]
    del model
    with _peak(found, "update by a group of one rank", device):
        _ranks(found, size, device, episodes, played)
    del played
    with tempfile.TemporaryDirectory() as made:
        folder = write_random_model(size.model, Path(made), _WORDS, size=size.shape, dtype="bfloat16")
        for name, lora in TRAINED.items():
            _run(found, name, folder, device, [*size.settings, *([] if lora else ["lora=null"])])
        _vllm(found, folder, size)
    return found


_WORDS = [f"word{i} thing{i * 7} place{i * 13}" for i in range(2000)]


def _model(size: Size, device: str) -> tuple[Any, Any]:
    return random_model(size.model, _WORDS, size=size.shape, dtype="bfloat16", device=device)


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


@contextmanager
def _peak(found: Findings, stage: str, device: str) -> Iterator[None]:
    """Peak memory of a stage; a CPU has none to tell."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield
    found.add(f"peak memory, {stage}", f"{_gib(torch.cuda.max_memory_allocated(device))} GiB")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _beside_floor(rate: float, floor: float) -> str:
    return f"floor {floor:,.0f}, {100 * rate / floor:.0f} % of it"


def _decode(
    found: Findings, model: Any, episodes: Sequence[Script], at_once: int, machine: Machine, pad: int
) -> Played:
    ours, theirs, played = race(model, episodes, at_once, pad)
    floor, tokens = floor_s(Load.of(model), machine, played.counts, played.contexts()), played.counts.sampled_tokens
    rate = tokens / ours
    found.add("sampled tokens/s, prompts fed on the way", f"{rate:,.0f}", _beside_floor(rate, tokens / floor))
    found.add("the same with generate()", f"{tokens / theirs:,.0f}", f"ours {theirs / ours:.2f}x")
    return played


def _update(
    found: Findings, name: str, policy: Policy, episodes: Sequence[Script], played: Played, machine: Machine
) -> None:
    """Two updates of GRPO on what was played (the first warms up), and how far the learner's log-probs are off."""
    limits = limits_of(policy, model_agent(policy, AgentConfig(), num_slots=8))
    agreements: list[Agreement] = []
    learner, learned = _learned(policy, episodes, played, verify=agreements.append)
    work = learner.clock.take()
    seconds, tokens = work.seconds["train"], work.tokens["train"]
    load = Load.of(policy.sampler, sum(p.numel() for p in policy.parameters()) if policy.lora else 0)
    mean = float(np.average([len(s) / 2 for s in played.streams], weights=[len(s) for s in played.streams]))
    floor = load.train_s(machine, tokens, learned.num_action_tokens, mean)
    rate = tokens / seconds
    found.add(f"update of {name}, tokens/s", f"{rate:,.0f}", _beside_floor(rate, tokens / floor))
    seen = agreements[0]
    found.add(
        f"sampler against learner of {name}, nats",
        f"mean {seen.mean_abs:.4f}, p99 {seen.p99:.4f}, max {seen.max_abs:.4f}",
        f"limits: {limits.told(seen.num_tokens)}",
    )
    if not limits.allow(seen):
        found.faults.append(f"sampler and learner of {name} disagree by more than a run allows")


def _learned(
    policy: Policy,
    episodes: Sequence[Script],
    played: Played,
    ranks: Ranks | None = None,
    verify: Callable[[Agreement], None] | None = None,
) -> tuple[Learner, Metrics]:
    """Two updates of GRPO on what was played, and the numbers of the second. Its clock has the second one alone."""
    info = RunInfo(2, len(episodes), 0)
    learner = Learner(build(GRPOConfig(kl_coef=0.0), info), policy, OptimizerConfig(lr=1e-6), info, ranks)
    learner.clock.now = Stopwatch(policy.device)
    trajectories = tuple(as_played(i, script, played) for i, script in enumerate(episodes))
    for update in range(2):
        buffer = TrajectoryBuffer()
        buffer.add([Group(trajectories[0].task, trajectories)], update)
        learner.clock.take()
        learned: Metrics = learner.update(buffer, update, verify=verify)
    return learner, learned


def _ranks(found: Findings, size: Size, device: str, episodes: Sequence[Script], played: Played) -> None:
    """The same updates by one process, and by a group of one rank whose frozen weights are divided (FSDP2).

    A GPU adds gradients up in any order. So losses may differ by rounding there, and weights by what Adam makes of it.
    """
    kind = torch.device(device).type
    ends = []
    for grouped in (False, True):
        model, tokenizer = _model(size, device)
        policy = Policy(model, tokenizer, lora=LoRAConfig())
        ranks = ProcessRanks(_store(), 0, 1, device=kind, lockstep=True, timeout_s=120) if grouped else None
        try:
            if ranks is not None:
                policy.divide(ranks.mesh)
            _, learned = _learned(policy, episodes, played, ranks)
        finally:
            if ranks is not None:
                ranks.close()
        ends.append((learned.loss, weights_hash(policy.trainable_state())))
        del model, policy
    (loss, weights), (other, theirs) = ends
    same = "equal, to the bit" if weights == theirs else f"losses {loss:.6g} and {other:.6g}"
    found.add("update by a group of one rank, fsdp2", same, "one process")
    if abs(loss - other) > 1e-3 * max(abs(loss), 1e-3):
        found.faults.append(f"a group of one rank has another loss than one process: {other:.6g} and {loss:.6g}")


def _store() -> Any:
    return TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)


def _vllm(found: Findings, model: Path, size: Size) -> None:
    """The engine against vLLM in this process, where it is installed."""
    if not fits(installed() or ""):
        found.add("vllm", "not installed" if installed() is None else f"{installed()} does not fit")
        return
    bench = bench_vllm(str(model), dtype="bfloat16", num_episodes=size.at_once, at_once=size.at_once)
    found.add("the same with vLLM, s", f"{bench.vllm_s:.2f}", f"ours {bench.ours_s:.2f}")
    found.add("replies of vLLM that are ours", f"{100 * bench.same_replies:.0f} %", "bfloat16 rounds otherwise")


def as_played(sample: int, script: Script, played: Played) -> Trajectory:
    """A script as it was played; every other one is rewarded."""
    stream, logprobs, place, turns = played.streams[sample], played.logprobs[sample], 0, []
    for turn, (prompt, reply) in enumerate(zip(script.prompts, script.replies, strict=True)):
        start = place + len(prompt)
        place = start + reply
        last = turn + 1 == len(script.prompts)
        turns.append(
            Turn(
                observation="",
                prompt_ids=prompt,
                continues=turn > 0,
                action_ids=stream[start:place],
                logprobs=logprobs[start:place],
                entropies=np.zeros(reply, np.float32),
                reply="",
                action="",
                valid=True,
                reward=float(last and sample % 2),
                anchor="",
                env_s=0.0,
            )
        )
    task = Task("scripted", "train", 0, "scripted")
    return Trajectory(f"scripted-{sample}", task, 0, sample, tuple(turns), "terminated", bool(sample % 2), None)


def _run(found: Findings, name: str, model: Path, device: str, settings: Sequence[str]) -> None:
    """Two updates in a world, as the papers train: every part of training, with its checks, on this device."""
    asked = [*PAPERS, f"device={device}", *settings]
    planned = plan(*demand_of(target_config(str(model), asked, env=WORLD))).total
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    bench = own_bench(str(model), asked, env=WORLD, num_generate=0)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    held = "not measured on a CPU" if peak is None else f"{_gib(peak)} GiB"
    found.add(f"peak memory of the run of {name}", held, f"planned {_gib(planned)} GiB")
    if peak is not None and peak > planned:
        found.faults.append(f"the run of {name} took more memory than `turnwise plan` says")
    for stage in bench.stages:
        unit = "steps" if stage.name == "environment" else "tokens"
        rate = f", {stage.rate:,.0f} {unit}/s" if stage.rate else ""
        floor = f"floor {stage.floor_rate:,.0f}" if stage.floor_rate else ""
        found.add(f"run of {name}: {stage.name}", f"{100 * stage.share:.1f} %{rate}", floor)
