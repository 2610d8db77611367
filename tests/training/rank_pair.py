"""Updates of tiny policies by two processes, in every way that a learner's ranks can work: what they end with.

python -m tests.training.rank_pair RANK PORT FILE       the first rank writes FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.models import tiny_model, tokenizer
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.learner import Learner
from turnwise.learning.ranks import Ranks
from turnwise.learning.settings import OptimizerConfig, RunInfo, Settings
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig
from turnwise.models.sharding import is_divided
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.training.ranks import ProcessRanks
from turnwise.trajectory import Group, Task, Trajectory, Turn

RUN = RunInfo(num_updates=4, group_size=3)
ALGORITHMS: dict[str, Settings] = {
    "grpo": GRPOConfig(kl_coef=0.1, ratio_denominator="proximal"),  # passes before the update: reference, proximal
    "ppo": PPOConfig(share_trunk=True),
}


@dataclass(frozen=True)
class Case:
    """One way to learn. ``dtype`` is that of the frozen weights; adapters are float32."""

    algorithm: str
    dtype: torch.dtype
    checkpointing: bool

    def __str__(self) -> str:
        return f"{self.algorithm}-{str(self.dtype).removeprefix('torch.')}-{self.checkpointing}"


CASES = [Case(*each) for each in product(ALGORITHMS, (torch.float32, torch.bfloat16), (False, True))]


def learned(case: Case, ranks: Ranks, mesh: object = None, *, samples: bool = True, lora: bool = True) -> Policy:
    """The policy after two updates of two minibatches, each of an odd number of microbatches."""
    return prepared(case, ranks, mesh, samples=samples, lora=lora)()


def prepared(
    case: Case, ranks: Ranks, mesh: object = None, *, samples: bool = True, lora: bool = True
) -> Callable[[], Policy]:
    """``learned``, as work still to do: threads that made models at once would share torch's generator."""
    model = tiny_model().to(case.dtype)
    config = LoRAConfig(rank=4, alpha=8.0) if lora else None
    policy = Policy(model, tokenizer(), lora=config, gradient_checkpointing=case.checkpointing, samples=samples)
    optimizer = OptimizerConfig(lr=1e-3, num_minibatches=2, microbatch_tokens=24)
    recipe = build(ALGORITHMS[case.algorithm], RUN)
    if recipe.needs_reference:
        policy.keep_reference()
    learner = Learner(recipe, policy, optimizer, RUN, ranks)
    if mesh is not None:
        policy.divide(mesh)

    def learn() -> Policy:
        buffer = TrajectoryBuffer()
        for update in range(2):
            buffer.add(groups(update), update)
            learner.update(buffer, update)
            policy.sync(update + 1)
        return policy

    return learn


def groups(update: int) -> Iterator[Group]:
    """Three attempts at two tasks, of random tokens whose behaviour log-probs are about the tiny model's."""
    rng = np.random.default_rng(update)
    size = len(tokenizer())

    def turn(first: bool) -> Turn:
        prompt, reply = (rng.integers(5, size, n).astype(np.int32) for n in rng.integers(2, 9, 2))
        entropies, logprobs = (np.full(len(reply), sign * np.log(size), np.float32) for sign in (1, -1))
        return Turn("", prompt, not first, reply, logprobs, entropies, "", "", True, float(rng.integers(2)))

    for place in range(2):
        task = Task("env", "train", place, f"key-{place}")
        members = (
            Trajectory(str(n), task, 0, n, (turn(True), turn(False)), "terminated", True, 1.0, policy_version=update)
            for n in range(3)
        )
        yield Group(task, tuple(members))


def weight_bytes(policy: Policy) -> int:
    """Bytes of all weights of learner and sampler in this process."""
    held = [p.to_local() if is_divided(p) else p for p in policy.model.parameters()]  # type: ignore[operator]
    held += list(policy.sampler.parameters()) if policy.sampler is not None else []
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def main(rank: int, port: int, file: Path) -> None:
    torch.set_num_threads(1)
    found = dict[str, Any]()
    for number, lockstep in enumerate((False, True)):
        store = TCPStore("127.0.0.1", port + number, 2, is_master=rank == 0, wait_for_workers=False)
        ranks = ProcessRanks(store, rank, 2, lockstep=lockstep, timeout_s=60)
        for case in CASES:
            policy = learned(case, ranks, ranks.mesh, samples=rank == 0)
            hashes = ranks.gather(policy.adapter_hash)
            assert len(set(hashes)) == 1, (case, lockstep, hashes)
            found[f"{case}-{'fsdp2' if lockstep else 'ddp'}"] = hashes[0]
            found[f"{case}-{'fsdp2' if lockstep else 'ddp'}-bytes"] = ranks.gather(weight_bytes(policy))
        ranks.close()
    if rank == 0:
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
