"""Small agent programs, by themselves without any client library: they post requests with urllib."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from turnwise.envs.programs.running import Model

SEEN: list[Any] = []
"""What programs leave for tests to look at."""
RELEASE = threading.Event()
"""Ends the programs that would never end."""


def post(model: Model, messages: list[dict[str, Any]], headers: dict[str, str] | None = None, **more: Any) -> Any:
    """(status, answer) of one request; the answer of a stream is its bytes."""
    body = json.dumps({"model": model.name, "messages": messages, **more}).encode()
    return send(
        f"{model.base_url}/chat/completions", body, {"Authorization": f"Bearer {model.api_key}", **(headers or {})}
    )


def send(url: str, body: bytes | None, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            raw = answer.read()
            return answer.status, json.loads(raw) if answer.headers["Content-Type"] == "application/json" else raw
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def said(answered: Any) -> dict[str, Any]:
    """The message in an answer. Raises where the request was refused."""
    status, answer = answered
    if status != 200:
        raise RuntimeError(answer["error"]["message"])
    message: dict[str, Any] = answer["choices"][0]["message"]
    return message


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def twice(task: dict[str, Any], model: Model) -> float:
    """Asks, tells it so, asks again; the reward is the share of "e" in the second reply."""
    messages = [user(task["question"])]
    messages += [said(post(model, messages)), user("Say it again.")]
    text = said(post(model, messages))["content"] or ""
    return text.count("e") / max(1, len(text))


async def twice_async(task: dict[str, Any], model: Model) -> dict[str, Any]:
    reward = await asyncio.to_thread(twice, task, model)
    return {"reward": reward, "success": reward > 0.5, "score": reward}


def raises(task: dict[str, Any], model: Model) -> float:
    said(post(model, [user("hello")]))
    raise KeyError("no such city")


def returns(task: dict[str, Any], model: Model) -> Any:
    said(post(model, [user("hello")]))
    return float("nan") if task["returned"] == "not a number" else task["returned"]


def asks_nothing(task: dict[str, Any], model: Model) -> float:
    return 1.0


def leaves(task: dict[str, Any], model: Model) -> float:
    said(post(model, [user("hello")]))
    raise SystemExit(3)


async def cancels_itself(task: dict[str, Any], model: Model) -> float:
    await asyncio.to_thread(post, model, [user("hello")])
    raise asyncio.CancelledError("of its own")


def never_ends(task: dict[str, Any], model: Model) -> float:
    said(post(model, [user("hello")]))
    RELEASE.wait(60)
    return 1.0


def asks_for_ever(task: dict[str, Any], model: Model) -> float:
    while True:
        SEEN.append(post(model, [user("more")])[0])
        if SEEN[-1] != 200:
            return 1.0


def calls_later(task: dict[str, Any], model: Model) -> float:
    """Leaves a thread behind that asks once more."""
    first = said(post(model, [user("hello")]))

    def later() -> None:
        time.sleep(0.2)
        SEEN.append(post(model, [user("hello"), first, user("and now?")]))

    threading.Thread(target=later, daemon=True).start()
    return 1.0


async def blocks(task: dict[str, Any], model: Model) -> float:
    """A blocking client within a coroutine: it holds the loop until the reply comes."""
    return float(len(said(post(model, [user("hello")]))["content"]))


async def imports(task: dict[str, Any], model: Model) -> float:
    """A library of some seconds, imported where it is used."""
    importlib.import_module("heavy")
    return await asyncio.to_thread(twice, task, model)


async def shortens(task: dict[str, Any], model: Model) -> float:
    """Goes on with a shorter history where the context is full."""
    messages = [user("a long story")]
    status, answer = await asyncio.to_thread(post, model, messages)
    if status == 400:
        SEEN.append(answer["error"]["code"])
        said(await asyncio.to_thread(post, model, [user("short")]))
    return 1.0


def counts(task: dict[str, Any], model: Model) -> float:
    """What the client hears of a reply's length."""
    answer = post(model, [user("hello")])[1]
    SEEN.append((answer["choices"][0]["finish_reason"], answer["usage"]))
    return 1.0


def keeps_what_it_hears(task: dict[str, Any], model: Model) -> float:
    """What its client hears of three replies; the second may end at a text."""
    heard, messages = list[Any](), [user("hello")]
    SEEN.append(heard)
    for stop in (None, task["stop"], None):
        answer = post(model, messages, stop=stop)[1]
        heard.append((answer["choices"][0]["finish_reason"], answer["usage"]))
        messages += [answer["choices"][0]["message"], user("more")]
    return 1.0


def wishes(task: dict[str, Any], model: Model) -> float:
    """Wants its tokens drawn in ways of its own, and gives in where that is refused."""
    status, _ = post(model, [user("hello")], temperature=0.5, top_p=0.9, seed=3)
    if status != 200:
        SEEN.append(status)
        said(post(model, [user("hello")]))
    return 1.0


async def trained(task: dict[str, Any], model: Model) -> float:
    """A main agent that asks a helper, at another temperature, and goes on; the reward is the share of "e"."""
    texts = list[str]()

    async def ask(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        message = said(await asyncio.to_thread(post, model, messages, **more))
        texts.append(message["content"] or "")
        return message

    main = [user(task["question"])]
    main += [await ask(main), user("Ask.")]
    main += [await ask(main, max_tokens=5)]
    await ask([user("helper")], temperature=0.7, stop=["q"], seed=3)
    await ask([*main, user("So?")])
    text = "".join(texts)
    return text.count("e") / max(1, len(text))


LEVELS = {
    "type": "object",
    "properties": {"level": {"enum": ["low", "high"]}, "note": {"type": "string", "maxLength": 4}},
    "required": ["level", "note"],
}


def formed(task: dict[str, Any], model: Model) -> float:
    """Asks for JSON, then for a call; the reward is 1 for each level "high", and more for long notes."""
    schema = {"type": "json_schema", "json_schema": {"name": "level", "schema": LEVELS}}
    messages = [user(task["question"])]
    answer = said(post(model, messages, response_format=schema))
    messages += [answer, user("Call it.")]
    tool = {"type": "function", "function": {"name": "set", "parameters": LEVELS}}
    choice = {"type": "function", "function": {"name": "set"}}
    (call,) = said(post(model, messages, tools=[tool], tool_choice=choice, temperature=0.7))["tool_calls"]
    found = [json.loads(answer["content"]), json.loads(call["function"]["arguments"])]
    return sum((each["level"] == "high") + len(each["note"]) for each in found)


def follows(task: dict[str, Any], model: Model) -> float:
    """Does what its script says, each time in the context of a name, and keeps what it heard; the reward is its length.

    go: goes on. edit: changes its first message before. cut: goes on from its first message alone. retry: sends the
    same body once more. stream: the same as go, as a stream. together: asks in two contexts at the same time.
    """
    contexts, heard = dict[str, list[dict[str, Any]]](), list[tuple[str, str]]()

    def ask(name: str, text: str, kind: str) -> None:
        messages = contexts.setdefault(name, [user(f"session {task['number']} {name}")])
        if kind == "edit":
            messages[0] = user(messages[0]["content"] + "!")
        if kind == "cut":
            del messages[1:]
        messages.append(user(text))
        answer = said(post(model, messages))["content"] if kind != "stream" else _streamed(model, messages)
        if kind == "retry":
            again = said(post(model, messages, {"x-stainless-retry-count": "1"}))["content"]
            assert again == answer, "a retry is a turn of its own"
        heard.append((name, answer))
        messages.append({"role": "assistant", "content": answer})

    for kind, name, text in task["script"]:
        if kind == "together":
            threads = [threading.Thread(target=ask, args=(each, text, "go")) for each in (name, f"{name}+")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            ask(name, text, kind)
    SEEN.append((task["number"], heard))
    return float(sum(len(answer) for _, answer in heard))


def _streamed(model: Model, messages: list[dict[str, Any]]) -> str:
    raw = post(model, messages, stream=True)[1]
    events = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


def told(task: dict[str, Any], model: Model) -> float:
    """Asks until a request fits; the reward is the number of tokens that its client hears of."""
    answer = post(model, [user("hello")])[1]
    while "error" in answer:
        answer = post(model, [user("once more")])[1]
    return float(answer["usage"]["total_tokens"])


def overflows(task: dict[str, Any], model: Model) -> float:
    """Goes on with what fits after one request that does not; with ``"twice"`` asks for too much again."""
    messages = [user("hello")]
    messages += [said(post(model, messages)), user("mug " * 500)]
    SEEN.append(post(model, messages)[0])
    messages[-1] = user("mug " * 500 if task["twice"] else "and now?")
    said(post(model, messages))
    return 1.0
