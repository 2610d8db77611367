"""The office: what is in it, and the tools that look at it and change it.

Its state is one immutable value. A tool replaces it, or raises ValueError, which the agent reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
DAYS: tuple[Day, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
HOURS = range(9, 17)
Hour = Annotated[int, Field(ge=HOURS.start, lt=HOURS.stop)]


@dataclass(frozen=True, slots=True)
class Contact:
    name: str
    team: str

    @property
    def address(self) -> str:
        return f"{self.name.lower().replace(' ', '.')}@firm.example"


@dataclass(frozen=True, slots=True)
class Event:
    """A meeting of an hour. ``people`` are addresses."""

    id: int
    day: str
    hour: int
    topic: str
    people: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that came: from whom, about what."""

    id: int
    sender: str
    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A mail that was sent; ``forwarded`` is the id of the mail that went with it, or None."""

    to: str
    topic: str
    forwarded: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    contacts: tuple[Contact, ...]
    events: tuple[Event, ...]
    inbox: tuple[Mail, ...]
    sent: tuple[Sent, ...] = ()

    def reached(self) -> tuple[frozenset[tuple[object, ...]], tuple[tuple[object, ...], ...]]:
        """What counts of it: who meets when about what, and what was sent. Numbers, order and words do not."""
        events = frozenset((e.day, e.hour, e.topic.casefold(), frozenset(e.people)) for e in self.events)
        sent = sorted((s.to, s.topic.casefold(), s.forwarded or 0) for s in self.sent)
        return events, tuple(sent)


class Desk:
    """The tools. ``state`` is the office as it is now."""

    def __init__(self, state: State) -> None:
        self.state = state

    def find_contacts(self, text: str) -> str:
        """Find people by a part of their name or by their team."""
        found = [c for c in self.state.contacts if text.casefold() in f"{c.name} {c.team}".casefold()]
        return "\n".join(f"{c.name}, {c.team}, {c.address}" for c in found) or "nobody"

    def list_events(self, day: Day) -> str:
        """List the meetings of a day."""
        found = sorted((e for e in self.state.events if e.day == day), key=lambda e: e.hour)
        return "\n".join(f"{e.id}: {e.hour} {e.topic}, {' '.join(e.people)}" for e in found) or "no meetings"

    def find_events(self, topic: str) -> str:
        """Find meetings by a part of their topic."""
        found = [e for e in self.state.events if topic.casefold() in e.topic.casefold()]
        return "\n".join(f"{e.id}: {e.day} {e.hour} {e.topic}, {' '.join(e.people)}" for e in found) or "no meetings"

    def add_event(self, day: Day, hour: Hour, topic: str, people: list[str]) -> str:
        """Plan a meeting of an hour with people, who are given by their addresses."""
        self._check_free(day, hour)
        for address in people:
            self._check_address(address)
        number = max((e.id for e in self.state.events), default=0) + 1
        made = Event(number, day, hour, topic, tuple(people))
        self.state = replace(self.state, events=(*self.state.events, made))
        return f"planned as {number}"

    def move_event(self, id: int, day: Day, hour: Hour) -> str:
        """Move a meeting to another time."""
        old = self._event(id)
        self._check_free(day, hour)
        left = tuple(e for e in self.state.events if e is not old)
        self.state = replace(self.state, events=(*left, replace(old, day=day, hour=hour)))
        return "moved"

    def cancel_event(self, id: int) -> str:
        """Cancel a meeting."""
        old = self._event(id)
        self.state = replace(self.state, events=tuple(e for e in self.state.events if e is not old))
        return "cancelled"

    def find_mails(self, text: str) -> str:
        """Find mails that came, by a part of their topic or sender."""
        found = [m for m in self.state.inbox if text.casefold() in f"{m.topic} {m.sender}".casefold()]
        return "\n".join(f"{m.id}: from {m.sender}, {m.topic}: {m.text}" for m in found) or "no mails"

    def send_mail(self, to: str, topic: str, text: str) -> str:
        """Send a mail to an address."""
        self._check_address(to)
        self.state = replace(self.state, sent=(*self.state.sent, Sent(to, topic)))
        return "sent"

    def forward_mail(self, id: int, to: str) -> str:
        """Forward a mail that came to an address."""
        self._check_address(to)
        mail = next((m for m in self.state.inbox if m.id == id), None)
        if mail is None:
            raise ValueError(f"there is no mail {id}")
        self.state = replace(self.state, sent=(*self.state.sent, Sent(to, mail.topic, id)))
        return "forwarded"

    def _event(self, number: int) -> Event:
        for event in self.state.events:
            if event.id == number:
                return event
        raise ValueError(f"there is no meeting {number}")

    def _check_free(self, day: str, hour: int) -> None:
        if taken := next((e for e in self.state.events if (e.day, e.hour) == (day, hour)), None):
            raise ValueError(f"{day} {hour} is taken by {taken.topic}")

    def _check_address(self, address: str) -> None:
        if not any(contact.address == address for contact in self.state.contacts):
            raise ValueError(f"nobody has the address {address}")
