"""The office: the state that is reached counts, not order, numbers or words; anything more is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from turnwise.envs.office.desk import DAYS, HOURS
from turnwise.envs.office.problems import LEVELS, problem
from turnwise.envs.office.world import OfficeEnv
from turnwise.envs.said import Call, said


def world(kind: str, difficulty: str = "hard") -> OfficeEnv:
    env = OfficeEnv(difficulty)
    env.reset(options={"split": "test", "task": LEVELS[difficulty].kinds.index(kind)})
    assert env.problem.kind == kind
    return env


def told(env: OfficeEnv, name: str, **arguments: Any) -> str:
    return env.step(said(calls=[Call(name, arguments)]))[0]


def finished(env: OfficeEnv, reply: str = "It is done.") -> bool:
    _, reward, terminated, _, info = env.step(reply)
    assert terminated
    assert info["success"] == (reward == 1.0) == (info["score"] == 1.0)
    return bool(info["success"])


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("expert", ["searching", "knowing"])
def test_experts_win(difficulty: str, expert: str) -> None:
    env, kinds = OfficeEnv(difficulty), set()
    for index in range(2 * len(LEVELS[difficulty].kinds)):
        observation, info = env.reset(options={"split": "validation", "task": index})
        player, terminated = env.expert(expert), False
        player.begin(observation, info)
        while not terminated:
            observation, reward, terminated, truncated, info = env.step(player.act(observation, info))
            assert not truncated
            assert "Error" not in observation
        assert (reward, info["success"], info["valid"]) == (1.0, True, True)
        kinds.add(env.problem.kind)
    assert kinds == set(LEVELS[difficulty].kinds)


@pytest.mark.parametrize("kind", LEVELS["hard"].kinds)
def test_what_is_not_done_or_done_beside_it_fails(kind: str) -> None:
    assert not finished(world(kind), "I have done everything that you asked for.")
    env = world(kind)
    env.step(said(calls=env.problem.acts))
    told(env, "send_mail", to=env.problem.state.contacts[0].address, topic="lunch", text="Hungry?")
    assert not finished(env)
    env = world(kind)
    env.step(said(calls=env.problem.acts))
    assert finished(env, "")


def test_order_case_and_words_do_not_count() -> None:
    env = world("meet team")
    (made,) = env.problem.acts
    given = {**made.arguments, "people": made.arguments["people"][::-1], "topic": made.arguments["topic"].upper()}
    told(env, "add_event", **given)
    assert finished(env)
    env = world("answer")
    for each in reversed(env.problem.acts):
        told(env, "send_mail", **{**each.arguments, "text": "Other words."})
    assert finished(env)


def test_the_first_free_hour_is_on_a_day_that_has_one() -> None:
    made = problem(LEVELS["hard"], 531622)
    days = [event.day for event in made.state.events]
    full = next(day for day in DAYS if days.count(day) == len(HOURS))
    (act,) = made.acts
    assert act.arguments["day"] != full
    assert made.done().events != made.state.events


def test_a_detour_is_no_fault() -> None:
    env = world("cancel")
    (made,) = env.problem.acts
    free = next(
        (d, h) for d in DAYS for h in HOURS if (d, h) not in {(e.day, e.hour) for e in env.problem.state.events}
    )
    assert told(env, "move_event", id=made.arguments["id"], day=free[0], hour=free[1]) == "moved"
    assert told(env, "cancel_event", **made.arguments) == "cancelled"
    assert finished(env)


def test_what_cannot_be_is_told_and_changes_nothing() -> None:
    env = world("meet")
    event, (made,) = env.problem.state.events[0], env.problem.acts
    taken = {**made.arguments, "day": event.day, "hour": event.hour}
    assert f"{event.day} {event.hour} is taken by {event.topic}" in told(env, "add_event", **taken)
    assert "nobody has the address" in told(env, "add_event", **{**made.arguments, "people": ["x@firm.example"]})
    assert "nobody has the address" in told(env, "send_mail", to="x@other.example", topic="x", text="x")
    assert "there is no meeting 99" in told(env, "cancel_event", id=99)
    assert "there is no mail 99" in told(env, "forward_mail", id=99, to=env.problem.state.contacts[0].address)
    assert "hour: Input should be less than 17" in told(env, "add_event", **{**made.arguments, "hour": 22})
    assert env.state() == env.problem.state
    told(env, "add_event", **made.arguments)
    assert finished(env)


def test_what_is_looked_up_is_shown() -> None:
    env = world("meet")
    person = env.problem.state.contacts[0]
    shown = f"{person.name}, {person.team}, {person.address}"
    assert told(env, "find_contacts", text=person.name.split()[1].lower()).count(shown) == 1
    assert told(env, "find_contacts", text="Nobody Known") == "nobody"
    event = env.problem.state.events[0]
    assert f"{event.hour} {event.topic}" in told(env, "list_events", day=event.day)
    assert told(env, "find_events", topic=event.topic).startswith(f"{event.id}: {event.day} {event.hour}")
    mail = env.problem.state.inbox[0]
    assert told(env, "find_mails", text=mail.topic).startswith(f"{mail.id}: from {mail.sender}")
