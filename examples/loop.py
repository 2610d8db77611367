"""GRPO from the parts: the loop of multi-turn RL in some thirty lines. `turnwise.train` does this and much more.

    python examples/loop.py [UPDATES]       a cloned household agent (a minute of cloning, then cached), five updates

Read it from `for update`: collect episodes, store them, learn from them, bring the new weights to the sampler.
"""

import sys

import torch

from turnwise.agents.collector import Collector, Rollouts
from turnwise.agents.seating import Seating
from turnwise.algorithms.registry import build
from turnwise.assembly.players import model_agent
from turnwise.config.files import load_config
from turnwise.envs.tasks import make_env, panel
from turnwise.jobs import warmstart
from turnwise.learning.learner import Learner
from turnwise.learning.planning import GroupPlanner
from turnwise.models.drawing import Sampling
from turnwise.models.policy import Policy
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import group_by_task

NUM_TASKS, GROUP_SIZE = 8, 8


def main(num_updates: int = 5) -> list[float]:
    config = load_config("household", algorithm="grpo")  # settings: of the model, the algorithm, the optimizer
    env_id = config.env.id
    torch.set_num_threads(1)  # the products of so small a model are too small for more
    clone = warmstart(config, lambda told: print(f"cloned {told.tokens:,} tokens, loss {told.loss:.3f}"))
    policy = Policy.load(clone, lora=config.lora)  # the model, with LoRA adapters
    agent = model_agent(policy, config.agent, num_slots=64)  # the sampler: a generation engine over the same weights
    info = config.run_info
    learner = Learner(build(config.algorithm, info), policy, config.optimizer, info)  # credit, loss, optimizer
    collector = Collector(lambda: make_env(env_id), Seating({"": agent}), seed=0)
    tasks, buffer, success = panel(make_env(env_id), "train"), TrajectoryBuffer(learner.recipe.keep_updates), []
    for update in range(num_updates):
        chosen = [tasks[update * NUM_TASKS + i] for i in range(NUM_TASKS)]
        rollouts = Rollouts(collector, Sampling(max_tokens=config.agent.max_reply_tokens), key=update)
        played = GroupPlanner(GROUP_SIZE).plan(chosen, rollouts)  # 8 episodes of each task
        buffer.add(group_by_task(played), update)
        metrics = learner.update(buffer, update)
        policy.sync(update + 1)  # merge the adapters into the sampler's copy
        agent.version, agent.adapter_hash = policy.version, policy.adapter_hash
        success.append(sum(bool(t.success) for t in played) / len(played))
        print(f"update {update}: success {success[-1]:.1%}, entropy {metrics.entropy:.3f}, loss {metrics.loss:+.4f}")
    collector.close()
    return success


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
