"""Errors in a user's code are told with their place there."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from turnwise.childprocess import EnvRaisedError
from turnwise.envs.tasks import make_env
from turnwise.errors import place, with_place


def caught(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


def reads() -> object:
    return json.loads("{")  # line 24: Python's own code raises, and this is whose fault it is


@pytest.fixture(params=["here", "another process"])
def error(request: pytest.FixtureRequest) -> BaseException:
    if request.param == "here":
        return caught(reads)
    trace = (
        f'File "/a/site-packages/b.py", line 1, in b\n  File "{__file__}", line 24, in reads\n'
        '  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode\n'
    )
    return EnvRaisedError("step", "JSONDecodeError", "Expecting", trace)


def test_the_place_is_the_last_line_of_the_users_own_code(error: BaseException) -> None:
    assert place(error) == " (test_errors.py, line 24)"
    assert with_place(error).startswith(f"{type(error).__name__} (test_errors.py, line 24): ")


def test_what_no_own_code_raised_has_no_place() -> None:
    refused = caught(lambda: make_env("turnwise/Houshold-v0"))
    refused.__traceback__ = refused.__traceback__.tb_next.tb_next if refused.__traceback__ else None  # type: ignore[union-attr]
    assert place(refused) == ""
    assert with_place(ValueError("too small")) == "ValueError: too small"
