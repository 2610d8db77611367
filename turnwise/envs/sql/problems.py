"""Generated databases and questions about them.

A *theme* is a kind of thing, such as people, with a name, a category and two numbers. A database has a table of one
theme; on higher levels also one of another theme, and one of events that belong to the things. What a question calls
"wage" may be the column wage, pay or salary: the agent has to look.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from turnwise.envs.panels import GeneratedTasks, content_key
from turnwise.envs.sql.database import Database

ENV_ID = "turnwise/SQL-v0"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Theme:
    """A kind of thing. Columns: what questions call each, and the names that it may have in a table."""

    one: str
    many: str
    tables: tuple[str, ...]
    key: tuple[str, ...]
    category: tuple[str, tuple[str, ...], tuple[str, ...]]
    numbers: tuple[tuple[str, tuple[str, ...], range], ...]
    names: tuple[tuple[str, ...], tuple[str, ...]]
    event: tuple[str, tuple[str, ...]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words("Ana Ben Cleo Dan Eva Finn Gus Hana Ivo Jana Kim Leo Mia Nils Ola Pia Rosa Sam Tim Una")
_LAST = _words("Adler Brook Cole Dorn Ek Frey Gray Holm Ives Jung Kerr Lind Moss Nord Orr Pike Ray Stone Vale Wood")
_ADJECTIVES = _words("big dark fine flat green heavy light long new old red round short small white")
_THINGS = _words("bag bell bowl box chair clock cup desk fork jar key lamp mug pan pot rug")
_OPENING = _words("Blue Cold Deep Far Gold High Last Lost North Quiet Red Silent Stone Summer Winter")
_CLOSING = _words("Bay Bridge Door Fire Garden Hill House Island Lake Night Path River Road Sea Tower")

THEMES = (
    Theme(
        *("person", "people", ("people", "staff", "workers"), ("name", "full_name")),
        ("town", ("town", "city", "place"), ("Bern", "Kiel", "Lyon", "Oslo", "Turin")),
        (("wage", ("wage", "pay", "salary"), range(20, 100)), ("age", ("age", "years"), range(18, 80))),
        (_FIRST, _LAST),
        ("visit", ("visits", "trips")),
    ),
    Theme(
        *("product", "products", ("products", "items", "goods"), ("name", "label")),
        ("colour", ("colour", "shade"), ("amber", "black", "pink", "silver", "teal")),
        (("price", ("price", "cost"), range(2, 90)), ("stock", ("stock", "amount", "quantity"), range(1, 60))),
        (_ADJECTIVES, _THINGS),
        ("order", ("orders", "purchases")),
    ),
    Theme(
        *("book", "books", ("books", "volumes", "library"), ("title", "name")),
        ("genre", ("genre", "kind", "subject"), ("crime", "drama", "history", "poetry", "travel")),
        (("length", ("pages", "length"), range(80, 700)), ("year", ("year", "published"), range(1950, 2024))),
        (_OPENING, _CLOSING),
        ("loan", ("loans", "lendings")),
    ),
)


@dataclass(frozen=True, slots=True)
class Level:
    """What a difficulty asks: kinds of question, rows of the table, and whether there are other tables."""

    kinds: tuple[str, ...]
    num_rows: int
    other: bool
    events: bool
    step_limit: int


_EASY = ("number of", "how many", "which most")
_MEDIUM = ("sum", "above", "which least in")
_HARD = ("events", "most events")
LEVELS = {
    "easy": Level(_EASY, 6, False, False, 6),
    "medium": Level((*_EASY, *_MEDIUM), 10, True, False, 8),
    "hard": Level((*_EASY, *_MEDIUM, *_HARD), 12, True, True, 8),
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its name, its columns, and its rows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int | str, ...], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A database, a question, a query that answers it, and the answer."""

    tables: tuple[Table, ...]
    kind: str
    question: str
    sql: str
    answer: str

    def database(self) -> Database:
        """The database, made anew; close it."""
        statements: list[tuple[str, tuple[tuple[int | str, ...], ...]]] = []
        for table in self.tables:
            statements.append((f"CREATE TABLE {table.name} ({', '.join(table.columns)})", ()))
            marks = ", ".join("?" * len(table.columns))
            statements.append((f"INSERT INTO {table.name} VALUES ({marks})", table.rows))
        return Database(statements)

    @property
    def schema(self) -> str:
        return "\n".join(f"{table.name}({', '.join(table.columns)})" for table in self.tables)


class _Made:
    """The table of a theme with the names that it has here. ``rows``: id, name, category and the two numbers."""

    def __init__(self, theme: Theme, num_rows: int, rng: random.Random) -> None:
        self.theme = theme
        self.key, self.category = rng.choice(theme.key), rng.choice(theme.category[1])
        self.numbers = [rng.choice(names) for _, names, _ in theme.numbers]
        firsts, lasts = theme.names
        every = [f"{first} {last}" for first in firsts for last in lasts]
        values = [rng.sample(span, num_rows) for _, _, span in theme.numbers]  # all different: one is the most
        rows = [
            (n + 1, name, rng.choice(theme.category[2]), values[0][n], values[1][n])
            for n, name in enumerate(rng.sample(every, num_rows))
        ]
        middle = [self.category, *self.numbers]
        order = rng.sample(range(3), 3)  # the columns stand in any order
        self.columns = ("id", self.key, *(middle[n] for n in order))
        self.table = Table(
            rng.choice(theme.tables), self.columns, tuple((*row[:2], *(row[2 + n] for n in order)) for row in rows)
        )
        self.rows = rows


def problem(level: Level, seed: int) -> Problem:
    """The problem of a seed. Its kind is ``seed % len(level.kinds)``."""
    rng, kind = random.Random(seed), level.kinds[seed % len(level.kinds)]
    themes = rng.sample(THEMES, 2)
    made = _Made(themes[0], level.num_rows, rng)
    tables = [made.table]
    if level.other:
        tables.append(_Made(themes[1], level.num_rows, rng).table)
    events = _events(made, rng) if level.events else None
    if events is not None:
        tables.append(events)
    question, sql = _QUESTIONS[kind](made, events, rng)
    rng.shuffle(tables)
    asked = Problem(tuple(tables), kind, question, sql, "")
    database = asked.database()
    ((answer,),) = database.rows(sql)
    database.close()
    return Problem(asked.tables, kind, question, sql, str(answer))


def _events(made: _Made, rng: random.Random) -> Table:
    """Events of the things: each has a different number of them, so that one has the most."""
    counts = list(range(len(made.rows)))
    rng.shuffle(counts)
    owners = [row[0] for row, count in zip(made.rows, counts, strict=True) for _ in range(min(count, 5))]
    top = made.rows[counts.index(max(counts))][0]
    owners += [top, top]
    rng.shuffle(owners)
    columns = ("id", f"{made.theme.one}_id", "day")
    return Table(
        rng.choice(made.theme.event[1]),
        columns,
        tuple((n + 1, owner, rng.randrange(1, 366)) for n, owner in enumerate(owners)),
    )


def _number_of(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    which, row = rng.randrange(2), rng.choice(made.rows)
    called, column = made.theme.numbers[which][0], made.numbers[which]
    sql = f"SELECT {column} FROM {made.table.name} WHERE {made.key} = '{row[1]}'"
    return f"What is the {called} of the {made.theme.one} '{row[1]}'?", sql


def _how_many(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    value = rng.choice(made.rows)[2]
    sql = f"SELECT COUNT(*) FROM {made.table.name} WHERE {made.category} = '{value}'"
    return f"How many {made.theme.many} have the {made.theme.category[0]} '{value}'?", sql


def _which_most(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    which = rng.randrange(2)
    called, column = made.theme.numbers[which][0], made.numbers[which]
    word, order = rng.choice((("highest", "DESC"), ("lowest", "ASC")))
    sql = f"SELECT {made.key} FROM {made.table.name} ORDER BY {column} {order} LIMIT 1"
    return f"Which {made.theme.one} has the {word} {called}?", sql


def _sum(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    which, value = rng.randrange(2), rng.choice(made.rows)[2]
    called, column = made.theme.numbers[which][0], made.numbers[which]
    sql = f"SELECT SUM({column}) FROM {made.table.name} WHERE {made.category} = '{value}'"
    return f"What is the total {called} of the {made.theme.many} with the {made.theme.category[0]} '{value}'?", sql


def _above(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    which = rng.randrange(2)
    called, column = made.theme.numbers[which][0], made.numbers[which]
    bound = rng.choice(made.rows)[3 + which]
    sql = f"SELECT COUNT(*) FROM {made.table.name} WHERE {column} > {bound}"
    return f"Of how many {made.theme.many} is the {called} above {bound}?", sql


def _which_least_in(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    which, value = rng.randrange(2), rng.choice(made.rows)[2]
    called, column = made.theme.numbers[which][0], made.numbers[which]
    sql = f"SELECT {made.key} FROM {made.table.name} WHERE {made.category} = '{value}' ORDER BY {column} ASC LIMIT 1"
    return f"Which {made.theme.one} with the {made.theme.category[0]} '{value}' has the lowest {called}?", sql


def _of_events(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    assert events is not None
    row = rng.choice(made.rows)
    sql = (
        f"SELECT COUNT(*) FROM {events.name} JOIN {made.table.name} ON {events.columns[1]} = {made.table.name}.id "
        f"WHERE {made.key} = '{row[1]}'"
    )
    return f"How many {made.theme.event[0]}s does the {made.theme.one} '{row[1]}' have?", sql


def _most_events(made: _Made, events: Table | None, rng: random.Random) -> tuple[str, str]:
    assert events is not None
    sql = (
        f"SELECT {made.key} FROM {events.name} JOIN {made.table.name} ON {events.columns[1]} = {made.table.name}.id "
        f"GROUP BY {events.columns[1]} ORDER BY COUNT(*) DESC LIMIT 1"
    )
    return f"Which {made.theme.one} has the most {made.theme.event[0]}s?", sql


_QUESTIONS: dict[str, Callable[[_Made, Table | None, random.Random], tuple[str, str]]] = {
    "number of": _number_of,
    "how many": _how_many,
    "which most": _which_most,
    "sum": _sum,
    "above": _above,
    "which least in": _which_least_in,
    "events": _of_events,
    "most events": _most_events,
}


@lru_cache(maxsize=8)
def problems(difficulty: str) -> GeneratedTasks[Problem]:
    """The panels of a difficulty, which all instances share."""
    level = LEVELS[difficulty]

    def key(made: Problem) -> str:
        tables = [(table.name, table.columns, table.rows) for table in made.tables]
        return content_key(json.dumps([tables, made.question]))

    return GeneratedTasks(
        ENV_ID,
        f"sql|{VERSION}|{difficulty}",
        lambda seed: problem(level, seed),
        key,
        lambda made: made.kind,
        num_types=len(level.kinds),
    )
