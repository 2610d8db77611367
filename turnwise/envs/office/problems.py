"""Generated offices, and what is to be done in them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from turnwise.envs.office.desk import DAYS, HOURS, Contact, Desk, Event, Mail, State
from turnwise.envs.panels import GeneratedTasks, content_key
from turnwise.envs.said import Call, said
from turnwise.envs.tools.tool import call, tools_of

ENV_ID = "turnwise/Office-v0"
VERSION = 1


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words("Ada Bert Cara Dirk Elin Fred Greta Hugo Inga Jan Klara Lars Mona Nick Olga Paul")
_LAST = _words("Abel Baum Dahl Engel Falk Groth Hahn Jonas Krug Lange Meyer Noll Otto Peters Roth Sander")
_TEAMS = _words("design finance law press sales")
_ADJECTIVES = _words("annual big final first joint new next open quarterly special")
_SUBJECTS = _words("budget contract forecast journey launch plan report review survey training")


@dataclass(frozen=True, slots=True)
class Level:
    """What a difficulty asks: kinds of work, people, meetings and mails, and the replies that an episode may have."""

    kinds: tuple[str, ...]
    num_people: int
    num_events: int
    num_mails: int
    step_limit: int


_EASY = ("cancel", "write", "meet")
_MEDIUM = ("move", "forward", "meet team")
_HARD = ("first free", "answer")
LEVELS = {
    "easy": Level(_EASY, 4, 3, 2, 6),
    "medium": Level((*_EASY, *_MEDIUM), 8, 6, 4, 8),
    "hard": Level((*_EASY, *_MEDIUM, *_HARD), 10, 12, 6, 10),
}

Calls = list[Call]


@dataclass(frozen=True, slots=True)
class Problem:
    """An office, what is to be done, the calls that look things up, and those that do it."""

    state: State
    kind: str
    question: str
    looks: tuple[Call, ...]
    acts: tuple[Call, ...]

    def done(self) -> State:
        """The office after the work."""
        desk = Desk(self.state)
        tools = {tool.name: tool for tool in tools_of(desk)}
        for each in self.acts:
            found = call(tools, each)
            assert found.understood, found
        return desk.state

    def actions(self, *, looks: bool) -> list[str]:
        """The work as an agent does it: all that is looked up, then all that is changed, then a word."""
        asked = [said(calls=self.looks)] if looks and self.looks else []
        return [*asked, said(calls=self.acts), said("Done.")]


def problem(level: Level, seed: int) -> Problem:
    """The problem of a seed. Its kind is ``seed % len(level.kinds)``."""
    rng, kind = random.Random(seed), level.kinds[seed % len(level.kinds)]
    names = rng.sample([f"{first} {last}" for first in _FIRST for last in _LAST], level.num_people)
    people = tuple(Contact(name, rng.choice(_TEAMS)) for name in names)
    topics = rng.sample([f"{word} {subject}" for word in _ADJECTIVES for subject in _SUBJECTS], 30)
    times = rng.sample([(day, hour) for day in DAYS for hour in HOURS], level.num_events)
    events = tuple(
        Event(n + 1, day, hour, topics.pop(), tuple(p.address for p in rng.sample(people, 2)))
        for n, (day, hour) in enumerate(times)
    )
    mails = tuple(
        Mail(n + 1, rng.choice(people).address, topics.pop(), "Can you send it to me?") for n in range(level.num_mails)
    )
    state = State(people, events, mails)
    question, looks, acts = _WORK[kind](state, topics.pop(), rng)
    return Problem(state, kind, question, tuple(looks), tuple(acts))


def _free(state: State, rng: random.Random) -> tuple[str, int]:
    taken = {(event.day, event.hour) for event in state.events}
    return rng.choice([(day, hour) for day in DAYS for hour in HOURS if (day, hour) not in taken])


def _find(person: Contact) -> Call:
    return Call("find_contacts", {"text": person.name})


def _add(day: str, hour: int, topic: str, people: list[Contact]) -> Call:
    return Call("add_event", {"day": day, "hour": hour, "topic": topic, "people": [p.address for p in people]})


def _cancel(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    event = rng.choice(state.events)
    looks = [Call("find_events", {"topic": event.topic})]
    return f"Cancel the meeting about the '{event.topic}'.", looks, [Call("cancel_event", {"id": event.id})]


def _write(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    person = rng.choice(state.contacts)
    acts = [Call("send_mail", {"to": person.address, "topic": topic, "text": "See you."})]
    return f"Write a mail about the '{topic}' to '{person.name}'.", [_find(person)], acts


def _meet(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    person, (day, hour) = rng.choice(state.contacts), _free(state, rng)
    question = f"Plan a meeting about the '{topic}' with '{person.name}' on {day} at {hour}."
    return question, [_find(person)], [_add(day, hour, topic, [person])]


def _move(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    event, (day, hour) = rng.choice(state.events), _free(state, rng)
    looks = [Call("find_events", {"topic": event.topic})]
    acts = [Call("move_event", {"id": event.id, "day": day, "hour": hour})]
    return f"Move the meeting about the '{event.topic}' to {day} at {hour}.", looks, acts


def _forward(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    mail, person = rng.choice(state.inbox), rng.choice(state.contacts)
    looks = [Call("find_mails", {"text": mail.topic}), _find(person)]
    acts = [Call("forward_mail", {"id": mail.id, "to": person.address})]
    return f"Forward the mail about the '{mail.topic}' to '{person.name}'.", looks, acts


def _meet_team(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    team, (day, hour) = rng.choice(state.contacts).team, _free(state, rng)
    people = [person for person in state.contacts if person.team == team]
    question = f"Plan a meeting about the '{topic}' with everyone of the team '{team}' on {day} at {hour}."
    return question, [Call("find_contacts", {"text": team})], [_add(day, hour, topic, people)]


def _first_free(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    person = rng.choice(state.contacts)
    taken: dict[str, set[int]] = {day: {event.hour for event in state.events if event.day == day} for day in DAYS}
    day = rng.choice([event.day for event in state.events if len(taken[event.day]) < len(HOURS)])
    hour = next(hour for hour in HOURS if hour not in taken[day])
    looks = [_find(person), Call("list_events", {"day": day})]
    question = f"Plan a meeting about the '{topic}' with '{person.name}' on {day} at the first hour that is free."
    return question, looks, [_add(day, hour, topic, [person])]


def _answer(state: State, topic: str, rng: random.Random) -> tuple[str, Calls, Calls]:
    sender = rng.choice(state.inbox).sender
    mails = [mail for mail in state.inbox if mail.sender == sender]
    person = next(contact for contact in state.contacts if contact.address == sender)
    acts = [Call("send_mail", {"to": sender, "topic": mail.topic, "text": "Here it is."}) for mail in mails]
    return (
        f"Answer every mail of '{person.name}', each with its own topic.",
        [Call("find_mails", {"text": person.address})],
        acts,
    )


_WORK: dict[str, Callable[[State, str, random.Random], tuple[str, Calls, Calls]]] = {
    "cancel": _cancel,
    "write": _write,
    "meet": _meet,
    "move": _move,
    "forward": _forward,
    "meet team": _meet_team,
    "first free": _first_free,
    "answer": _answer,
}


@lru_cache(maxsize=8)
def problems(difficulty: str) -> GeneratedTasks[Problem]:
    """The panels of a difficulty, which all instances share."""
    level = LEVELS[difficulty]

    def key(made: Problem) -> str:
        content: dict[str, Any] = asdict(made.state)
        return content_key(json.dumps([content, made.question], sort_keys=True))

    return GeneratedTasks(
        ENV_ID,
        f"office|{VERSION}|{difficulty}",
        lambda seed: problem(level, seed),
        key,
        lambda made: made.kind,
        num_types=len(level.kinds),
    )
