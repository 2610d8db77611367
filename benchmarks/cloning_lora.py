"""How fast a real model is cloned with LoRA, and in how much memory: tokens per CPU second, peak memory, loss.

    python benchmarks/cloning_lora.py FOLDER --config search --tokens 8000

One process, one thread. Demonstrations are made before the clock starts. ``--json`` ends with one JSON line.
"""

import argparse
import json
import resource
import time

import torch

from turnwise.agents.chat import ChatFormat
from turnwise.assembly.run import Assembly
from turnwise.cloning.losses import ByPolicy
from turnwise.cloning.rows import expert_rows
from turnwise.cloning.steps import Cloner, cooled
from turnwise.cloning.warmstart import begin_policy
from turnwise.config.files import load_config
from turnwise.models.settings import PretrainedModelConfig


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("model")
    asked.add_argument("settings", nargs="*", help="key.path=value")
    asked.add_argument("--config", default="search")
    asked.add_argument("--tokens", type=int, default=8000)
    asked.add_argument("--json", action="store_true")
    words = asked.parse_args()
    torch.set_num_threads(1)
    config = load_config(words.config, ["model={}", f"model.path={words.model}", "warmstart={}", *words.settings])
    assert config.warmstart is not None
    assert isinstance(config.model, PretrainedModelConfig)
    cloning = Assembly(config).warmstart.cloning
    world = config.env.make()
    policy = begin_policy(cloning, config.model)
    chat = ChatFormat(policy.tokenizer, config.agent.system, date=config.agent.date)
    source = expert_rows(world, chat, config.agent, config.warmstart, config.seed, None)
    batches, num = [], 0
    while num < words.tokens:
        batch = []
        for _ in range(config.warmstart.batch_episodes):
            batch += next(source)
        batches.append(batch)
        num += sum(len(row.ids) for row in batch)
    cloner, losses = Cloner(ByPolicy(policy, config.warmstart.microbatch_tokens), config.warmstart), []
    loaded, began, done = _peak(), time.process_time(), 0
    for batch in batches:
        losses.append(cloner.step(batch, cooled(1 - done / num, config.warmstart.cooldown)).loss)
        done += sum(len(row.ids) for row in batch)
    spent = time.process_time() - began
    found = {
        "tokens": num,
        "steps": len(losses),
        "cpu_seconds": round(spent, 1),
        "tokens_per_cpu_second": round(num / spent, 1),
        "loss": [round(losses[0], 3), round(losses[-1], 3)],
        "peak_gib": round(_peak(), 2),
        "peak_gib_before": round(loaded, 2),
    }
    for name, value in found.items():
        print(f"{name:<24} {value}")
    if words.json:
        print(json.dumps(found))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    main()
