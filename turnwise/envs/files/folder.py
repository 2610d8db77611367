"""A folder of text files in memory, and a calculator: no path leads out of it, since there is nothing outside."""

from __future__ import annotations

import ast
import operator
import posixpath
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

MAX_FILES, MAX_CHARS, MAX_EXPRESSION = 100, 10_000, 200
_LARGEST = 10**15
_NUMBER = re.compile(r"-?\d{1,18}(\.\d{1,9})?")

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Folder:
    """The tools. ``files`` are the texts by their paths."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)

    def list_files(self, folder: str = "") -> str:
        """List the files of a folder and of those in it; of all without one."""
        within = f"{_inside(folder)}/" if folder.strip("./") else ""
        found = sorted(path for path in self.files if path.startswith(within))
        return "\n".join(found) or "no files"

    def read_file(self, path: str) -> str:
        """Read a file."""
        return self.files[self._existing(path)]

    def write_file(self, path: str, text: str) -> str:
        """Write a file: a new one, or in the place of an old one."""
        place = _inside(path)
        if len(text) > MAX_CHARS or (place not in self.files and len(self.files) >= MAX_FILES):
            raise ValueError(f"a file has at most {MAX_CHARS} characters, and there are at most {MAX_FILES}")
        self.files[place] = text
        return "written"

    def delete_file(self, path: str) -> str:
        """Delete a file."""
        del self.files[self._existing(path)]
        return "deleted"

    def calculate(self, expression: str) -> str:
        """Work out an expression of numbers, + - * / and brackets."""
        return written(value_of(expression))

    def _existing(self, path: str) -> str:
        place = _inside(path)
        if place not in self.files:
            raise ValueError(f"there is no file {place!r}")
        return place


def _inside(path: str) -> str:
    """A path from the folder's root. Raises ValueError for one that leads out of it."""
    place = posixpath.normpath(path.strip())
    if place.startswith(("/", "..")) or place == "." or "\\" in place or "\0" in place or len(place) > 200:
        raise ValueError(f"{path[:80]!r} is no path in the folder")
    return place


def value_of(expression: str) -> Fraction:
    """The exact value of an expression. Raises ValueError for anything else than numbers, + - * / and brackets."""
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"an expression has at most {MAX_EXPRESSION} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("that is no expression of numbers, + - * / and brackets") from None
    return _value(tree.body)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        found = Fraction(str(node.value))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        found = _value(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        found = _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    else:
        raise ValueError("that is no expression of numbers, + - * / and brackets")
    if abs(found) > _LARGEST:
        raise ValueError("that number is too large")
    return found


def written(value: Fraction) -> str:
    """A number as people write it: whole, or with at most six decimals."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6f}".rstrip("0")


def number_in(text: str) -> Fraction | None:
    """The number that a text is, or None."""
    given = text.strip().rstrip(".").strip()
    return Fraction(given) if _NUMBER.fullmatch(given) else None
