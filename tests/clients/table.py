"""The table of docs/cookbook/programs.md: each client, what it does, and how far sampler and learner are apart.

python -m tests.clients.table
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from tests.clients import test_clients as clients
from tests.clients.dictation import played
from turnwise.envs.said import Call, Said


def lead(context: str) -> Said:
    if "You are the expert" in context:
        return Said("It is in drawer 3.")
    return Said("in drawer 3") if "drawer 3" in context else Said("", (Call("ask_expert", {"input": "where?"}),))


def hand_over(context: str) -> Said:
    return Said("I am.") if "You are the expert" in context else Said("", (Call("transfer_to_expert", {}),))


def final(context: str) -> Said:
    if "in drawer" in context:
        return Said("", (Call("final_answer", {"answer": "drawer 3"}),))
    return clients.finds_once(context)


def supervise(context: str) -> Said:
    if "You supervise" in context:
        return Said("in drawer 3" if "The worker says" in context else "ask the worker")
    return clients.finds(context)


ROWS: list[tuple[str, Callable[[str], Said]]] = [
    ("openai_loop", clients.finds),
    ("openai_stream", clients.finds),
    ("openai_contexts", lambda context: Said(f"reply {len(context)}")),
    ("openai_parallel", lambda context: Said("done")),
    ("sdk_tools", clients.finds),
    ("sdk_streamed", lambda context: Said("in drawer 3")),
    ("sdk_handoff", hand_over),
    ("sdk_agent_as_tool", lead),
    ("langgraph_tools", clients.finds),
    ("langgraph_blocking", clients.finds),
    ("langgraph_supervisor", supervise),
    ("smolagents_tools", final),
]

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for program, say in ROWS:
        found, largest = played(f"tests.clients.agents:{program}", say)
        shape = "".join("+" if turn.continues else "|" for turn in found[0].turns)
        tokens = sum(each.num_action_tokens for each in found)
        sys.stdout.write(f"{program:<22} {shape:<9} {largest:.1e} nats over {tokens} tokens\n")
