"""The `call` of a golden file: Python statements among prose, run without anything else of Python.

Pieces are separated by `;`, or by a colon and a blank outside brackets. A piece is run if it is an
assignment all of whose names are known; a remark may follow it after `#`, after a comma, or after a
blank and a letter or bracket. Every other piece is prose. One form of prose has a meaning:
"x is used as 6*x" makes x mean that in all later pieces, including those that spell `6*x` out.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

_NODES = (
    ast.Assign,
    ast.Attribute,
    ast.BinOp,
    ast.Call,
    ast.Compare,
    ast.Constant,
    ast.Dict,
    ast.Expression,
    ast.Lambda,
    ast.List,
    ast.Module,
    ast.Name,
    ast.Slice,
    ast.Subscript,
    ast.Tuple,
    ast.UnaryOp,
    ast.arg,
    ast.arguments,
    ast.cmpop,
    ast.expr_context,
    ast.keyword,
    ast.operator,
    ast.unaryop,
)
_REMARK = re.compile(r"\s*,|\s+(?=[A-Za-z(\[])")
_USED_AS = re.compile(r"(\w+) is used as (.+)")


def evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Raises:
        ValueError: it is no plain expression over the names.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{expression!r} is no expression") from error
    if not _is_plain(tree) or not _loaded(tree) <= names.keys():
        raise ValueError(f"{expression!r} is no plain expression over {sorted(names)}")
    return _execute(tree, "eval", dict(names))


def run(call: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Run a call's assignments in order.

    Args:
        call: the text.
        names: what it may use: modules, inputs, functions.

    Returns:
        What was assigned, by name.
    """
    known = dict(names)
    assigned: dict[str, Any] = {}
    substitutes: list[_Substitute] = []
    for piece in pieces(call):
        used_as = _USED_AS.fullmatch(piece)
        statement = _statement(used_as.expand(r"\1 = \2") if used_as else piece, known)
        if statement is None:
            continue
        for substitute in substitutes:
            statement = substitute.visit(statement)
        _execute(statement, "exec", known)
        if used_as:
            substitutes.append(_Substitute(used_as[1], statement.body[0].value))
        else:
            assigned |= {name: known[name] for name in _names(statement, ast.Store)}
    return assigned


def pieces(call: str) -> Iterator[str]:
    """The parts of a call that may be statements."""
    for text in call.split(";"):
        depth = start = 0
        for i, letter in enumerate(text):
            depth += (letter in "([{") - (letter in ")]}")
            if letter == ":" and depth == 0 and text[i + 1 : i + 2] == " ":
                yield text[start:i].strip()
                start = i + 1
        yield text[start:].strip()


class _Substitute(ast.NodeTransformer):
    """Replaces an expression by a name that stands for it."""

    def __init__(self, name: str, expression: ast.expr) -> None:
        self.name = name
        self.text = ast.dump(expression)

    def visit(self, node: ast.AST) -> ast.AST:
        if ast.dump(node) == self.text:
            return ast.copy_location(ast.Name(self.name, ast.Load()), node)
        return self.generic_visit(node)


def _statement(piece: str, names: Mapping[str, Any]) -> ast.Module | None:
    """The assignment that a piece begins with, if it is one and needs no other names."""
    ends = [len(piece), *(match.start() for match in _REMARK.finditer(piece))]
    for end in ends:
        try:
            tree = ast.parse(piece[:end])
        except SyntaxError:
            continue
        is_assignment = len(tree.body) == 1 and isinstance(tree.body[0], ast.Assign)
        if is_assignment and _is_plain(tree) and _loaded(tree) <= names.keys():
            return tree
    return None


def _is_plain(tree: ast.AST) -> bool:
    """Whether a tree holds nothing but arithmetic, indexing and calls, and no private name."""
    for node in ast.walk(tree):
        name = getattr(node, "id", "") or getattr(node, "attr", "")
        if not isinstance(node, _NODES) or (name.startswith("_") and name != "_"):
            return False
    return True


def _names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, context)}


def _loaded(tree: ast.AST) -> set[str]:
    """The names that a tree needs."""
    parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return _names(tree, ast.Load) - parameters


def _execute(tree: ast.Module | ast.Expression, mode: str, names: dict[str, Any]) -> Any:
    code = compile(ast.fix_missing_locations(tree), "<call>", mode)
    names["__builtins__"] = {}
    try:
        return eval(code, names)
    finally:
        del names["__builtins__"]
