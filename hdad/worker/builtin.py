"""Built-in stages: decode, select, drop, rename, filter, redact. Pure. Each is made from options and works on ``Record.data``.

Fields are named by dotted paths (worker/paths). An expression of ``filter`` is Python's syntax for comparisons and logic over field
names, checked and compiled once, and never evaluated by Python itself: names, constants, ``and or not``, comparisons, ``in``,
``+ - * / %``, and subscripts and attributes as field paths.
"""

from __future__ import annotations

import ast
import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import orjson

from hdad.errors import StageError
from hdad.worker.batch import Batch, Record
from hdad.worker.paths import MISSING, changed, find, put

_StageCall = Callable[[Batch], Iterable[Record | None]]
_Eval = Callable[[Any], Any]


def build(use: str, options: Mapping[str, Any]) -> _StageCall:
    """The stage named ``use``. Raises StageError for an unknown name or option."""
    if use not in _BUILDERS:
        raise StageError(f"stage {{ use = {use!r} }}: no such built-in; allowed: {', '.join(sorted(_BUILDERS))}")
    builder, allowed, required = _BUILDERS[use]
    for name in options:
        if name not in allowed:
            raise StageError(f"stage {use}: unknown option {name!r}; allowed: {', '.join(allowed)}")
    for name in required:
        if name not in options:
            raise StageError(f"stage {use}: option {name!r} is missing")
    return builder(**options)


def _texts(stage: str, name: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) and item for item in value):
        raise StageError(f"stage {stage}: {name} = {value!r}; allowed: a list of field names, not empty")
    return list(value)


def _object(record: Record) -> dict[str, Any]:
    data = record.data
    if not isinstance(data, dict):
        raise ValueError(f"not a JSON object but {type(data).__name__}")
    return data


def _decode(field: str = "") -> _StageCall:
    key = field.encode()

    def decode(batch: Batch) -> Iterable[Record]:
        for record in batch:
            if key:
                content = record.fields.get(key)
                if content is None:
                    raise ValueError(f"the entry has no field {field!r}")
                yield record.with_value(orjson.loads(content))
            else:
                yield record.with_value(record.data)

    return decode


def _select(fields: Any) -> _StageCall:
    names = _texts("select", "fields", fields)
    if not any("." in name for name in names):

        def select_top(batch: Batch) -> Iterable[Record]:
            for record in batch:
                data = _object(record)
                yield record.with_value({name: data[name] for name in names if name in data})

        return select_top

    def select(batch: Batch) -> Iterable[Record]:
        for record in batch:
            data = _object(record)
            kept: dict[str, Any] = {}
            for name in names:
                value = find(data, name)
                if value is not MISSING:
                    put(kept, data, name, value)
            yield record.with_value(kept)

    return select


def _drop(fields: Any) -> _StageCall:
    names = _texts("drop", "fields", fields)

    def drop(batch: Batch) -> Iterable[Record]:
        for record in batch:
            data = _object(record)
            for name in names:
                data = changed(data, name, lambda _: MISSING)
            yield record.with_value(data)

    return drop


def _rename(fields: Any) -> _StageCall:
    if not isinstance(fields, Mapping) or not fields or not all(isinstance(value, str) and value for value in fields.values()):
        raise StageError(f"stage rename: fields = {fields!r}; allowed: a table of old name = new name, not empty")
    names = dict(fields)
    dotted = [name for name in names if "." in name]

    def rename(batch: Batch) -> Iterable[Record]:
        for record in batch:
            data = _object(record)
            moved = {}
            for name in dotted:
                value = find(data, name)
                if value is not MISSING and name not in data:
                    data = changed(data, name, lambda _: MISSING)
                    moved[names[name]] = value
            yield record.with_value({**{names.get(name, name): value for name, value in data.items()}, **moved})

    return rename


def _redact(fields: Any, method: str = "mask", salt: str = "") -> _StageCall:
    names = _texts("redact", "fields", fields)
    if method not in ("mask", "hash"):
        raise StageError(f"stage redact: method = {method!r}; allowed: mask, hash")

    def hidden(value: Any) -> str:
        if method == "mask":
            return "***"
        return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16, key=salt.encode()[:64]).hexdigest()

    def redact(batch: Batch) -> Iterable[Record]:
        for record in batch:
            data = _object(record)
            for name in names:
                data = changed(data, name, hidden)
            yield record.with_value(data)

    return redact


def _filter(where: Any) -> _StageCall:
    if not isinstance(where, str):
        raise StageError(f"stage filter: where = {where!r}; allowed: an expression as text")
    keep = compile_expression(where)

    def filtered(batch: Batch) -> Iterable[Record]:
        for record in batch:
            if keep(_object(record)):
                yield record

    return filtered


_COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


def compile_expression(text: str) -> Callable[[Any], bool]:
    """A predicate on a decoded record. A comparison with a missing field, or of things that do not compare, is False.

    Raises StageError for what is not such an expression.
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise StageError(f"stage filter: where = {text!r}: {error}") from error
    evaluate = _compile(tree.body, text)

    def keep(data: Any) -> bool:
        value = evaluate(data)
        return value is not MISSING and bool(value)

    return keep


def _path_of(node: ast.expr) -> list[str] | None:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        path, last = _path_of(node.value), node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        path, last = _path_of(node.value), node.slice.value
    else:
        return None
    return None if path is None else [*path, last]


def _compile(node: ast.expr, text: str) -> _Eval:
    path = _path_of(node)
    if path is not None:
        if len(path) == 1:
            name = path[0]
            return lambda data: data.get(name, MISSING)
        dotted = ".".join(path)
        return lambda data: find(data, dotted)
    if isinstance(node, ast.Constant):
        constant = node.value
        return lambda _: constant
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        items = [_compile(item, text) for item in node.elts]
        return lambda data: [item(data) for item in items]
    if isinstance(node, ast.BoolOp):
        return _compile_logic(node, text)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        return _compile_unary(node, text)
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        return _compile_compare(node, text)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        calculate = _ARITHMETIC[type(node.op)]
        return _guarded(calculate, _compile(node.left, text), _compile(node.right, text), MISSING)
    raise StageError(
        f"stage filter: where = {text!r}: {ast.unparse(node)!r} is not allowed; allowed: field names, constants, lists, and or not, "
        "== != < <= > >= in, + - * / %"
    )


def _guarded(operate: Callable[[Any, Any], Any], left: _Eval, right: _Eval, otherwise: Any) -> _Eval:
    def evaluate(data: Any) -> Any:
        a, b = left(data), right(data)
        if a is MISSING or b is MISSING:
            return otherwise
        try:
            return operate(a, b)
        except (TypeError, ZeroDivisionError):
            return otherwise

    return evaluate


def _truth(value: Any) -> bool:
    return value is not MISSING and bool(value)


def _compile_unary(node: ast.UnaryOp, text: str) -> _Eval:
    operand = _compile(node.operand, text)
    if isinstance(node.op, ast.Not):
        return lambda data: not _truth(operand(data))
    return _guarded(lambda a, _: -a, operand, lambda _: 0, MISSING)


def _compile_logic(node: ast.BoolOp, text: str) -> _Eval:
    parts = [_compile(value, text) for value in node.values]
    if isinstance(node.op, ast.And):
        return lambda data: all(_truth(part(data)) for part in parts)
    return lambda data: any(_truth(part(data)) for part in parts)


def _compile_compare(node: ast.Compare, text: str) -> _Eval:
    operands = [_compile(operand, text) for operand in (node.left, *node.comparators)]
    pairs = [
        _guarded(_COMPARE[type(op)], left, right, False) for op, left, right in zip(node.ops, operands[:-1], operands[1:], strict=True)
    ]
    if len(pairs) == 1:
        return pairs[0]
    return lambda data: all(pair(data) for pair in pairs)


_BUILDERS: Final[dict[str, tuple[Callable[..., _StageCall], tuple[str, ...], tuple[str, ...]]]] = {
    "decode": (_decode, ("field",), ()),
    "select": (_select, ("fields",), ("fields",)),
    "drop": (_drop, ("fields",), ("fields",)),
    "rename": (_rename, ("fields",), ("fields",)),
    "redact": (_redact, ("fields", "method", "salt"), ("fields",)),
    "filter": (_filter, ("where",), ("where",)),
}
