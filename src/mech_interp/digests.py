"""Hashes of values and functions that come out the same in every process.

A value is hashed by type and content: every element of a tensor, the compiled code of a function with
its constants, defaults, closed-over values and the globals it names. Memory addresses never enter.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

_ATOMS = (type(None), bool, int, float, complex, str, bytes, types.EllipsisType)


def digest_of(*values: Any) -> str:
    """A hash of the values, in order (hex, 64 characters)."""
    return _Digest().add(*values).hexdigest()


class _Digest:
    """One running hash; remembers the objects it is inside of, so that cycles end."""

    def __init__(self, inside: set[int] | None = None) -> None:
        self._hash = hashlib.sha256()
        self._open: set[int] = set() if inside is None else inside

    def add(self, *values: Any) -> _Digest:
        for value in values:
            self._add(value)
        return self

    def _alone(self, *values: Any) -> str:
        """A digest of its own, for parts whose order must not matter."""
        return _Digest(self._open).add(*values).hexdigest()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _text(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode(errors="surrogatepass")
            # Lengths keep neighbouring parts from running into each other.
            self._hash.update(f"{len(data)}:".encode() + data)

    def _add(self, value: Any) -> None:
        if isinstance(value, _ATOMS):
            self._text(type(value).__name__, repr(value))
        elif id(value) in self._open:
            self._text("cycle")
        else:
            self._open.add(id(value))
            self._add_object(value)
            self._open.discard(id(value))

    def _add_object(self, value: Any) -> None:
        if isinstance(value, types.ModuleType):
            self._text("module", value.__name__)
        elif isinstance(value, type | types.BuiltinFunctionType):
            self._text("named", value.__module__, value.__qualname__)
        elif hasattr(value, "detach") and hasattr(value, "dtype"):
            self._tensor(value)
        elif hasattr(value, "dtype") and hasattr(value, "tobytes"):
            self._text("array", value.dtype, value.shape, value.tobytes())
        elif isinstance(value, list | tuple):
            self._text(type(value).__name__, len(value))
            self.add(*value)
        elif isinstance(value, set | frozenset):
            self._text(type(value).__name__, *sorted(self._alone(item) for item in value))
        elif isinstance(value, Mapping):
            self._text("mapping", *sorted(self._alone(key, item) for key, item in value.items()))
        elif isinstance(value, functools.partial):
            self._text("partial")
            self.add(value.func, value.args, value.keywords)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._text("method")
            self.add(value.__func__, value.__self__)
        elif isinstance(value, types.CodeType):
            self._code(value)
        else:
            self._other(value)

    def _tensor(self, value: Any) -> None:
        import torch

        flat = value.detach().cpu().contiguous().flatten()
        self._text("tensor", value.dtype, tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())

    def _function(self, value: types.FunctionType) -> None:
        if _in_library(value.__module__):
            self._text("named", value.__module__, value.__qualname__)
            return
        self._text("function")
        cells = [_content(cell) for cell in value.__closure__ or ()]
        self.add(value.__code__, value.__defaults__, value.__kwdefaults__, cells)
        for name in sorted(_names(value.__code__) & set(value.__globals__)):
            self._text(name)
            self._add(value.__globals__[name])

    def _code(self, code: types.CodeType) -> None:
        self._text("code", code.co_code, code.co_exceptiontable, code.co_argcount, code.co_kwonlyargcount)
        self._text(*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars)
        self.add(code.co_consts)

    def _other(self, value: Any) -> None:
        if is_dataclass(value):
            self._text("dataclass", type(value).__qualname__)
            self.add(*((f.name, getattr(value, f.name)) for f in fields(value)))
        elif hasattr(getattr(value, "info", None), "weights_hash"):
            self._text("model", value.info.weights_hash)
        else:
            kind = type(value)
            self._text("object", kind.__module__, kind.__qualname__)
            call = vars(kind).get("__call__")
            self._add(call if isinstance(call, types.FunctionType) else None)
            if hasattr(value, "__dict__"):
                self._add(vars(value))
            elif " at 0x" not in repr(value):
                self._text(repr(value))


def _in_library(module: str | None) -> bool:
    """Whether a module belongs to an installed package, the standard library or this one, known by name."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    path = getattr(sys.modules.get(top), "__file__", None) or ""
    return top == __name__.partition(".")[0] or "site-packages" in path or "dist-packages" in path


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not assigned yet
        return None


def _names(code: types.CodeType) -> set[str]:
    """Global names that the code, or code defined inside it, may look up."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*(_names(const) for const in inner))
