"""The SQL world: answers are SQLite's own, tables stand in no split twice, and nobody gets out of the database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from turnwise.envs.said import said
from turnwise.envs.sql.database import MAX_ROWS, Database, shown
from turnwise.envs.sql.problems import LEVELS, problem
from turnwise.envs.sql.world import SQLEnv, same


def world(difficulty: str = "easy", index: int = 0, split: str = "test") -> SQLEnv:
    env = SQLEnv(difficulty)
    env.reset(options={"split": split, "task": index})
    return env


def asked(env: SQLEnv, sql: str) -> str:
    return env.step(said(calls=[{"name": "query", "arguments": {"sql": sql}}]))[0]


def by_hand(env: SQLEnv) -> str:
    """The answer to an easy question, worked out from the rows without SQL."""
    made = env.problem
    (table,) = made.tables
    words = made.question.rstrip("?")
    columns = {name: [row[n] for row in table.rows] for n, name in enumerate(table.columns)}
    texts = [column for column in columns.values() if isinstance(column[0], str)]
    if made.kind == "number of":
        (place,) = (n for n, name in enumerate(texts[0] + texts[1]) if words.endswith(f" '{name}'"))
        asked_for = made.sql.split()[1]
        return str(columns[asked_for][place % len(table.rows)])
    if made.kind == "how many":
        return str(sum(words.endswith(f" '{value}'") for column in texts for value in column))
    column = columns[made.sql.split()[6]]
    best = max(column) if "highest" in words else min(column)
    return str(columns[made.sql.split()[1]][column.index(best)])


def test_answers_are_right() -> None:
    for index in range(30):
        env = world(index=index)
        assert by_hand(env) == env.problem.answer, env.problem


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("kind", ["searching", "knowing"])
def test_experts_win(difficulty: str, kind: str) -> None:
    env = SQLEnv(difficulty)
    kinds = set()
    for index in range(2 * len(LEVELS[difficulty].kinds)):
        observation, info = env.reset(options={"split": "validation", "task": index})
        expert, terminated = env.expert(kind), False
        expert.begin(observation, info)
        while not terminated:
            observation, reward, terminated, truncated, info = env.step(expert.act(observation, info))
            assert not truncated
        assert (reward, info["success"], info["valid"]) == (1.0, True, True)
        kinds.add(env.problem.kind)
    assert kinds == set(LEVELS[difficulty].kinds)


def test_the_best_is_never_a_tie() -> None:
    for seed in range(40):
        made = problem(LEVELS["hard"], seed * len(LEVELS["hard"].kinds) + 7)
        assert made.kind == "most events"
        database = made.database()
        counts = [
            row[0] for row in database.rows(made.sql.replace(made.sql.split()[1], "COUNT(*)", 1).replace("LIMIT 1", ""))
        ]
        assert counts[0] > counts[1]


@pytest.mark.parametrize(
    ("reply", "right"), [("42", True), (" 42.0. ", True), ("41", False), ("", False), ("forty-two", False)]
)
def test_numbers_are_compared_as_numbers(reply: str, right: bool) -> None:
    assert same(reply, "42") == right


def test_names_are_compared_whatever_their_case() -> None:
    assert same("ana brook.", "Ana Brook")
    assert not same("Ana", "Ana Brook")


ESCAPES = [
    "ATTACH DATABASE '{0}/other.db' AS other",
    "VACUUM INTO '{0}/copy.db'",
    "PRAGMA database_list",
    "PRAGMA writable_schema = 1",
    "SELECT load_extension('{0}/x.so')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('{0}/out', 'x')",
    "CREATE TABLE mine (x)",
    "CREATE TEMP TABLE mine (x)",
    "DROP TABLE {1}",
    "DELETE FROM {1}",
    "INSERT INTO {1} DEFAULT VALUES",
    "UPDATE {1} SET id = 0",
    "SELECT random()",
    "SELECT datetime('now')",
    "SELECT CURRENT_TIMESTAMP",
    "SELECT randomblob(1000000000)",
    "SELECT fts3_tokenizer('simple')",
    "SELECT sqlite_version()",
    "BEGIN",
    "SELECT 1; DROP TABLE {1}",
]


@pytest.mark.parametrize("sql", ESCAPES)
def test_nothing_but_reading_is_possible(sql: str, tmp_path: Path) -> None:
    (tmp_path / "other.db").write_bytes(b"")
    env = world()
    table = env.problem.tables[0]
    before = asked(env, f"SELECT * FROM {table.name}")
    assert asked(env, sql.format(tmp_path, table.name)).startswith("Error: ")
    assert asked(env, f"SELECT * FROM {table.name}") == before
    assert {path.name for path in tmp_path.iterdir()} == {"other.db"}
    assert (tmp_path / "other.db").read_bytes() == b""


BIG = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"


@pytest.mark.parametrize(
    "sql",
    [
        f"{BIG} SELECT COUNT(*) FROM n",
        f"{BIG} SELECT group_concat(x) FROM n",
        "SELECT replace(printf('%900d', 1), ' ', 'xxxxxxxxxxxxxxxxxxxx')",
        f"WITH s AS (SELECT printf('%99000d', 0) a) SELECT {','.join('a' * 1_900)} FROM s",
        "SELECT " + "(" * 200 + "1" + ")" * 200,
        "SELECT '" + "x" * 5_000 + "'",
    ],
)
def test_no_query_takes_forever_or_grows_without_end(sql: str) -> None:
    assert asked(world(), sql).startswith("Error: ")


def test_a_text_that_would_be_too_long_is_null() -> None:
    env, few = world(), BIG.replace("FROM n", "FROM n LIMIT 5")
    assert asked(env, "SELECT printf('%1000000000d', 1)") == "null"
    # SQLite counts one instruction for a search, which takes a tenth of a second in texts of this length.
    assert asked(env, f"{few} SELECT sum(instr(printf('%90000d', x), printf('%45000d', 0) || '1')) FROM n") == "null"


def test_a_long_query_with_short_texts_is_answered() -> None:
    columns = ", ".join(f"'{'x' * 60}{n}'" for n in range(30))
    assert asked(world(), f"SELECT {columns}").count("x" * 60) == 30


def test_answers_are_cut() -> None:
    assert asked(world(), f"{BIG} SELECT x FROM n LIMIT 1000").splitlines()[MAX_ROWS:] == ["... more rows"]
    assert shown([]) == "no rows"
    assert shown([(None, 1.5, "a")]) == "null | 1.5 | a"


def test_mistakes_in_sql_are_told() -> None:
    env = world()
    assert "no such column: weight" in asked(env, f"SELECT weight FROM {env.problem.tables[0].name}")
    assert "syntax error" in asked(env, "SELEC 1")
    database = Database([("CREATE TABLE t (x)", ())])
    with pytest.raises(sqlite3.OperationalError, match="only reading is allowed"):
        database.rows("CREATE TABLE u (x)")


def test_a_wrong_answer_ends_it_without_reward() -> None:
    env = world()
    _, reward, terminated, _, info = env.step("no idea")
    assert (reward, terminated, info["success"], info["score"]) == (0.0, True, False, 0.0)
