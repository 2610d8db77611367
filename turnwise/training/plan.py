"""How much memory a run will need, part by part, computed from its configuration and the model's shape.

Contexts and microbatches are reckoned as full as the settings allow, so that it is the most that a run can need.

Not counted are Python and its libraries (some 400 MiB of main memory, more with vLLM; on a GPU 600 MiB of context),
the worlds, and a warm start. One policy is counted; a game with a policy for each role needs as many caches and
adapters as roles. Of several ranks the first is counted, which also samples; on a CPU the others as well, as if all
were on this machine, unless a Ray cluster has them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from turnwise.agents.prompts import AgentConfig
from turnwise.models.block_attention import LONGEST
from turnwise.models.cache import room
from turnwise.models.head import TILE, TILE_ROWS, WHOLE
from turnwise.models.loading import check_device
from turnwise.models.packed_weights import wanted
from turnwise.models.reading import rows_at_once
from turnwise.models.settings import PackedWeights
from turnwise.models.sharding import NOT_DIVIDED
from turnwise.models.vllm.settings import VllmConfig
from turnwise.training.shape import FLOAT, Shape

GIB = 1 << 30
_DRAWING = 4  # tables of logits in float32 while tokens are drawn
_READING = 10  # the same while whole distributions are read, with gradients


@dataclass(frozen=True, slots=True)
class Demand:
    """The settings that decide memory, besides the model.

    ``num_slots`` contexts are held at once, and each has up to ``prompt_tokens`` new tokens in a step. ``num_rows`` are
    in a minibatch, at most; 0 where nothing is trained.
    """

    max_context_tokens: int
    num_slots: int
    prompt_tokens: int
    num_rows: int = 0
    microbatch_tokens: int = 0
    device: str = "cpu"
    gradient_checkpointing: bool = False
    reference: bool = False  # something compares with the policy at its start
    reads: bool = False  # something looks at whole distributions over the vocabulary
    teacher: int = 0  # bytes of the weights of a second scorer
    second: int = 0  # bytes of the weights of a model that draws tokens beside the policy, for whoever plays
    packed: bool = False  # whoever plays has packed weights
    shards: int = 0  # processes of this machine that have weights of their own, beside this one
    ahead: int = 0  # updates by which episodes are played before they are learned from
    ranks: int = 1  # processes that learn together, the first of which samples
    divided: bool = False  # among them the frozen weights
    ranks_elsewhere: bool = False  # but for the first
    vllm: VllmConfig | None = None  # how vLLM samples, where it does
    players: int = 1  # contexts of an episode, all of which are held while it is played

    @property
    def on_cpu(self) -> bool:
        return torch.device(self.device).type == "cpu"

    @property
    def least_slots(self) -> int:
        """Those of one episode for each shard that has something to play."""
        return max(1, min(max(1, self.shards) * self.players, self.num_slots))

    @property
    def tokens(self) -> int:
        """Tokens of the largest microbatch: one context at least, and no more than there are."""
        return min(max(self.microbatch_tokens, self.max_context_tokens), self.num_rows * self.max_context_tokens)


Stage = Literal["always", "sampling", "update"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the memory, and when it is held; ``how`` says what it is computed from."""

    name: str
    bytes: int
    how: str
    stage: Stage = "always"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is in memory, for the settings in ``demand``: always, while episodes are sampled, and in an update."""

    parts: tuple[Part, ...]
    demand: Demand

    def held(self, stage: Stage) -> int:
        """Bytes that are held in this stage only."""
        return sum(part.bytes for part in self.parts if part.stage == stage)

    @property
    def peak(self) -> Stage:
        """The stage that takes most."""
        return "update" if self.held("update") > self.held("sampling") else "sampling"

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.held("always") + self.held(self.peak)


def plan(shape: Shape, demand: Demand) -> Plan:
    """What the model and the settings need. Raises ValueError where frozen weights are to be divided that cannot be."""
    if demand.divided and not shape.layered:
        raise ValueError(NOT_DIVIDED)
    parts = [*_weights(shape, demand), *_sampling(shape, demand)]
    if demand.num_rows:
        parts += _update(shape, demand)
        parts += _others(parts, demand)
    return Plan(tuple(part for part in parts if part.bytes), demand)


def _weights(shape: Shape, demand: Demand) -> list[Part]:
    half = shape.itemsize < FLOAT
    packed = (shape.linear - shape.adapted) * demand.packed
    of_layers = shape.layered * demand.divided
    own = shape.parameters - of_layers + -(-of_layers // demand.ranks)
    told = f", the layers' divided by {demand.ranks}" if demand.divided else ""
    sampled = shape.adapted + (shape.lora if half else 0)  # in half precision beside each other
    parts = [
        Part("weights", own * shape.itemsize, f"{shape.parameters:,} of {shape.itemsize} bytes{told}"),
        Part("sampler's weights", max(of_layers - shape.adapted, 0) * shape.itemsize, "its own, not under adapters"),
        Part("merged weights", sampled * shape.itemsize, "the sampler's, under adapters"),
        Part("packed weights", packed * shape.itemsize * (not demand.shards), "the sampler's, not under adapters"),
        Part("adapters", shape.lora * FLOAT, f"{shape.lora:,} of 4 bytes"),
    ]
    whole = (shape.parameters + sampled + packed) * shape.itemsize + shape.lora * FLOAT
    parts.append(Part("shards", demand.shards * whole, f"{demand.shards} processes with all weights each"))
    seconds = max(1, demand.shards) * demand.second
    told = f", in each of {demand.shards} shards" if demand.shards else ""
    parts.append(Part("second model's weights", seconds, f"it draws tokens where the policy is unsure{told}"))
    if demand.vllm is not None and demand.vllm.url is None:
        copies = max(1, demand.shards) * (shape.parameters + shape.lora)
        parts.append(Part("vLLM's weights", copies * shape.itemsize, f"a copy of all, and of the adapters{told}"))
    if demand.num_rows:
        count = shape.lora or shape.parameters
        frozen = shape.parameters * demand.reference if not shape.lora else 0
        parts += [
            Part("reference weights", frozen * shape.itemsize, "the policy at its start"),
            Part("teacher's weights", demand.teacher, "a second scorer, frozen"),
            Part("master weights", count * FLOAT if half and not shape.lora else 0, f"{count:,} of 4 bytes"),
            Part("optimizer", 2 * count * FLOAT, "two moments of 4 bytes"),
            _earlier(shape, demand),
            Part(
                "rows for merge shares",
                shape.watched * (FLOAT + shape.itemsize * demand.divided) if half else 0,
                "what a merge would keep of adapters",
            ),
        ]
    return parts


def _earlier(shape: Shape, demand: Demand) -> Part:
    """Copies of what is trained: of the present version, of ``ahead`` before it, and one while an earlier is taken up.

    They are in main memory: on a GPU they are not counted.
    """
    copies = (demand.ahead + 2) * (demand.ahead > 0) * demand.on_cpu
    each = shape.lora * FLOAT or shape.parameters * shape.itemsize
    return Part("earlier weights", copies * each, f"{copies} copies of what is trained, for rollout.ahead")


def _sampling(shape: Shape, demand: Demand) -> list[Part]:
    """The cache, which goes back after sampling on a CPU, and a step in which every episode has a new prompt."""
    each = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * shape.itemsize
    if demand.vllm is not None:
        if demand.vllm.url is not None:
            return []  # the server's
        shards = max(1, demand.shards)
        held = shards * demand.vllm.cache_bytes(-(-demand.num_slots // shards), demand.max_context_tokens, each)
        return [Part("key/value cache", held, "vLLM's, for all slots", "always")]
    slots, capacity = demand.num_slots, room(demand.max_context_tokens, torch.device(demand.device))
    cache = slots * capacity * each
    read = slots * demand.prompt_tokens
    drawn = _DRAWING * slots * shape.vocab * FLOAT
    stage: Stage = "sampling" if demand.on_cpu else "always"
    return [
        Part("key/value cache", cache, f"{slots} slots of {capacity} tokens", stage),
        Part("prompts", read * shape.sampled_bytes + drawn, f"{read:,} tokens in a step", "sampling"),
    ]


def _update(shape: Shape, demand: Demand) -> list[Part]:
    tokens, checkpointing = demand.tokens, demand.gradient_checkpointing
    count = shape.lora or shape.parameters
    alive = (
        1 if checkpointing else shape.num_layers
    )  # layers whose inputs are kept at once; half of one more: gradients
    inputs = shape.num_layers * shape.hidden * shape.itemsize if checkpointing else 0
    in_blocks = demand.on_cpu and shape.itemsize < FLOAT and demand.max_context_tokens <= LONGEST
    kept = tokens * int((alive + 0.5) * shape.layer_bytes(in_blocks=in_blocks) + inputs)
    gathered = int((alive + 0.5) * shape.gathered_bytes(tokens, demand.num_rows * demand.max_context_tokens))
    return [
        Part("gradients", count * FLOAT, f"{count:,} trained", "update"),
        Part(
            "sums over ranks", 3 * count * FLOAT * (demand.ranks > 1), "gradients as one tensor, three times", "update"
        ),
        Part(
            "gathered layers", 2 * shape.layered // shape.num_layers * shape.itemsize * demand.divided, "two", "update"
        ),
        Part("activations", kept, f"{tokens:,} tokens{', checkpointed' if checkpointing else ''}", "update"),
        Part("shared beginnings", gathered, "at most: keys gathered for each row", "update"),
        Part("head", head_bytes(shape, tokens, demand.device), "log-probs and entropies", "update"),
        Part("vocabulary", read_bytes(shape, tokens, demand.device) * demand.reads, "what is read of it", "update"),
    ]


_FIRST_ALONE = (
    "merged weights",
    "sampler's weights",
    "packed weights",
    "rows for merge shares",
    "shards",
    "vLLM's weights",
    "key/value cache",
    "second model's weights",
)


def _others(parts: list[Part], demand: Demand) -> list[Part]:
    """What the other ranks hold on this machine: as the first one, without a sampler. GPUs are not shared."""
    num = (demand.ranks - 1) * (demand.on_cpu and not demand.ranks_elsewhere)
    own = [part for part in parts if part.name not in _FIRST_ALONE]
    always, update = (sum(p.bytes for p in own if p.stage == stage) for stage in ("always", "update"))
    return [
        Part("other ranks", num * always, f"{num} that do not sample"),
        Part("other ranks' updates", num * update, "as this one's", "update"),
    ]


def head_bytes(shape: Shape, tokens: int, device: str) -> int:
    """Bytes of the output head: states, slopes and their gradients as if all tokens were sampled, and logits.

    Logits are five whole tables where these are small, or three tiles.
    """
    states = tokens * shape.hidden * (2 * shape.itemsize + 2 * FLOAT)
    tile = max(TILE.get(torch.device(device).type, TILE["cpu"]), min(tokens, TILE_ROWS))
    return states + FLOAT * max(5 * min(tokens * shape.vocab, WHOLE), 3 * min(tokens * shape.vocab, tile))


def read_bytes(shape: Shape, tokens: int, device: str) -> int:
    """Bytes of a reading: logits of a few tokens and what becomes of them, sorted with their ids at most."""
    return _READING * FLOAT * min(tokens, rows_at_once(shape.vocab, torch.device(device).type)) * shape.vocab


def fit(shape: Shape, demand: Demand, available: int) -> Plan:
    """The plan as asked for where it fits into ``available`` bytes, else one with smaller microbatches or fewer slots.

    Raises ValueError where not even one episode at a time fits, in each shard.
    """
    found = plan(shape, demand)
    while found.total > available:
        smaller = _smaller(shape, found)
        if smaller is None:
            raise _too_large(found, available)
        found = plan(shape, smaller)
    return found


def _smaller(shape: Shape, found: Plan) -> Demand | None:
    """The demand with half of what the peak depends on; None where less would change nothing."""
    demand, least, slots = found.demand, found.demand.max_context_tokens, found.demand.least_slots
    if found.peak == "update" and demand.tokens > least:
        return replace(demand, microbatch_tokens=max(demand.tokens // 2, least))
    if plan(shape, replace(demand, num_slots=slots)).total < found.total:  # our cache is not held in an update on a CPU
        return replace(demand, num_slots=max(demand.num_slots // 2, slots))
    return None


def _too_large(found: Plan, available: int) -> ValueError:
    largest = max((part for part in found.parts if part.stage in ("always", found.peak)), key=lambda part: part.bytes)
    doing = "this run needs" if found.demand.num_rows else "sampling needs"
    one = f"a single game of {found.demand.players} players" if found.demand.players > 1 else "a single context"
    where = f" in each of {found.demand.shards} shards" if found.demand.shards > 1 else ""
    return ValueError(
        f"{doing} {found.total / GIB:.2f} GiB with {one} at a time{where}, and "
        f"{available / GIB:.2f} GiB are free; most of it is {largest.name} ({largest.bytes / GIB:.2f} GiB, "
        f"{largest.how}): {_advice(largest, found.demand)}"
    )


def _advice(largest: Part, demand: Demand) -> str:
    """What to change where a part is too large."""
    advice = _ADVICE.get(largest.name, _SMALLER)
    if largest.name == "key/value cache" and demand.vllm is not None and demand.vllm.cache_gib is not None:
        advice = "lower rollout.vllm.cache_gib"
    return advice + ", or rollout.shards" * (demand.shards > 1 and largest.name in ("key/value cache", "prompts"))


def fitting(shape: Shape, demand: Demand) -> Demand:
    """What of ``demand`` fits into the free memory, with a warning where that is less than asked for.

    Raises ValueError as ``fit`` does.
    """
    free = available_memory(demand.device)
    found = fit(shape, demand, free).demand
    less = []
    if found.tokens < demand.tokens:
        less.append((f"microbatches of {demand.tokens} tokens", f"optimizer.microbatch_tokens={found.tokens}"))
    if found.num_slots < demand.num_slots:
        less.append((f"{demand.num_slots} contexts at once", f"{found.num_slots} slots"))
    if less:
        asked, instead = (" and ".join(each) for each in zip(*less, strict=True))
        warnings.warn(
            f"{asked} could not all be held in the {free / GIB:.1f} GiB that are free: going on with {instead} "
            "(`turnwise plan` shows the parts)",
            stacklevel=2,
        )
    return found


_SMALLER = "take a smaller model, or model.dtype=bfloat16"
_ADVICE: Mapping[str, str] = {
    "shards": "lower rollout.shards",
    "earlier weights": "lower rollout.ahead, or train adapters (lora={}) in place of all weights",
    "reference weights": "train adapters (lora={}) in place of all weights",
    "teacher's weights": "take a smaller teacher",
    "second model's weights": "take a smaller agent.decoding.second.model, or leave it out",
    "master weights": "train adapters (lora={}) in place of all weights",
    "gradients": "train adapters (lora={}) in place of all weights",
    "optimizer": "train adapters (lora={}) in place of all weights",
    "key/value cache": "lower agent.max_context_tokens",
    "prompts": "lower agent.max_context_tokens",
    "weights": f"{_SMALLER}; on several GPUs learner.parallel=fsdp2 divides those of the layers",
    "other ranks": "lower learner.ranks, or set learner.parallel=fsdp2 in place of ddp",
    "other ranks' updates": "lower learner.ranks",
    "sampler's weights": "take a smaller model, or model.dtype=bfloat16: the first rank samples with the whole model",
    "activations": "set model.gradient_checkpointing=true, or lower agent.max_context_tokens",
    "head": "lower agent.max_context_tokens",
}


def available_memory(device: str) -> int:
    """Free bytes on a device now. Raises ValueError for a device that is not there."""
    check_device(device)
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    info = Path("/proc/meminfo")
    if info.exists():
        fields = dict(line.split(":") for line in info.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))


def is_packed(asked: PackedWeights, shape: Shape, device: str) -> bool:
    """Whether a sampler has packed weights. Raises ValueError where it is asked for and cannot be."""
    if torch.device(device).type != "cpu" or not shape.fast:
        return False
    return wanted(asked, torch.empty(0, dtype=torch.float32 if shape.itemsize == FLOAT else torch.bfloat16))


def num_contexts(agent: AgentConfig) -> int:
    """How many contexts an episode may have."""
    return agent.max_turns if agent.context != "full" or agent.on_overflow == "restart" else 1


def prompt_tokens(agent: AgentConfig) -> int:
    """Tokens of a long prompt: a whole context where it is afresh, else a part of one, which grows turn by turn."""
    return agent.max_context_tokens if agent.context != "full" else -(-agent.max_context_tokens // 4)
