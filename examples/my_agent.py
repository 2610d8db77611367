"""Agent programs as you have them: any client library, any control flow. Each is trained as it is.

    cd examples
    turnwise train --program my_agent:agent --tasks shop.jsonl --algorithm grpo model.path=Qwen/Qwen3-0.6B
    turnwise train --program my_agent:graph ...            LangGraph
    turnwise train --program my_agent:sdk ...              OpenAI's Agents SDK
    turnwise train --program "python my_agent.py" ...      a command, told by environment variables

A program gets a row of the tasks and ``model``, which says where its model is: base_url, api_key, name, env, seed. It
returns its reward. The shop is that of shop.py. docs/cookbook/programs.md says more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from openai import AsyncOpenAI, OpenAI
from shop import Shop, score

OPENAI = AsyncOpenAI(base_url="http://127.0.0.1", api_key="-")  # its connections are shared by all episodes
TEXT = {"type": "string"}


def schema(name: str, about: str, required: str, /, **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": [required]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


TOOLS = [
    schema("find", "Search the shop.", "query", query=TEXT, limit={"type": "integer", "default": 3}),
    schema("add", "Put a thing into the cart.", "name", name=TEXT),
]


async def agent(task: dict[str, Any], model: Any) -> float:
    """The plain client, with a loop of its own."""
    client, shop = OPENAI.with_options(base_url=model.base_url, api_key=model.api_key), Shop(task)
    messages: list[Any] = [{"role": "user", "content": task["question"]}]
    for _ in range(6):
        answer = await client.chat.completions.create(model=model.name, messages=messages, tools=TOOLS)
        messages.append(message := answer.choices[0].message)
        if not message.tool_calls:
            break
        messages += [result(shop, call) for call in message.tool_calls]
    return score(task, shop, "")


async def graph(task: dict[str, Any], model: Any) -> float:
    """LangGraph's agent, with the shop's methods as its tools."""
    from langchain_openai import ChatOpenAI
    from langgraph.errors import GraphRecursionError
    from langgraph.prebuilt import ToolNode, create_react_agent

    shop = Shop(task)
    llm = ChatOpenAI(base_url=model.base_url, api_key=model.api_key, model=model.name)
    react = create_react_agent(llm, ToolNode([shop.find, shop.add], handle_tool_errors=True))
    with suppress(GraphRecursionError):  # too many turns: what was reached counts
        await react.ainvoke({"messages": [("user", task["question"])]}, {"recursion_limit": 12})
    return score(task, shop, "")


async def sdk(task: dict[str, Any], model: Any) -> float:
    """OpenAI's Agents SDK."""
    import agents
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool

    agents.set_tracing_disabled(True)
    shop, client = Shop(task), OPENAI.with_options(base_url=model.base_url, api_key=model.api_key)
    buyer = Agent(
        name="buyer",
        model=OpenAIChatCompletionsModel(model.name, client),
        tools=[function_tool(shop.find), function_tool(shop.add)],
    )
    with suppress(agents.MaxTurnsExceeded, agents.ModelBehaviorError):  # such as a call of a tool that is not there
        await Runner.run(buyer, task["question"], max_turns=6)
    return score(task, shop, "")


def result(shop: Shop, call: Any) -> dict[str, Any]:
    """What a call of a tool gave, as a message. The model reads errors too."""
    tools: dict[str, Callable[..., Any]] = {"find": shop.find, "add": shop.add}
    try:
        found = tools[call.function.name](**json.loads(call.function.arguments))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return {"role": "tool", "tool_call_id": call.id, "content": found if isinstance(found, str) else json.dumps(found)}


def main() -> None:
    """The same as a command: OpenAI's client finds its model by itself, and the last line is the reward."""
    task = json.loads(os.environ["TURNWISE_TASK"])
    shop, messages = Shop(task), [{"role": "user", "content": task["question"]}]
    answer = OpenAI().chat.completions.create(model=os.environ["OPENAI_MODEL"], messages=messages, tools=TOOLS)  # type: ignore[arg-type]
    for call in answer.choices[0].message.tool_calls or ():
        result(shop, call)
    print(score(task, shop, ""))


if __name__ == "__main__":
    main()
