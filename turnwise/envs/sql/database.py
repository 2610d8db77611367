"""A SQLite database that can be read and nothing else: no other file, no writing, no clock, no chance, no end of time.

It lives in memory. SQLite's own authorizer allows reading its tables and a list of functions, and denies everything
else, such as ATTACH, PRAGMA and the loading of extensions. Work is limited by SQLite's count of its instructions, which
does not depend on the machine, so that episodes repeat. One instruction may copy or search a whole text, so texts are
short and rows narrow: what an instruction costs has a bound too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

MAX_INSTRUCTIONS = 2_000_000
MAX_ROWS = 20
"""Rows that an answer shows."""
_CHECK_EVERY = 10_000

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 30,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_FUNCTIONS = (
    "abs avg coalesce count dense_rank format glob group_concat ifnull iif instr length like lower ltrim max min "
    "nullif printf rank replace round row_number rtrim sign substr substring sum total trim typeof upper"
)
_KNOWN = frozenset(_FUNCTIONS.split())


class Database:
    """A database with these ``statements`` run in it, which from then on is only read."""

    def __init__(self, statements: Sequence[tuple[str, Sequence[Sequence[object]]]]) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        for statement, rows in statements:
            if rows:
                self._connection.executemany(statement, rows)
            else:
                self._connection.execute(statement)
        self._connection.commit()
        for limit, value in _LIMITS.items():
            self._connection.setlimit(limit, value)
        self._connection.set_authorizer(_authorized)
        self._connection.set_progress_handler(self._checked, _CHECK_EVERY)
        self._left = 0

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """The rows of a query, at most ``MAX_ROWS + 1``. Raises sqlite3.Error, which says what is wrong with it."""
        self._left = MAX_INSTRUCTIONS // _CHECK_EVERY
        try:
            cursor = self._connection.execute(sql)
            return cursor.fetchmany(MAX_ROWS + 1)
        except sqlite3.OperationalError as error:
            if self._left <= 0:
                raise sqlite3.OperationalError("the query takes too long") from None
            raise error
        except sqlite3.DatabaseError as error:
            if "not authorized" in str(error) or "prohibited" in str(error):
                raise sqlite3.OperationalError("only reading is allowed: SELECT, and common functions") from None
            raise

    def close(self) -> None:
        self._connection.close()

    def _checked(self) -> int:
        """Whether to stop (1): asked by SQLite every so many instructions."""
        self._left -= 1
        return int(self._left <= 0)


def _authorized(action: int, first: str | None, second: str | None, *_: object) -> int:
    """Whether SQLite may do something; of functions the name is ``second``."""
    is_function = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _KNOWN
    return sqlite3.SQLITE_OK if action in _ALLOWED or is_function else sqlite3.SQLITE_DENY


def shown(rows: Sequence[Sequence[object]]) -> str:
    """Rows as text, a line each."""
    if not rows:
        return "no rows"
    lines = [" | ".join("null" if value is None else str(value) for value in row) for row in rows[:MAX_ROWS]]
    return "\n".join([*lines, *(["... more rows"] if len(rows) > MAX_ROWS else [])])
