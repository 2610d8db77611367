"""Tools from functions: schemas and checks come from type hints, and whatever goes wrong is text for the model."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from turnwise.envs.said import Call
from turnwise.envs.tools.tool import call, tool_of, tools_of


class Place(BaseModel):
    city: str
    street: str = "Main"


def book(
    where: Place,
    days: Annotated[int, Field(ge=1, description="nights")],
    kind: Literal["room", "flat"] = "room",
    schema: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Book a stay."""
    return {"city": where.city, "days": days, "kind": kind, "schema": schema}


async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return f"waited {seconds}"


def leave() -> None:
    sys.exit(3)


TOOLS = {tool.name: tool for tool in tools_of([book, wait, leave])}


def said(name: str, **arguments: Any) -> tuple[str, bool]:
    found = call(TOOLS, Call(name, arguments))
    return found.text, found.understood


def test_schemas_come_from_type_hints() -> None:
    about = TOOLS["book"].described["function"]
    shown = about["parameters"]
    assert (about["name"], about["description"]) == ("book", "Book a stay.")
    assert shown["required"] == ["where", "days"]
    assert shown["properties"]["days"] == {"type": "integer", "minimum": 1, "description": "nights"}
    assert shown["properties"]["kind"] == {"type": "string", "enum": ["room", "flat"], "default": "room"}
    assert shown["$defs"]["Place"]["properties"]["city"] == {"type": "string"}
    assert "title" not in str(shown)


def test_arguments_are_read_as_the_hints_say() -> None:
    assert said("book", where={"city": "Rome"}, days="2") == (
        '{"city":"Rome","days":2,"kind":"room","schema":null}',
        True,
    )
    assert said("wait", seconds=0) == ("waited 0.0", True)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("bok", {}, "there is no tool 'bok'. Did you mean book? There are: book, wait, leave."),
        ("book", {"days": 1}, "book: where: it is missing"),
        (
            "book",
            {"where": {"city": 3}, "days": 0},
            "where.city: Input should be a valid string; days: Input should be",
        ),
        ("book", {"where": {"city": "x"}, "days": 1, "nights": 2}, "nights: there is no such argument"),
        ("wait", {"seconds": "long"}, "seconds: Input should be a valid number"),
    ],
)
def test_what_is_not_understood_is_told(name: str, arguments: dict[str, Any], told: str) -> None:
    text, understood = said(name, **arguments)
    assert not understood
    assert told in text


def test_what_a_tool_raises_is_told() -> None:
    assert said("leave") == ("Error: SystemExit: 3", True)

    async def broken() -> None:
        raise KeyError("mug\nplate")

    assert call({"broken": tool_of(broken)}, Call("broken")).text == "Error: KeyError: 'mug\\nplate'"


def test_an_asynchronous_tool_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnwise.envs.tools.tool.ASYNC_TIMEOUT_S", 0.05)
    assert said("wait", seconds=30)[0].startswith("Error: TimeoutError")


class Base:
    def first(self) -> str:
        return "base"

    def _hidden(self) -> str:
        return ""


class Both(Base):
    names = ("x",)

    def second(self, x: int = 1) -> int:
        """Second."""
        return x

    @staticmethod
    def third() -> list[int]:
        return [3]


def test_the_public_methods_of_an_object_are_tools() -> None:
    assert [tool.name for tool in tools_of(Both())] == ["first", "second", "third"]
    assert [tool.name for tool in tools_of({"again": book})] == ["again"]
    assert [tool.name for tool in tools_of(book)] == ["book"]


def _no_hint(x) -> None:  # type: ignore[no-untyped-def]
    ...


def _many(*x: int) -> None: ...


def _odd(x: threading.Thread) -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (_no_hint, r"say of which type 'x' is, such as x: str"),
        (_many, r"a model gives arguments by name, and \*x: "),
        (_odd, "a type hint cannot be read"),
        ([book, book], "two tools are called 'book'"),
        ([], "has no tools"),
        (object(), "has no tools"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(source: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tools_of(source)


def test_types_without_a_schema_are_refused() -> None:
    def odd(x: asyncio.Queue) -> None: ...  # type: ignore[type-arg]

    odd.__annotations__["x"] = asyncio.Queue
    with pytest.raises(ValueError, match="no schema can be made of it"):
        tool_of(odd)
