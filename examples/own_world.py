"""An environment of your own, trained from Python: no registration, no configuration file.

    python examples/own_world.py

The agent is shown three colours and should say the last. The environment offers an expert, so that a small model made
from nothing can be cloned before RL begins. It names any of the three: which one pays is left to RL, which brings
success on unseen tasks from 38 to 94 % in 14 CPU seconds. With a model of your own it needs no expert
(`model="Qwen/Qwen2.5-0.5B-Instruct"`).
"""

from __future__ import annotations

import random
from typing import Any

import gymnasium

import turnwise
from turnwise.envs.text_memory import AnyText

COLOURS = ("red", "green", "blue", "white", "black")


class Echo(gymnasium.Env[str, str]):
    """Say the last of three colours; one turn, reward 1 for the right one."""

    observation_space = action_space = AnyText()
    instructions = "Answer with the last colour that is named."

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.colours = [str(c) for c in self.np_random.choice(COLOURS, 3)]
        return f"You see {', '.join(self.colours)}.", {"admissible_actions": list(COLOURS)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        won = action.strip() == self.colours[-1]
        return "Right." if won else "Wrong.", float(won), True, False, {"success": won}

    def expert(self, kind: str, seed: int) -> Expert:
        return Expert(seed)


class Expert:
    """Names a colour that it sees."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def begin(self, observation: str, info: dict[str, Any]) -> None: ...

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return self.rng.choice(observation.removeprefix("You see ").rstrip(".").split(", "))


def main(out: str | None = None, **more: Any) -> Any:
    return turnwise.train(
        env=Echo,
        algorithm="grpo",
        settings=[
            "warmstart={max_tokens: 30000, tokenizer_episodes: 100, split: train, stop_success: null}",
            "warmstart.only_successes=false",  # the expert is cloned as it is, and not where it was right alone
            "model={type: scratch, hidden_size: 64, num_layers: 2}",
            "agent={max_reply_tokens: 8, max_context_tokens: 128}",
            "optimizer.lr=4e-3",
            "num_updates=20",
            "threads=1",
            "eval={every: 0, test_tasks: 64}",
        ],
        callbacks=[lambda record: print(f"update {record['update']}: success {record['success']:.0%}")],
        out=out,
        **more,
    )


if __name__ == "__main__":
    main()
