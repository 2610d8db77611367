"""What cloning alone reaches with the CPU time of a whole demo: the baseline beside its learning claim.

    python benchmarks/cloning_alone.py --cpu-seconds 400 --seed 0

Same configuration, demonstrations and seed as ``turnwise demo``, but cloning goes on instead of stopping for
reinforcement learning; measured on the demo's own test panel. ``--json`` ends with one JSON line.
"""

import argparse
import json
import time

import torch

from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.seating import ModelAgent
from turnwise.assembly.run import Assembly
from turnwise.cloning.cloner import Progress, clone
from turnwise.cloning.losses import Whole
from turnwise.cloning.rounds import Ground
from turnwise.cloning.rows import expert_rows
from turnwise.cloning.warmstart import new_scratch_model
from turnwise.config.files import load_config
from turnwise.envs.tasks import make_env, maker, panel
from turnwise.evaluation.playing import evaluate_policy
from turnwise.models.engine import SlotEngine
from turnwise.models.policy import Policy
from turnwise.models.settings import ScratchModelConfig


class _TimeIsUpError(Exception):
    pass


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--cpu-seconds", type=float, required=True)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--json", action="store_true")
    words = asked.parse_args()
    began = time.process_time()
    # Without a measure, stop_success stops nothing.
    config = load_config("household", [f"seed={words.seed}", "warmstart.max_tokens=1000000000"])
    torch.set_num_threads(config.threads)
    env = make_env(config.env.id, **config.env.kwargs)
    assert isinstance(config.model, ScratchModelConfig)
    model, tokenizer = new_scratch_model(
        Assembly(config).warmstart.cloning, config.model, [Ground(env, config.env.make)]
    )
    seen = 0

    def watch(progress: Progress) -> None:
        nonlocal seen
        seen = progress.tokens
        if time.process_time() - began >= words.cpu_seconds:
            raise _TimeIsUpError

    assert config.warmstart is not None
    try:
        source = expert_rows(env, ChatFormat(tokenizer), config.agent, config.warmstart, config.seed, None)
        clone(Whole(model), tokenizer, source, config.warmstart, on_progress=watch)
    except _TimeIsUpError:
        model.eval()
    policy = Policy(model, tokenizer, lora=None)
    chat = ChatFormat(tokenizer)
    engine = SlotEngine(policy.sampler, num_slots=64, max_length=config.agent.max_context_tokens, end_ids=chat.end_ids)
    collector = Collector(maker(config.env.id), ModelAgent(engine, chat, config.agent))
    tasks = panel(env, "test")[: config.eval.test_tasks]
    found = {"cpu_seconds": round(time.process_time() - began, 1), "tokens": seen, "seed": words.seed}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        report, _ = evaluate_policy(
            collector, tasks, name=name, temperature=temperature, max_tokens=config.agent.max_reply_tokens, key=1 << 41
        )
        found[name] = str(report.success)
    for name, value in found.items():
        print(f"{name:<12} {value}")
    if words.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
