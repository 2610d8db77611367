"""The usual settings of an agent whose model comes from elsewhere: from a folder, by a hub name, from an endpoint.

Such a model has not been trained on the world. So it is told what to do and what is possible, it may think before it
acts, and it is shown examples (``agent.examples``). The small models that turnwise makes know nothing but their
demonstrations, and keep to ``AgentConfig``'s own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnwise.agents.actions import ActionFormat
from turnwise.agents.prompts import AgentConfig

REPLY_TOKENS: Mapping[ActionFormat, int] = {"plain": 48, "tags": 256, "whole": 512, "calls": 512}
"""Token limit of a reply by the form of the answer: a line; a thought and an action; thoughts and tags of the world;
a thought and calls."""

CONTEXT_TOKENS = 8192


def settings_of_untrained(given: Mapping[str, Any], in_roles: bool = False) -> dict[str, Any]:
    """``given`` settings of an agent, and the usual ones of a model from elsewhere where they say nothing.

    ``in_roles``: whether the world says that it speaks in a chat with roles.
    """
    usual = "roles" if in_roles and given.get("action_format", "calls") == "calls" else "full"
    roles = given.get("context", usual) == "roles"
    style = given.get("action_format", "calls" if roles else "tags")
    return {
        "action_format": style,
        "instructions": True,
        **({"context": "roles"} if roles else {"show_admissible": True, "admissible_format": "lines"}),
        "max_reply_tokens": REPLY_TOKENS[style if style in tuple(REPLY_TOKENS) else "tags"],  # unchecked: maybe no text
        "max_context_tokens": CONTEXT_TOKENS,
        **given,
    }


def advice(config: AgentConfig) -> str:
    """What helps a model none of whose actions is valid."""
    examples = "" if config.examples else "Show it examples (agent.examples=2, where the world has an expert). "
    return (
        f"{examples}See whether its greedy replies are better (`turnwise evaluate ... --temperature 0 --tasks 8`): "
        "then lower rollout.temperature. Look at agent.action_format and agent.instructions, or clone the world's "
        "expert first (warmstart={}, or `turnwise warmstart`)"
    )
