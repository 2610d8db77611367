"""Each client runs, its episodes are recorded token by token, and sampler and learner agree on every one of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.clients.dictation import played
from turnwise.envs.said import Call, Said, heard
from turnwise.trajectory import Trajectory

pytestmark = pytest.mark.slow
CLOSE = 1e-4  # nats, in float32


def named(program: str) -> str:
    library = {"openai": "openai", "sdk": "agents", "langgraph": "langgraph", "smolagents": "smolagents"}
    pytest.importorskip(library[program.partition("_")[0]])
    return f"tests.clients.agents:{program}"


def finds(context: str) -> Said:
    """Calls the tool twice at once, and answers with what it says."""
    if "in drawer" in context:
        return Said("It is in drawer 3.")
    return Said("", (Call("find", {"thing": "mug"}), Call("find", {"thing": "red cup"})))


def finds_once(context: str) -> Said:
    return Said("It is in drawer 3.") if "in drawer" in context else Said("", (Call("find", {"thing": "mug"}),))


def continues(each: Trajectory) -> list[bool]:
    return [turn.continues for turn in each.turns]


def check(found: list[Trajectory], largest: float, success: float = 1.0) -> None:
    assert largest < CLOSE
    for each in found:
        assert (each.end, each.total_reward) == ("terminated", success)


@pytest.mark.parametrize("family", ["hermes", "llama3", "qwen_xml"])
@pytest.mark.parametrize(
    "program", ["openai_loop", "openai_stream", "sdk_tools", "langgraph_tools", "langgraph_blocking"]
)
def test_clients_with_tools(program: str, family: str) -> None:
    found, largest = played(named(program), finds_once if family == "llama3" else finds, family)
    check(found, largest)
    for each in found:
        assert continues(each) == [False, True]
        calls = heard(each.turns[0].action).calls
        shown = each.turns[1].observation
        assert [call.arguments["thing"] for call in calls] == re.findall(r"the ([a-z ]+) is in", shown)


def test_smolagents_tells_its_history_anew() -> None:
    """It writes its calls as text, so that each of its requests begins afresh."""

    def say(context: str) -> Said:
        if "in drawer" in context:
            return Said("", (Call("final_answer", {"answer": "drawer 3"}),))
        return Said("", (Call("find", {"thing": "mug"}),))

    found, largest = played(named("smolagents_tools"), say)
    check(found, largest)
    assert all(continues(each) == [False, False] for each in found)


def test_a_stream_is_the_same_to_the_id() -> None:
    whole, _ = played(named("openai_loop"), finds)
    streamed, _ = played(named("openai_stream"), finds)
    assert [ids(each) for each in whole] == [ids(each) for each in streamed]


def test_the_main_agent_goes_on_after_its_helpers() -> None:
    """Its exact tokens come back, in a row of their own; a summary and an edited reply begin afresh."""
    found, largest = played(named("openai_contexts"), lambda context: Said(f"reply {len(context)}"), num=1)
    check(found, largest)
    (each,) = found
    assert continues(each) == [False] * 7
    first, back = each.turns[0], each.turns[4]
    begun = [*first.prompt_ids.tolist(), *first.action_ids.tolist()]
    assert back.prompt_ids[: len(begun)].tolist() == begun
    edited = each.turns[6].prompt_ids.tolist()
    assert edited[: len(first.prompt_ids)] == first.prompt_ids.tolist()
    assert edited[: len(begun)] != begun


def test_helpers_at_once_are_turns_one_after_the_other() -> None:
    found, largest = played(named("openai_parallel"), lambda context: Said("done"))
    check(found, largest)
    for each in found:
        assert continues(each) == [False] * 3
        assert sorted(turn.observation for turn in each.turns) == [f"[user] helper {n}" for n in range(3)]


def test_an_impatient_client_costs_no_turns() -> None:
    """Its retries are joined to the first request, and control tokens in a user's text stay text."""
    import time

    def slowly(context: str) -> Said:
        time.sleep(0.5)
        return Said("later")

    found, largest = played(named("openai_impatient"), slowly, num=1)
    check(found, largest)
    assert continues(found[0]) == [False, True]
    prompt = found[0].turns[0].prompt_ids.tolist()
    end = int(found[0].turns[0].action_ids[-1])
    assert prompt.count(end) == 1


def test_the_sdk_streams() -> None:
    check(*played(named("sdk_streamed"), lambda context: Said("in drawer 3")))


def test_a_handoff_begins_a_context_of_its_own() -> None:
    def say(context: str) -> Said:
        return Said("I am.") if "You are the expert" in context else Said("", (Call("transfer_to_expert", {}),))

    found, largest = played(named("sdk_handoff"), say)
    check(found, largest)
    assert all(continues(each) == [False, False] for each in found)


def test_an_agent_as_a_tool_is_a_context_between_two_turns() -> None:
    def say(context: str) -> Said:
        if "You are the expert" in context:
            return Said("It is in drawer 3.")
        return Said("in drawer 3") if "drawer 3" in context else Said("", (Call("ask_expert", {"input": "where?"}),))

    found, largest = played(named("sdk_agent_as_tool"), say)
    check(found, largest)
    for each in found:
        assert continues(each) == [False] * 3
        begun = [*each.turns[0].prompt_ids.tolist(), *each.turns[0].action_ids.tolist()]
        assert each.turns[2].prompt_ids[: len(begun)].tolist() == begun


def test_a_supervisor_and_its_worker() -> None:
    def say(context: str) -> Said:
        if "You supervise" in context:
            return Said("in drawer 3" if "The worker says" in context else "ask the worker")
        return finds(context)

    found, largest = played(named("langgraph_supervisor"), say)
    check(found, largest)
    for each in found:
        assert continues(each) == [False, False, True, False]
        begun = [*each.turns[0].prompt_ids.tolist(), *each.turns[0].action_ids.tolist()]
        assert each.turns[3].prompt_ids[: len(begun)].tolist() == begun


def test_the_blocking_client_in_a_plain_def() -> None:
    check(*played(named("openai_blocking"), lambda context: Said("here")))


def ids(each: Trajectory) -> list[Any]:
    return [(turn.prompt_ids.tolist(), turn.action_ids.tolist()) for turn in each.turns]
