"""Small faults of the kind that people make, as changes of a module's syntax tree.

A mutant is one change. What it is called does not depend on the lines above it: file, enclosing function, the text
before and after, and its number among equals. Left alone: docstrings, annotations, messages of errors, descriptions
of settings, assertions (those of our own mistakes), and ``ABOUT``.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

Change = Callable[[], ast.AST | None]
"""Makes the node that takes the place; None: the statement is dropped."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
}
NAMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "mean": "sum", "sum": "mean",
    "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin", "amin": "amax", "floor": "ceil",
    "exp": "expm1", "cummax": "cummin", "zeros_like": "ones_like", "ones_like": "zeros_like", "zeros": "ones",
    "ones": "zeros", "popleft": "pop",
}  # fmt: skip
ALSO_BUILT_IN = {"min", "max", "any", "all"}  # as plain functions; the others as methods only
DROPPED = {
    "clamp", "abs", "square", "detach", "relu", "exp", "log", "masked_fill", "flip", "cumsum", "sqrt", "reversed",
    "sorted",
}  # fmt: skip
SYMMETRIC = {"min", "max", "minimum", "maximum", "add", "equal", "isclose"}
SPARED_CALLS = {"About", "TypeVar", "NewType", "cast", "overload"}
SPARED_WORDS = {"description", "title", "strict", "dtype", "device", "message", "match"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change; ``line`` is where it is now, the name does not depend on it."""

    file: str
    function: str
    operator: str
    before: str
    after: str
    number: int
    line: int
    first_line: int  # of the enclosing function, decorators included; 0 where there is none

    @property
    def key(self) -> str:
        parts = (self.file, self.function, self.operator, self.before, self.after, str(self.number))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class _Site:
    """A place in the tree and what may stand there: the parent's field (and index in it), operator, change."""

    parent: ast.AST
    name: str
    index: int | None
    operator: str
    change: Change
    statement: ast.stmt
    function: str
    first_line: int


def mutants(path: Path, root: Path) -> list[Mutant]:
    """Every mutant of a file, in the order of its text."""
    return [mutant for mutant, _ in _named(ast.parse(path.read_text()), path.relative_to(root).as_posix())]


def mutated(path: Path, root: Path, key: str) -> ast.Module:
    """The file's tree with one change. Raises KeyError where no mutant has this key."""
    tree = ast.parse(path.read_text())
    for mutant, site in _named(tree, path.relative_to(root).as_posix()):
        if mutant.key == key:
            _place(site, site.change())
            return ast.fix_missing_locations(tree)
    raise KeyError(key)


def _named(tree: ast.Module, file: str) -> Iterator[tuple[Mutant, _Site]]:
    """Every change that is one, with its name."""
    seen = Counter[tuple[str, str, str, str]]()
    for site in _sites(tree):
        before, after = _text(site.statement), _text_after(site)
        if before != after:
            named = (site.function, site.operator, before, after)
            yield Mutant(file, *named, seen[named], site.statement.lineno, site.first_line), site
            seen[named] += 1


def _text(statement: ast.stmt) -> str:
    """A simple statement whole, a compound one's head; without what is long and says nothing here."""
    lines = ast.unparse(statement).splitlines()
    compound = isinstance(getattr(statement, "body", None), list)
    return (lines[0] if compound else " ".join(line.strip() for line in lines)) if lines else ""


def _place(site: _Site, node: ast.AST | None) -> None:
    node = ast.Pass() if node is None else node
    if site.index is None:
        setattr(site.parent, site.name, node)
    else:
        getattr(site.parent, site.name)[site.index] = node


def _text_after(site: _Site) -> str:
    """The statement's text with the change in place, which is taken back."""
    held = getattr(site.parent, site.name)
    old: ast.AST = held if site.index is None else held[site.index]
    new = site.change()
    if old is site.statement:
        return "pass" if new is None else _text(new)  # type: ignore[arg-type]
    _place(site, new)
    try:
        return _text(site.statement)
    finally:
        _place(site, old)


def _sites(tree: ast.Module) -> Iterator[_Site]:
    yield from _block(tree, "", 0)


def _block(owner: ast.AST, function: str, first_line: int) -> Iterator[_Site]:
    """Sites of the statements in an owner's bodies."""
    for name in ("body", "orelse", "finalbody"):
        for index, statement in enumerate(getattr(owner, name, ()) or ()):
            yield from _statement(owner, name, index, statement, function, first_line)
    for handler in getattr(owner, "handlers", ()):
        yield from _block(handler, function, first_line)


def _statement(
    owner: ast.AST, name: str, index: int, statement: ast.stmt, function: str, first_line: int
) -> Iterator[_Site]:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Assert)) or _is_docstring(statement):
        return
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        inner = f"{function}.{statement.name}".lstrip(".")
        first = first_line
        if isinstance(statement, ast.FunctionDef):
            first = min([statement.lineno, *(d.lineno for d in statement.decorator_list)])
            for kind in ("defaults", "kw_defaults"):
                yield from _expressions(statement.args, (kind,), statement, function, first_line)
        yield from _block(statement, inner, first)
        return

    def site(operator: str, change: Change) -> _Site:
        return _Site(owner, name, index, operator, change, statement, function, first_line)

    if _may_be_dropped(statement) and len(getattr(owner, name)) > 1:
        yield site("drop statement", lambda: None)
    if isinstance(statement, ast.Raise):
        return
    if isinstance(statement, ast.AugAssign):
        yield site("overwrite", lambda: ast.Assign([statement.target], statement.value, lineno=statement.lineno))
        for other in ARITHMETIC.get(type(statement.op), ()):
            yield site("arithmetic", partial(_augmented, statement, other))
    if isinstance(statement, ast.Break):
        yield site("break to continue", ast.Continue)
    if isinstance(statement, ast.Continue):
        yield site("continue to break", ast.Break)
    if isinstance(statement, ast.Return) and statement.value is not None and not _is_none(statement.value):
        yield site("return nothing", lambda: ast.Return(ast.Constant(None)))
    yield from _expressions(statement, _fields(statement), statement, function, first_line)
    yield from _block(statement, function, first_line)


def _augmented(statement: ast.AugAssign, kind: type[ast.operator]) -> ast.AugAssign:
    return ast.AugAssign(statement.target, kind(), statement.value)


def _fields(statement: ast.stmt) -> tuple[str, ...]:
    """Those that hold expressions which may be changed: no annotations, no bodies."""
    spared = {"annotation", "body", "orelse", "finalbody", "handlers", "decorator_list", "exc", "cause"}
    return tuple(name for name in statement._fields if name not in spared)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _may_be_dropped(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        return any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in statement.targets)
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, (ast.Call, ast.YieldFrom, ast.Yield))
    return isinstance(statement, (ast.AugAssign, ast.Raise, ast.Break, ast.Continue)) or (
        isinstance(statement, ast.If) and not statement.orelse
    )


def _expressions(
    parent: ast.AST, names: tuple[str, ...], statement: ast.stmt, function: str, first_line: int
) -> Iterator[_Site]:
    """Sites at and below some of a node's fields."""
    for name in names:
        held = getattr(parent, name, None)
        for index, node in enumerate(held) if isinstance(held, list) else ((None, held),):
            if not isinstance(node, ast.AST) or isinstance(node, (ast.expr_context, ast.JoinedStr)):
                continue
            if isinstance(node, ast.Call) and _name_of(node) in SPARED_CALLS:
                continue
            for operator, change in _changes(node, parent, name):
                yield _Site(parent, name, index, operator, change, statement, function, first_line)
            below = tuple(f for f in node._fields if f not in ("annotation", "op", "ops"))
            if isinstance(node, ast.keyword) and node.arg in SPARED_WORDS:
                continue
            yield from _expressions(node, below, statement, function, first_line)


def _name_of(call: ast.Call) -> str:
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _changes(node: ast.AST, parent: ast.AST, field: str) -> Iterator[tuple[str, Change]]:
    """What may take a node's place, as (operator, maker)."""
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in COMPARISONS.get(type(op), ()):
                yield "comparison", lambda place=place, other=other: _compare(node, place, other)  # type: ignore[misc]
    elif isinstance(node, ast.BinOp):
        for kind in ARITHMETIC.get(type(node.op), ()):
            yield "arithmetic", lambda kind=kind: ast.BinOp(node.left, kind(), node.right)  # type: ignore[misc]
        if isinstance(node.op, (ast.Sub, ast.Div)):
            yield "swapped operands", lambda: ast.BinOp(node.right, node.op, node.left)
    elif isinstance(node, ast.BoolOp):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", lambda: ast.BoolOp(other_op, node.values)
        for place in range(len(node.values)):
            rest = [value for n, value in enumerate(node.values) if n != place]
            yield "drop condition", lambda rest=rest: rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)  # type: ignore[misc]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert, ast.USub)):
        yield "drop sign or not", lambda: node.operand
    elif isinstance(node, ast.IfExp):
        yield "always", lambda: node.body
        yield "never", lambda: node.orelse
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Slice):
        yield from _slices(node)
    elif isinstance(node, ast.comprehension):
        for place in range(len(node.ifs)):
            yield (
                "drop filter",
                lambda place=place: ast.comprehension(  # type: ignore[misc]
                    node.target, node.iter, [c for n, c in enumerate(node.ifs) if n != place], node.is_async
                ),
            )
    if field == "test" and isinstance(parent, (ast.If, ast.While)):
        yield "negated condition", lambda: ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]


def _compare(node: ast.Compare, place: int, other: type[ast.cmpop]) -> ast.Compare:
    ops = [other() if n == place else op for n, op in enumerate(node.ops)]
    return ast.Compare(node.left, ops, node.comparators)


def _constants(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        yield "true/false", lambda: ast.Constant(not value)
    elif isinstance(value, int):
        for other in dict.fromkeys((value + 1, value - 1, 0)):
            if other != value:
                yield "constant", lambda other=other: ast.Constant(other)  # type: ignore[misc]
    elif isinstance(value, float):
        for number in dict.fromkeys((2.0 * value, 0.0 if value else 1.0)):
            if number != value:
                yield "constant", lambda number=number: ast.Constant(number)  # type: ignore[misc]


def _calls(node: ast.Call) -> Iterator[tuple[str, Change]]:
    name = _name_of(node)
    method = isinstance(node.func, ast.Attribute)
    if name in NAMES and (method or name in ALSO_BUILT_IN):
        yield "other function", lambda: _renamed(node, NAMES[name])
    if name in DROPPED:
        if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
            value = node.func.value
            yield "drop call", lambda: value
        elif not method and len(node.args) == 1:
            yield "drop call", lambda: node.args[0]
    if name in ("Field", "field"):
        return
    if len(node.args) == 2 and name not in SYMMETRIC and not any(isinstance(arg, ast.Starred) for arg in node.args):
        yield "swapped arguments", lambda: ast.Call(node.func, node.args[::-1], node.keywords)
    for place, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in SPARED_WORDS:
            kept = [word for n, word in enumerate(node.keywords) if n != place]
            yield "drop argument", lambda kept=kept: ast.Call(node.func, node.args, kept)  # type: ignore[misc]


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "np", "math")


def _renamed(node: ast.Call, name: str) -> ast.Call:
    func = copy.copy(node.func)
    if isinstance(func, ast.Attribute):
        func.attr = name
    elif isinstance(func, ast.Name):
        func.id = name
    return ast.Call(func, node.args, node.keywords)


def _slices(node: ast.Slice) -> Iterator[tuple[str, Change]]:
    for field in ("lower", "upper"):
        bound = getattr(node, field)
        if bound is None:
            continue
        bounds = {"lower": node.lower, "upper": node.upper}
        if not isinstance(bound, ast.Constant):  # those are changed as constants
            shifted = ast.BinOp(bound, ast.Add(), ast.Constant(1))
            yield "slice", lambda f=field, s=shifted, b=bounds: ast.Slice(**{**b, f: s}, step=node.step)  # type: ignore[misc]
        yield "slice", lambda f=field, b=bounds: ast.Slice(**{**b, f: None}, step=node.step)  # type: ignore[misc]
