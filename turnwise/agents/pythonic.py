"""Calls that look like Python, as LFM2 writes them: ``[find(query='mug', limit=2), look()]`` between tags.

Such text is not quite Python: chat templates write texts between quotes as they are, line breaks and quotes included,
and models write ``true`` for ``True``. So a small reader of its own reads it. A text ends at its quote where one of the
signs ``,)]}:`` follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from turnwise.agents.callforms import CallForm, KeywordCall
from turnwise.envs.said import Call, Said


class CallError(ValueError):
    """What is wrong with a call, as a model is told."""


class LFM2:
    """Calls as Python would write them, in a list between tags; a list of JSON objects is read too."""

    tags = ("<|tool_call_start|>", "<|tool_call_end|>")
    call_form = CallForm("<|tool_call_start|>[", ", ", "]<|tool_call_end|>", KeywordCall())
    _TAGGED = re.compile(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|(?=<\|tool_call_start\|>)|\Z)", re.DOTALL)

    def read(self, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> Said:
        calls, faults = list[Call](), list[str]()

        def left(found: re.Match[str]) -> str:
            try:
                calls.extend(_calls(found.group(1)))
            except RecursionError:
                faults.append("the call is nested too deeply")
            except CallError as error:
                faults.append(str(error))
            else:
                return ""
            return found.group()

        content = self._TAGGED.sub(left, text)
        return Said(content.strip(), tuple(calls), "; ".join(faults) or None)

    def write(self, said: Said) -> str:
        calls = ", ".join(f"{call.name}({', '.join(map(_keyword, call.arguments.items()))})" for call in said.calls)
        return said.content + (f"{self.tags[0]}[{calls}]{self.tags[1]}" if said.calls else "")


def _keyword(given: tuple[str, Any]) -> str:
    return f"{given[0]}={given[1]!r}"


def _calls(body: str) -> list[Call]:
    """The calls in a list; all of them or none. Raises CallError."""
    if re.match(r"\s*(\[\s*)?\{", body):
        return _from_json(body)
    reader = _Reader(body)
    listed = reader.takes("[")
    found = [reader.call()]
    while reader.takes(","):
        found.append(reader.call())
    if listed:
        reader.expect("]")
    reader.end()
    return found


def _from_json(body: str) -> list[Call]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise CallError(f"the call is not JSON ({error})") from None
    made = list[Call]()
    for each in found if isinstance(found, list) else [found]:
        arguments = each.get("arguments", {}) if isinstance(each, dict) else None
        if not isinstance(arguments, dict) or not isinstance(each.get("name"), str):
            raise CallError('a call in JSON is an object with "name" and "arguments"')
        made.append(Call(each["name"], arguments))
    return made


_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?")
_NAME = re.compile(r"[\w.\-]+")
_CODE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")
_CLOSES = re.compile(r"\s*(?:[,)\]}:]|\Z)")


class _Reader:
    """Reads a text from its beginning. Every method raises CallError, which shows the place."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def takes(self, sign: str) -> bool:
        """Whether ``sign`` comes next, behind white space; then it is passed."""
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        found = self._text.startswith(sign, self._at)
        self._at += len(sign) * found
        return found

    def expect(self, sign: str) -> None:
        if not self.takes(sign):
            raise self._error(f"expected {sign}")

    def end(self) -> None:
        self.takes("")
        if self._at < len(self._text):
            raise self._error("expected the end of the calls")

    def call(self) -> Call:
        name = self._matched(_NAME, "expected the name of a function")
        self.expect("(")
        return Call(name, dict(self._items(")", self._keyword)))

    def _keyword(self) -> tuple[str, Any]:
        key = self._matched(_NAME, "expected an argument as NAME=value")
        self.expect("=")
        return key, self._value()

    def _value(self) -> Any:
        self.takes("")
        for quote in "'\"":
            if self.takes(quote):
                return self._string(quote)
        if self.takes("["):
            return list(self._items("]", self._value))
        if self.takes("{"):
            return dict(self._items("}", self._pair))
        if found := _NUMBER.match(self._text, self._at):
            self._at = found.end()
            return self._number(found)
        word = self._matched(_NAME, "expected a value")
        if word not in _WORDS:
            raise self._error(f"{word!r} is no value: write texts between quotes")
        return _WORDS[word]

    def _number(self, found: re.Match[str]) -> float:
        try:
            return float(found.group()) if found.group(1) or found.group(2) else int(found.group())
        except ValueError:  # thousands of digits
            raise self._error("a number is too long") from None

    def _pair(self) -> tuple[str, Any]:
        key = self._value()
        self.expect(":")
        return str(key), self._value()

    def _items(self, close: str, item: Callable[[], Any]) -> Iterator[Any]:
        while not self.takes(close):
            yield item()
            if not self.takes(","):
                self.expect(close)
                return

    def _string(self, quote: str) -> str:
        parts = list[str]()
        while self._at < len(self._text):
            letter = self._text[self._at]
            self._at += 1
            if letter == quote and _CLOSES.match(self._text, self._at):
                return "".join(parts)
            parts.append(self._escaped() if letter == "\\" else letter)
        raise self._error("a text has no closing quote")

    def _escaped(self) -> str:
        """What a backslash and what follows it stand for; a backslash alone stands for itself."""
        if found := _CODE.match(self._text, self._at):
            code = int(next(filter(None, found.groups())), 16)
            if code < 0x110000 and not 0xD800 <= code < 0xE000:
                self._at = found.end()
                return chr(code)
        sign = self._text[self._at : self._at + 1]
        self._at += sign in _ESCAPES and bool(sign)
        return _ESCAPES.get(sign, "\\")

    def _matched(self, pattern: re.Pattern[str], what: str) -> str:
        self.takes("")
        found = pattern.match(self._text, self._at)
        if found is None:
            raise self._error(what)
        self._at = found.end()
        return found.group()

    def _error(self, what: str) -> CallError:
        return CallError(f"a call is written as name(argument='value'): {what} at {self._text[self._at :][:30]!r}")
