"""A program learns through its own client: the gain is paired by task, and its interval excludes 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models import chatting_folder
from turnwise.config.files import load_config
from turnwise.jobs import train

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("program", "library"), [("openai_letters", "openai"), ("langgraph_letters", "langgraph")])
def test_it_learns_to_say_the_letter(program: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    tasks = [{"question": f"What is mug {number}?"} for number in range(400)]
    settings = [
        f"model.path={chatting_folder(tmp_path / 'model')}",
        f"env.kwargs.run=tests.clients.agents:{program}",
        f"env.kwargs.tasks={json.dumps(tasks)}",
        "agent.max_reply_tokens=12",
        "agent.max_context_tokens=512",
        "rollout.num_tasks=8",
        "eval.every=0",
        "eval.test_tasks=32",
        "eval.greedy=false",
        "num_updates=40",
        "optimizer.lr=1e-2",
        "optimizer.num_minibatches=4",
        "threads=1",
    ]
    result = train(load_config(None, settings, env="turnwise/Program-v0", algorithm="grpo"), tmp_path / "run")
    assert result.gain is not None
    assert result.gain.low > 0
