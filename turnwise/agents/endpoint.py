"""An agent whose model is behind a chat API: ``openai:MODEL``, or ``openai:MODEL@http://127.0.0.1:8000/v1``.

The model is shown the environment as a model of turnwise is: by the same context policies, and its actions are read by
the same formats. Where a world speaks in roles, the server gets its messages and tools as they are, with what is wished
of the reply, and gives calls.
The model's tokens stay on the server. Turns hold text only, and the server's token counts are added up in ``Usage``.
The server also decides how long a context may be. Where it refuses one as too long, the episode is truncated (with
``on_overflow=restart`` the conversation first starts anew).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turnwise.agents.actions import answer, parse_action
from turnwise.agents.chat_client import PREFIX, ChatClient, ContextFullError, EndpointConfig, Usage, addressed
from turnwise.agents.opening import Example, TextChat, example_messages, example_turns, opening_text
from turnwise.agents.prompts import AgentConfig, Context, check_context_fits, context_policy
from turnwise.agents.rendering import in_openai_form
from turnwise.agents.roles import as_answered, with_examples
from turnwise.agents.seating import AgentReply, CutShortError, Scripted, TextEnv
from turnwise.agents.wishes import Wishes
from turnwise.envs.forms import ANY_OBJECT
from turnwise.envs.interface import Info, instructions_of, with_system
from turnwise.envs.said import Call, Said, said
from turnwise.models.engine import Sampling
from turnwise.seeds import mix
from turnwise.trajectory import IntArray


@dataclass
class Endpoint:
    """Makes an agent for each episode, which shows the model ``examples`` first. ``sampling`` may be changed between
    episodes.
    """

    client: ChatClient
    settings: AgentConfig
    examples: tuple[Example, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def __call__(self, env: TextEnv, seed: int) -> ChatAgent | RolesAgent:
        kind = RolesAgent if self.settings.context == "roles" else ChatAgent
        return kind(self, instructions_of(env), seed)

    def fields(self, seed: int) -> dict[str, Any]:
        """The fields of a request except model and messages. ``seed`` is sent where ``endpoint.send_seed`` is true."""
        drawn: dict[str, Any] = {"temperature": self.sampling.temperature, "max_tokens": self.settings.max_reply_tokens}
        if self.sampling.top_p < 1:
            drawn["top_p"] = self.sampling.top_p
        if self.client.config.send_seed:
            drawn["seed"] = seed
        if self.settings.template:
            drawn["chat_template_kwargs"] = dict(self.settings.template)
        return drawn


class ChatAgent:
    """The agent of one episode. ``usage`` counts its requests and tokens so far."""

    def __init__(self, endpoint: Endpoint, instructions: str, seed: int) -> None:
        self.usage = Usage()
        self._endpoint, self._settings, self._seed = endpoint, endpoint.settings, seed
        self._chat = TextChat()
        self._begun = [
            {"role": role, "content": text}
            for turn in example_turns(endpoint.examples, endpoint.settings, instructions)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        text = "" if self._begun else opening_text(self._settings, instructions)
        self._context: Context = context_policy(self._settings.context)(self._chat, self._settings, text)
        self._messages: list[dict[str, str]] = []
        self._prompt, self._continues = "", False
        self._last: AgentReply | None = None
        self._turn = 0

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> AgentReply:
        """Ask the model. Raises CutShortError where the turns are used up or the server says the context is full."""
        if self._turn >= self._settings.max_turns:
            raise CutShortError("max_turns")
        self._see(observation, info)
        reply = self._reply()
        said = reply if self._settings.thoughts == "keep" else (answer(reply) or "").strip()
        self._messages.append({"role": "assistant", "content": said})
        parsed = parse_action(reply, self._settings.action_format)
        self._last = AgentReply(reply, parsed.text, parsed.valid)
        self._turn += 1
        return self._last

    def _see(self, observation: str, info: Info) -> None:
        if self._last is None:
            check_context_fits(self._settings, info)
            ids, continues = self._context.begin(observation, info), False
        else:
            said = self._chat.open(self._last.reply)
            ids, continues = self._context.extend(said, self._last.action, observation, info)
        self._show(ids, continues)

    def _show(self, ids: IntArray, continues: bool) -> None:
        if not continues:
            system = self._settings.system
            self._messages = [*([{"role": "system", "content": system}] if system else []), *self._begun]
        self._messages.append({"role": "user", "content": self._chat.decode(ids)})

    def _reply(self) -> str:
        with contextlib.suppress(ContextFullError):
            return self._ask()
        if self._settings.on_overflow == "restart":
            self._show(self._context.restart(), continues=False)
            with contextlib.suppress(ContextFullError):
                return self._ask()
        raise CutShortError("context")

    def _ask(self) -> str:
        draw = mix("chat", self._seed, self._turn) >> 33  # in [0, 2**31)
        answered = self._endpoint.client.ask(self._messages, self._endpoint.fields(draw))
        self.usage += answered.usage
        return answered.text


class RolesAgent:
    """The agent of one episode in a world of chats with roles. ``usage`` counts its requests and tokens so far."""

    def __init__(self, endpoint: Endpoint, instructions: str, seed: int) -> None:
        self.usage = Usage()
        self._endpoint, self._settings, self._seed = endpoint, endpoint.settings, seed
        told = opening_text(self._settings, instructions).strip()
        self._system = "\n\n".join(filter(None, (self._settings.system, told)))
        self._examples = example_messages(endpoint.examples)
        self._asked: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []  # messages and tools of each turn
        self._said: list[Said] = []

    def begin(self, observation: str, info: Info) -> None:
        pass

    def act(self, observation: str, info: Info) -> AgentReply:
        """Ask the model. Raises CutShortError where the turns are used up or the server says the context is full."""
        if len(self._said) >= self._settings.max_turns:
            raise CutShortError("max_turns")
        messages, tools = self._request(info)
        fields = wished(self._endpoint.fields(mix("chat", self._seed, len(self._said)) >> 33), Wishes.of(info))
        shown = with_examples(with_system(messages, self._system), self._examples)
        try:
            answered = self._endpoint.client.ask(
                [_sent(message) for message in shown], {**fields, **({"tools": tools} if tools else {})}
            )
        except ContextFullError:
            raise CutShortError("context") from None
        self.usage += answered.usage
        self._asked.append((messages, tools))
        self._said.append(heard_from(answered.message))
        action = said(*(getattr(self._said[-1], name) for name in ("content", "calls", "fault", "thought")))
        return AgentReply(action, action, self._said[-1].fault is None)

    def _request(self, info: Info) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        if info.get("messages") is None:
            raise ValueError("agent.context=roles is for worlds that give info['messages']: leave it out for this one")
        new, before = list(info["messages"]), info.get("after")
        if before is None:
            return new, list(info.get("tools") or ())
        messages, tools = self._asked[before]
        return [*messages, *as_answered(self._said[before], new)], list(info.get("tools") or tools)


def _sent(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as OpenAI's API takes it: arguments are text, and thoughts are left out."""
    made = in_openai_form(message, json_arguments=True)
    made.pop("reasoning_content", None)
    return made


def wished(fields: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    """The fields of a request with what a world's client wishes of the reply, as ``Wishes`` keeps it for a model here.

    A server that cannot follow one of them refuses the request, which ends the run with what it says.
    """
    made, form = dict(fields), wishes.form
    if wishes.temperature is not None and made["temperature"]:  # a greedy measurement stays greedy
        made["temperature"] = wishes.temperature
    if wishes.max_tokens is not None:
        made["max_tokens"] = min(made["max_tokens"], wishes.max_tokens)
    if wishes.stop:
        made["stop"] = list(wishes.stop)
    if form is not None and form.schema is not None:
        named = {"name": "reply", "schema": dict(form.schema), **({"strict": True} if form.strict else {})}
        any_object = form.schema == ANY_OBJECT
        made["response_format"] = (
            {"type": "json_object"} if any_object else {"type": "json_schema", "json_schema": named}
        )
    elif form is not None and form.must:
        made["tool_choice"] = {"type": "function", "function": {"name": form.calls[0]}}
    elif form is not None:
        made["tool_choice"] = "required"
    if form is not None and form.one_call and made.get("tool_choice") in (None, "required"):
        made["parallel_tool_calls"] = False
    return made


def heard_from(message: Mapping[str, Any]) -> Said:
    """What a server's message says. A call whose arguments are no JSON object is a fault."""
    calls, faults = list[Call](), list[str]()
    for each in message.get("tool_calls") or ():
        try:
            about = each["function"]
            arguments = json.loads(about["arguments"] or "{}")
            if not isinstance(arguments, dict):
                raise ValueError("the arguments are no object")
            calls.append(Call(str(about["name"]), arguments))
        except (ValueError, LookupError, TypeError) as error:
            faults.append(f"the call is not JSON ({error})")
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return Said(str(message.get("content") or ""), tuple(calls), "; ".join(faults) or None, str(thought))


def is_endpoint(name: str) -> bool:
    return name.startswith(PREFIX)


def endpoint(name: str, settings: AgentConfig, config: EndpointConfig, examples: tuple[Example, ...] = ()) -> Scripted:
    """The agent that ``openai:MODEL[@URL]`` names. A URL in the name replaces that of the configuration.

    Raises ValueError for a name without a model, for a malformed URL, and where the key would be sent unencrypted.
    """
    model, config = addressed(name, config)
    if settings.context == "roles" and settings.on_overflow == "restart":
        raise ValueError(
            "agent.on_overflow=restart: what an endpoint is told in roles does not start anew; leave it out"
        )
    return Scripted(name, Endpoint(ChatClient(model, config), settings, examples))
