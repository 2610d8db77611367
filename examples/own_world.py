"""An environment of your own, trained from Python: no registration, no configuration file.

    python examples/own_world.py

The agent is told a colour and should say it. The environment offers an expert, so that a small model made from nothing
can be cloned before RL begins. With a model of your own (`model="Qwen/Qwen2.5-0.5B-Instruct"`) it needs none.
"""

from __future__ import annotations

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
        return Expert()


class Expert:
    def begin(self, observation: str, info: dict[str, Any]) -> None: ...

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return observation.rstrip(".").rpartition(", ")[2]


def main(out: str | None = None, **more: Any) -> Any:
    return turnwise.train(
        env=Echo,
        algorithm="grpo",
        settings=[
            "warmstart={max_tokens: 60000, tokenizer_episodes: 100, split: train, stop_success: null}",
            "model={type: scratch, hidden_size: 64, num_layers: 2}",
            "agent={max_reply_tokens: 8, max_context_tokens: 128}",
            "num_updates=10",
            "threads=1",
            "eval={every: 0, test_tasks: 64}",
        ],
        callbacks=[lambda record: print(f"update {record['update']}: success {record['success']:.0%}")],
        out=out,
        **more,
    )


if __name__ == "__main__":
    main()
