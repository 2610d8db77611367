"""Rewards of your own: functions of episode and task pay beside the world, and an endpoint may judge by a rubric.

    python examples/own_reward.py                                    functions alone
    python examples/own_reward.py openai:MODEL@http://127.0.0.1:8000/v1        and a judge; its key in JUDGE_API_KEY

The world asks what number comes next, and pays nothing. What it tells of each task (``info["task"]``), the agent does
not see: functions and the rubric may use it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium

import turnwise
from turnwise.envs.text_memory import AnyText
from turnwise.trajectory import Trajectory


class Counting(gymnasium.Env[str, str]):
    """One question, one answer."""

    observation_space = action_space = AnyText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        number = int(self.np_random.integers(0, 5))
        return f"What comes after {number}?", {"task": {"answer": str(number + 1)}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", 0.0, True, False, {}

    def expert(self, kind: str, seed: int) -> Guessing:
        return Guessing(seed)


class Guessing:
    """Is right half of the time, and else guesses: a clone of it has much to learn from rewards."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def begin(self, observation: str, info: dict[str, Any]) -> None: ...

    def act(self, observation: str, info: dict[str, Any]) -> str:
        number = int(observation.rstrip("?").split()[-1]) + 1
        return str(number if self.rng.random() < 0.5 else self.rng.randrange(6))


def exact(episode: Trajectory, task: dict[str, Any]) -> float:
    """1 for the right answer."""
    return float(episode.turns[-1].action == task["answer"])


async def near(episode: Trajectory, task: dict[str, Any]) -> float:
    """Up to 0.5 for a number nearby. Functions may be async, for instance to ask a service."""
    said = episode.turns[-1].action
    return 0.5 / (1 + abs(int(said) - int(task["answer"]))) if said.isdecimal() and len(said) < 4 else 0.0


RUBRIC = "{criteria: [{name: number, text: 'The reply is a number and nothing else. The right one is {answer}.'}]}"


def main(judge: str | None = None, out: str | None = None, settings: Sequence[str] = (), **more: Any) -> Any:
    judged = f"rewards.judge={{model: '{judge}', rubric: {RUBRIC}, weight: 0.1}}"
    graders = [judged, "rewards.judge.endpoint.key_variable=JUDGE_API_KEY"] if judge else []
    return turnwise.train(
        env=Counting,
        algorithm="grpo",
        rewards=[exact, near],
        settings=[
            "warmstart={max_tokens: 60000, tokenizer_episodes: 100, split: train, stop_success: null}",
            "model={type: scratch, hidden_size: 64, num_layers: 2}",
            "agent={max_reply_tokens: 4, max_context_tokens: 64}",
            "rewards.success_threshold=1.0",
            "optimizer.lr=4e-3",
            "num_updates=30",
            "threads=1",
            "eval={every: 0, test_tasks: 64}",
            *graders,
            *settings,
        ],
        callbacks=[lambda record: print(f"update {record['update']}: {record['grades']}")],
        out=out,
        **more,
    )


if __name__ == "__main__":
    main(*sys.argv[1:2])
