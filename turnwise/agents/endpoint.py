"""An agent whose model is behind a chat API: ``openai:MODEL``, or ``openai:MODEL@http://127.0.0.1:8000/v1``.

The model is shown the environment as a model of turnwise is: by the same context policies, and its actions are read by
the same formats. Its tokens stay on the server. Turns hold text only, and the server's token counts are added up in
``Usage``. The server also decides how long a context may be. Where it refuses one as too long, the episode is truncated
(with ``on_overflow=restart`` the conversation first starts anew).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from turnwise.agents.actions import answer, parse_action
from turnwise.agents.chat_client import PREFIX, ChatClient, ContextFullError, EndpointConfig, Usage, addressed
from turnwise.agents.opening import Example, TextChat, example_turns, opening_text
from turnwise.agents.prompts import AgentConfig, Context, context_policy
from turnwise.agents.seating import AgentReply, CutShortError, Scripted, TextEnv
from turnwise.envs.interface import Info, instructions_of, listed_actions
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

    def __call__(self, env: TextEnv, seed: int) -> ChatAgent:
        return ChatAgent(self, instructions_of(env), seed)

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
        self._see(observation, listed_actions(info))
        reply = self._reply()
        said = reply if self._settings.thoughts == "keep" else (answer(reply) or "").strip()
        self._messages.append({"role": "assistant", "content": said})
        parsed = parse_action(reply, self._settings.action_format)
        self._last = AgentReply(reply, parsed.text, parsed.valid)
        self._turn += 1
        return self._last

    def _see(self, observation: str, admissible: list[str] | None) -> None:
        if self._last is None:
            ids, continues = self._context.begin(observation, admissible), False
        else:
            said = self._chat.open(self._last.reply)
            ids, continues = self._context.extend(said, self._last.action, observation, admissible)
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


def is_endpoint(name: str) -> bool:
    return name.startswith(PREFIX)


def endpoint(name: str, settings: AgentConfig, config: EndpointConfig, examples: tuple[Example, ...] = ()) -> Scripted:
    """The agent that ``openai:MODEL[@URL]`` names. A URL in the name replaces that of the configuration.

    Raises ValueError for a name without a model, for a malformed URL, and where the key would be sent unencrypted.
    """
    return Scripted(name, Endpoint(ChatClient(*addressed(name, config)), settings, examples))
