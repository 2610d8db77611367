"""The world of tools that TRL is given shows the same tokens as ours."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.roles import Roles
from turnwise.envs.files.world import FilesEnv
from turnwise.envs.said import heard
from turnwise.models.scratch import train_tokenizer

TRL_TOOLS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "trl_tools.py"))


def test_prompts_and_results_are_those_of_our_world_token_for_token() -> None:
    env, config = FilesEnv(split="train"), AgentConfig(context="roles", action_format="calls")
    tokenizer: Any = train_tokenizer([json.dumps(env.reset(seed=0)[1]["tools"])], 400, tools=True)
    chat = ChatFormat.of(tokenizer, config)
    theirs: Any = train_tokenizer([json.dumps(env.reset(seed=0)[1]["tools"])], 400, tools=True)
    for number in range(4):  # both kinds of questions: one call, and two at once
        question, info = env.reset(seed=0, options={"split": "train", "task": number})
        theirs.chat_template = TRL_TOOLS["template"](info)

        def shown(messages: list[dict[str, Any]], header: bool) -> list[int]:
            found = theirs.apply_chat_template(messages, add_generation_prompt=header, tokenize=True, return_dict=False)
            return list(found)

        context = Roles(chat, config, "")
        assert context.begin(question, info).tolist() == shown([{"role": "user", "content": question}], True)
        action = env.plan(env.problem, looks=True)[0]
        reply = np.asarray([*chat.within(chat.dialect.write(heard(action))), chat.end_id], np.int32)
        observation, _, _, _, told = env.step(action)
        added, _ = context.extend(reply, action, observation, told)
        call = {
            "type": "function",
            "function": {"name": "dummy", "arguments": {}},
        }  # TRL renders results beside such a one
        before = [{"role": "user", "content": "dummy"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        results = [{"role": "tool", "name": m["name"], "content": m["content"]} for m in told["messages"]]
        assert added.tolist() == shown([*before, *results], True)[len(shown(before, False)) :]
