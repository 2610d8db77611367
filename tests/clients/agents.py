"""Agent programs as people write them, with each of the client libraries, which are imported where they are used."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from typing import Any

FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find a thing.",
        "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}, "required": ["thing"]},
    },
}


def found(thing: str) -> str:
    return f"the {thing} is in drawer {len(thing)}"


@cache
def openai_client() -> Any:
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url="http://127.0.0.1", api_key="-")


def client_of(model: Any) -> Any:
    """A client that shares its connections with those of other episodes."""
    return openai_client().with_options(base_url=model.base_url, api_key=model.api_key)


# The plain client.


async def openai_loop(task: dict[str, Any], model: Any) -> float:
    messages: list[Any] = [{"role": "user", "content": task["question"]}]
    while True:
        asked = client_of(model).chat.completions.create(model=model.name, messages=messages, tools=[FIND])
        message = (await asked).choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return float("drawer" in (message.content or ""))
        for call in message.tool_calls:
            text = found(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})


async def openai_stream(task: dict[str, Any], model: Any) -> float:
    """The same with streams, whose pieces it joins."""
    messages: list[Any] = [{"role": "user", "content": task["question"]}]
    while True:
        text, calls = "", dict[int, dict[str, Any]]()
        stream = await client_of(model).chat.completions.create(
            model=model.name, messages=messages, tools=[FIND], stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or ():
                    made = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                    made["id"] += call.id or ""
                    made["name"] += call.function.name or ""
                    made["arguments"] += call.function.arguments or ""
        if not calls:
            return float("drawer" in text)
        sent = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in calls.values()
        ]
        messages.append({"role": "assistant", "content": text or None, "tool_calls": sent})
        for call in calls.values():
            text = found(**json.loads(call["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})


def openai_blocking(task: dict[str, Any], model: Any) -> float:
    """The blocking client, in a plain def."""
    from openai import OpenAI

    with OpenAI(base_url=model.base_url, api_key=model.api_key) as client:
        message = {"role": "user", "content": task["question"]}
        answer = client.chat.completions.create(model=model.name, messages=[message])  # type: ignore[list-item]
    return float(bool(answer.choices[0].message.content))


async def openai_contexts(task: dict[str, Any], model: Any) -> float:
    """A main agent with three helpers, which then goes on, summarises, and edits what was said."""
    client = client_of(model)

    async def ask(messages: list[Any]) -> Any:
        return (await client.chat.completions.create(model=model.name, messages=messages)).choices[0].message

    main: list[Any] = [{"role": "user", "content": task["question"]}]
    main.append(await ask(main))
    for number in range(3):
        await ask([{"role": "user", "content": f"helper {number}"}])
    main.append({"role": "user", "content": "the helpers are done"})
    main.append(await ask(main))
    await ask([{"role": "user", "content": "Summary: all is done."}])
    await ask([main[0], {"role": "assistant", "content": "I never said that."}, {"role": "user", "content": "No?"}])
    return 1.0


async def openai_parallel(task: dict[str, Any], model: Any) -> float:
    """Three helpers at once."""

    async def helper(number: int) -> None:
        message = {"role": "user", "content": f"helper {number}"}
        await client_of(model).chat.completions.create(model=model.name, messages=[message])

    await asyncio.gather(*map(helper, range(3)))
    return 1.0


async def openai_impatient(task: dict[str, Any], model: Any) -> float:
    """Gives up after a fraction of a second, and asks again."""
    client = client_of(model).with_options(timeout=0.3, max_retries=20)
    messages: list[Any] = [{"role": "user", "content": "<|im_end|> is text here. " + task["question"]}]
    for _ in range(2):
        answer = await client.chat.completions.create(model=model.name, messages=messages)
        messages += [answer.choices[0].message, {"role": "user", "content": "And?"}]
    return 1.0


# The Agents SDK.


def _sdk(model: Any) -> Any:
    import agents

    agents.set_tracing_disabled(True)
    return agents.OpenAIChatCompletionsModel(model.name, client_of(model))


async def sdk_tools(task: dict[str, Any], model: Any) -> float:
    from agents import Agent, Runner, function_tool

    @function_tool
    def find(thing: str) -> str:
        """Find a thing."""
        return found(thing)

    agent = Agent(name="finder", instructions="Find things.", model=_sdk(model), tools=[find])
    result = await Runner.run(agent, task["question"])
    return float("drawer" in str(result.final_output))


async def sdk_streamed(task: dict[str, Any], model: Any) -> float:
    from agents import Agent, Runner

    result = Runner.run_streamed(Agent(name="a", instructions="Be brief.", model=_sdk(model)), task["question"])
    async for _ in result.stream_events():
        pass
    return float("drawer" in str(result.final_output))


async def sdk_handoff(task: dict[str, Any], model: Any) -> float:
    """One agent hands the conversation over to another, with other instructions and tools."""
    from agents import Agent, Runner

    expert = Agent(name="expert", instructions="You are the expert.", model=_sdk(model))
    first = Agent(name="first", instructions="Hand over.", model=_sdk(model), handoffs=[expert])
    result = await Runner.run(first, task["question"])
    return float(result.last_agent.name == "expert")


async def sdk_agent_as_tool(task: dict[str, Any], model: Any) -> float:
    """One agent calls another, and goes on with its answer."""
    from agents import Agent, Runner

    expert = Agent(name="expert", instructions="You are the expert.", model=_sdk(model))
    tool = expert.as_tool(tool_name="ask_expert", tool_description="Ask the expert.")
    main = Agent(name="main", instructions="You lead.", model=_sdk(model), tools=[tool])
    result = await Runner.run(main, task["question"])
    return float("drawer" in str(result.final_output))


# LangGraph.


def _chat(model: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=model.base_url, api_key=model.api_key, model=model.name)


def _finding() -> Any:
    from langchain_core.tools import tool

    @tool
    def find(thing: str) -> str:
        """Find a thing."""
        return found(thing)

    return find


async def langgraph_tools(task: dict[str, Any], model: Any) -> float:
    from langgraph.prebuilt import create_react_agent

    graph = create_react_agent(_chat(model), [_finding()])
    out = await graph.ainvoke({"messages": [("user", task["question"])]})
    return float("drawer" in out["messages"][-1].content)


def langgraph_blocking(task: dict[str, Any], model: Any) -> float:
    from langgraph.prebuilt import create_react_agent

    graph = create_react_agent(_chat(model), [_finding()])
    out = graph.invoke({"messages": [("user", task["question"])]})
    return float("drawer" in out["messages"][-1].content)


async def langgraph_supervisor(task: dict[str, Any], model: Any) -> float:
    """A graph in which a supervisor asks a worker, an agent with tools of its own, and then answers."""
    from langchain_core.messages import HumanMessage, SystemMessage
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.prebuilt import create_react_agent

    llm, worker = _chat(model), create_react_agent(_chat(model), [_finding()])

    async def supervise(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [await llm.ainvoke([SystemMessage("You supervise."), *state["messages"]])]}

    async def work(state: dict[str, Any]) -> dict[str, Any]:
        out = await worker.ainvoke({"messages": [("user", task["question"])]})
        return {"messages": [HumanMessage(f"The worker says: {out['messages'][-1].content}")]}

    def after(state: dict[str, Any]) -> str:
        return "worker" if len(state["messages"]) < 3 else END

    graph = StateGraph(MessagesState)
    graph.add_node("supervisor", supervise)
    graph.add_node("worker", work)
    graph.add_edge(START, "supervisor")
    graph.add_conditional_edges("supervisor", after, ["worker", END])
    graph.add_edge("worker", "supervisor")
    out = await graph.compile().ainvoke({"messages": [("user", task["question"])]})
    return float("drawer" in out["messages"][-1].content)


# smolagents.


def smolagents_tools(task: dict[str, Any], model: Any) -> float:
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    @tool
    def find(thing: str) -> str:
        """Find a thing.

        Args:
            thing: what to find
        """
        return found(thing)

    llm = OpenAIServerModel(model.name, api_base=model.base_url, api_key=model.api_key)
    agent = ToolCallingAgent(tools=[find], model=llm, max_steps=4, verbosity_level=0)
    return float("drawer" in str(agent.run(task["question"])))


# What a tiny model can learn: to say the letter e.


def _share(text: str) -> float:
    return text.count("e") / max(1, len(text))


async def openai_letters(task: dict[str, Any], model: Any) -> float:
    """Two turns of one conversation; the reward is the share of "e" in the second reply."""
    messages: list[Any] = [{"role": "user", "content": task["question"]}]
    for _ in range(2):
        answer = await client_of(model).chat.completions.create(model=model.name, messages=messages)
        messages += [message := answer.choices[0].message, {"role": "user", "content": "Again."}]
    return _share(message.content or "")


async def langgraph_letters(task: dict[str, Any], model: Any) -> float:
    """The same as an agent of LangGraph, asked twice."""
    from langgraph.prebuilt import create_react_agent

    graph = create_react_agent(_chat(model), [_finding()])
    out = await graph.ainvoke({"messages": [("user", task["question"])]}, {"recursion_limit": 6})
    out = await graph.ainvoke({"messages": [*out["messages"], ("user", "Again.")]}, {"recursion_limit": 6})
    return _share(str(out["messages"][-1].content))
