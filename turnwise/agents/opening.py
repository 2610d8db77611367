"""How a conversation begins: with the instructions, and with examples.

Examples are episodes of an expert, laid before the model's own as earlier turns of the conversation (few-shot). Each of
their turns is shown as the agent's own turns are: by the same context policy, with the same list of actions and the
same form of a reply. The instructions come once, before everything else. All episodes of an agent have the same
examples, so that the engine computes them once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.actions import written
from turnwise.agents.chat import ChatFormat, ChatTurn
from turnwise.agents.dialogue import told_before
from turnwise.agents.prompts import AgentConfig, Context, WithoutThoughts, context_policy
from turnwise.agents.roles import Roles, as_message
from turnwise.envs.interface import Info
from turnwise.envs.said import heard
from turnwise.trajectory import IntArray

TAG_INSTRUCTIONS = (
    "First think step by step inside <think> </think>. Then give exactly one action inside <action> </action>."
)
TAG_INSTRUCTIONS_WITH_EXAMPLES = (
    "Give exactly one action inside <action> </action>. You may think before it, inside <think> </think>."
)
"""Examples show actions without thoughts."""

EXAMPLES_FILE = "examples.json"
"""In the folder of a run or of an exported model: the examples that its agent is shown."""


@dataclass(frozen=True, slots=True)
class Example:
    """One episode, turn by turn: what was observed, which actions were listed, what the expert did.

    ``task`` is the content key of its task. ``requests`` are what was asked in roles, as JSON; () where the world
    speaks in observations.
    """

    observations: tuple[str, ...]
    admissible: tuple[tuple[str, ...] | None, ...]
    actions: tuple[str, ...]
    task: str = ""
    requests: tuple[str, ...] = ()


class TextChat:
    """A ``Chat`` for context policies whose "tokens" are the code points of a message's text.

    So the same policies can be used without a tokenizer.
    """

    def open(self, text: str) -> IntArray:
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4").astype(np.int32)

    def extend(self, reply_ids: IntArray, text: str) -> IntArray:
        return self.open(text)

    def decode(self, ids: IntArray) -> str:
        return ids.astype("<i4").tobytes().decode("utf-32-le", "surrogatepass")


def opening_text(config: AgentConfig, env_instructions: str, *, examples: bool = False) -> str:
    """The instructions that the first message begins with, as ``config`` asks for them, or ""."""
    if not config.instructions:
        return ""
    parts = [env_instructions] if env_instructions else []
    if config.action_format == "tags":
        parts.append(TAG_INSTRUCTIONS_WITH_EXAMPLES if examples else TAG_INSTRUCTIONS)
    return "\n".join(parts) + "\n\n" if parts else ""


def new_context(
    chat: ChatFormat, config: AgentConfig, env_instructions: str, examples: Sequence[Example] = ()
) -> Context:
    """A context policy for one episode, as ``config`` names it. Each of its contexts begins with the examples."""
    if config.context == "roles":
        return Roles(chat, config, opening_text(config, env_instructions), example_messages(examples))
    make = WithoutThoughts if config.thoughts == "drop" else context_policy(config.context)
    if examples:
        return make(chat.after(example_turns(examples, config, env_instructions)), config, "")
    return make(chat, config, opening_text(config, env_instructions))


def example_turns(examples: Sequence[Example], config: AgentConfig, env_instructions: str) -> tuple[ChatTurn, ...]:
    """The examples as turns of a chat, (user's message, reply); the first message begins with the instructions."""
    chat, turns = TextChat(), list[ChatTurn]()
    for example in examples:
        context = context_policy(config.context)(chat, config, "")
        shown: list[Info] = [{} if each is None else {"listed_actions": list(each)} for each in example.admissible]
        prompt = context.begin(example.observations[0], shown[0])
        for n, action in enumerate(example.actions):
            reply = written(action, config.action_format)
            turns.append((chat.decode(prompt), reply))
            if n + 1 < len(example.actions):
                prompt, _ = context.extend(chat.open(reply), action, example.observations[n + 1], shown[n + 1])
    if turns:
        turns[0] = (opening_text(config, env_instructions, examples=True) + turns[0][0], turns[0][1])
    return tuple(turns)


def example_messages(examples: Sequence[Example]) -> tuple[dict[str, Any], ...]:
    """The examples as messages of a chat with roles, without what their worlds said as system messages.

    Raises ValueError for examples of a world that speaks in observations.
    """
    told = list[dict[str, Any]]()
    for example in examples:
        if len(example.requests) != len(example.actions):
            raise ValueError(
                "agent.examples are of a world that speaks in observations, and agent.context=roles shows messages: "
                "set it to 0"
            )
        asked = [json.loads(request) for request in example.requests]
        last = told_before(asked, example.actions)[-1]
        told += [each for each in last if each["role"] != "system"]
        told.append(as_message(heard(example.actions[-1])))
    return tuple(told)


def check_room(chat: ChatFormat, config: AgentConfig, env_instructions: str, examples: Sequence[Example]) -> None:
    """Raises ValueError where no episode as long as the longest example would fit into a context after them."""
    if not examples:
        return

    def tokens(some: Sequence[Example]) -> int:
        if chat.rendering is not None:
            tools = json.loads(some[0].requests[0]).get("tools", ()) if some[0].requests else ()
            return len(chat.rendering.render(example_messages(some), tools))
        return chat.after(example_turns(some, config, env_instructions)).num_tokens

    taken, longest = tokens(examples), max(tokens([each]) for each in examples)
    needed = taken + longest + config.max_reply_tokens
    if needed > config.max_context_tokens:
        raise ValueError(
            f"agent.examples={len(examples)}: the examples take {taken} tokens and the longest of them {longest}; with "
            f"a reply of {config.max_reply_tokens} an episode like it needs {needed}, and agent.max_context_tokens is "
            f"{config.max_context_tokens}: raise it to {needed} or more, or show fewer examples (0: none)"
        )


def example_record(example: Example) -> dict[str, Any]:
    """An example as JSON values; what was asked in roles only where it was."""
    made = asdict(example)
    if not example.requests:
        del made["requests"]
    return made


def write_examples(folder: Path, examples: Sequence[Example]) -> None:
    """Write the examples beside a run or a model."""
    plain = {"examples": list(map(example_record, examples))}
    (folder / EXAMPLES_FILE).write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")


def read_examples(folder: str | Path) -> tuple[Example, ...] | None:
    """The examples of a run or an exported model; None where none are stored. Raises ValueError for a damaged file."""
    path = Path(folder) / EXAMPLES_FILE
    if not path.is_file():
        return None
    try:
        return tuple(
            Example(
                tuple(each["observations"]),
                tuple(None if shown is None else tuple(shown) for shown in each["admissible"]),
                tuple(each["actions"]),
                str(each["task"]),
                tuple(each.get("requests", ())),
            )
            for each in json.loads(path.read_text(encoding="utf-8"))["examples"]
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): restore it, or give agent.examples to make new ones"
        ) from None
