"""What can be mutated in a source file: every place, and the text that replaces it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change of one file: `source[start:end]` becomes `replacement` (character offsets)."""

    function: str  # qualified name of the function around it; "" at module level
    kind: str
    start: int
    end: int
    original: str
    replacement: str

    def apply(self, source: str) -> str:
        """The mutated source."""
        return source[: self.start] + self.replacement + source[self.end :]


class _Source:
    """A source text in which AST positions (line, UTF-8 column) become character offsets."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lines = [line.encode() for line in text.splitlines(keepends=True)]
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line.decode()))

    def offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.offset(node.lineno, node.col_offset),
            self.offset(node.end_lineno, node.end_col_offset),
        )

    def between(self, left: ast.expr, right: ast.expr, token: str) -> tuple[int, int] | None:
        """Where `token` stands between two expressions; None if that is not certain."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.text[start:end]
        if gap.count(token) != 1 or "#" in gap:
            return None
        at = start + gap.index(token)
        return at, at + len(token)


def mutations(text: str) -> list[Mutation]:
    """Every mutation of a module, in the order of the source. Docstrings, annotations and asserts are left alone."""
    source, found = _Source(text), list[Mutation]()

    def add(function: str, kind: str, span: tuple[int, int] | None, replacement: str) -> None:
        if span is not None and text[slice(*span)] != replacement:
            found.append(Mutation(function, kind, *span, text[slice(*span)], replacement))

    for node, function in _functions_nodes(ast.parse(text)):
        for kind, span, replacement in _of_expression(node, source):
            add(function, kind, span, replacement)
        for kind, span, replacement in _of_statement(node, source):
            add(function, kind, span, replacement)
    return sorted(found, key=lambda mutation: (mutation.start, mutation.kind))


def _functions_nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """All nodes inside functions, each with the name of its function."""

    def walk(node: ast.AST, name: str, inside: bool) -> Iterator[tuple[ast.AST, str]]:
        if inside and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node, name
        for field, value in ast.iter_fields(node):
            if field in {"annotation", "returns", "decorator_list", "args"} or isinstance(node, ast.Assert):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or _is_docstring(child):
                    continue
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    is_function = not isinstance(child, ast.ClassDef)
                    yield from walk(child, f"{name}.{child.name}".lstrip("."), inside or is_function)
                else:
                    yield from walk(child, name, inside)

    yield from walk(tree, "", False)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str | type(...))
    )


Change = tuple[str, tuple[int, int] | None, str]


def _of_expression(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for operator, (left, right) in zip(node.ops, pairwise([node.left, *node.comparators]), strict=True):
            token, replacement = COMPARISONS[type(operator)]
            yield "comparison", source.between(left, right, token), replacement
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        token, replacement = OPERATORS[type(node.op)]
        yield "arithmetic", source.between(node.left, node.right, token), replacement
    elif isinstance(node, ast.BoolOp):
        token, replacement = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        if len(node.values) == 2:  # in a longer chain, one change would alter the precedence
            yield "boolean", source.between(node.values[0], node.values[1], token), replacement
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        start, _ = source.span(node)
        kind, token = ("negation", "not") if isinstance(node.op, ast.Not) else ("sign", "-")
        yield kind, (start, start + len(token)), ""
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node, source)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield "extremum", source.span(node.func), CALLS[node.func.id]
    elif isinstance(node, ast.IfExp):
        yield "condition", source.span(node.test), f"(not ({source.text[slice(*source.span(node.test))]}))"


def _of_constant(node: ast.Constant, source: _Source) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield "constant", source.span(node), str(not node.value)
    elif isinstance(node.value, int | float):
        yield "constant", source.span(node), repr(node.value + 1)


def _of_statement(node: ast.AST, source: _Source) -> Iterator[Change]:
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return", source.span(node.value), "None"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        yield "deleted call", source.span(node), "pass"
    elif isinstance(node, ast.AugAssign | ast.Assign) and _changes_an_object(node):
        yield "deleted assignment", source.span(node), "pass"
    elif isinstance(node, ast.Continue):
        yield "loop", source.span(node), "break"
    elif isinstance(node, ast.Break):
        yield "loop", source.span(node), "continue"
    elif isinstance(node, ast.If | ast.While):
        yield "condition", source.span(node.test), f"not ({source.text[slice(*source.span(node.test))]})"
    elif isinstance(node, ast.Raise):
        yield "deleted raise", source.span(node), "pass"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _changes_an_object(node: ast.AugAssign | ast.Assign) -> bool:
    return isinstance(node, ast.AugAssign) or isinstance(node.targets[0], ast.Attribute | ast.Subscript)
