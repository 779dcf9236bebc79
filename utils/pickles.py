"""Pickles from others as data only: plain containers, numbers, text and numpy arrays of numbers or text.

The interpreter's own unpickler reads them. Whatever a pickle names it gets one of the constructors below in its place,
which make what real files hold, out of what real files give them, and which nothing in a pickle can change.
"""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np


class ForbiddenError(Exception):
    """A pickle asked for something that is not plain data."""


class Constructor:
    """What a pickle finds under an allowed name. No type: an unpickler makes instances of those without a call."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]):
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        """What the pickle asks for."""
        return self.make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ForbiddenError("a change of a function or class")


class PlainDtype:
    """What a pickle gets for a numpy dtype: numbers, truth values or text of fixed size in either byte order."""

    __slots__ = ("real",)

    def __init__(self, name: str, align: bool = False, copy: bool = True):
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|[SU]\d{1,9}", name):
            raise ForbiddenError(f"an array of {name[:20]!r}")
        self.real = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        version, order, *parts, size, _, _ = state
        if version != 3 or parts != [None] * 3 or size not in (-1, self.real.itemsize):
            raise ForbiddenError("an array of records")
        self.real = self.real.newbyteorder(order)


class PlainArray(np.ndarray):
    """An array as unpickling builds it: empty, then filled once, and read-only so that no opcode changes it."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, content = state
        if version != 1 or self.shape != (0,):
            raise ForbiddenError("an array that is filled twice")
        super().__setstate__((1, shape, fitting(dtype, shape, content), bool(fortran), content))
        self.flags.writeable = False

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)  # written, and shown, as any other

    def __repr__(self) -> str:
        return repr(self.view(np.ndarray))


def fitting(dtype: PlainDtype, shape: tuple[int, ...], content: bytes | bytearray) -> np.dtype:
    """The real dtype, if an array of this shape takes exactly these bytes."""
    if type(dtype) is not PlainDtype or type(content) not in (bytes, bytearray) or type(shape) is not tuple:
        raise ForbiddenError("an array over something else than bytes")
    itemsize = dtype.real.itemsize
    if shape and (not itemsize or set(map(type, shape)) != {int} or min(shape) < 0):
        raise pickle.UnpicklingError("an array of no such shape")
    if math.prod(shape) * itemsize != len(content):
        raise pickle.UnpicklingError(f"an array of another size than its {len(content)} bytes")
    return dtype.real


def only_named(*_: Any) -> None:
    """In place of what real files name, as an argument of others, but never call."""
    raise ForbiddenError("a call of int or numpy.ndarray")


def make_empty(*_: Any) -> PlainArray:
    """In place of numpy's _reconstruct: what `PlainArray.__setstate__` fills."""
    array = np.empty(0, np.int8).view(PlainArray)
    array.flags.writeable = False
    return array


def make_array(
    content: bytes, dtype: PlainDtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> PlainArray:
    """In place of numpy's _frombuffer: a view of the bytes; with order "K" its axes are in the order given."""
    layout, real = "F" if order == "F" else "C", fitting(dtype, shape, content)
    # A copy of a bytearray: numpy's view of one does not keep the rest of the pickle from moving its memory.
    array = np.ndarray(shape, real, bytes(content), order=layout).view(PlainArray)
    array.flags.writeable = False
    return array if axes is None else array.transpose(axes)


def make_scalar(dtype: PlainDtype, content: bytes) -> np.generic:
    """In place of numpy's scalar."""
    return np.ndarray((), fitting(dtype, (), content), content)[()]


def make_bytes(content: bytes | str = b"", encoding: str = "latin1") -> bytes:
    """Bytes, which protocols up to 2 hold as Latin-1 text."""
    if type(content) is bytes:
        return content
    if type(content) is not str or encoding not in ("latin1", "latin-1"):
        raise ForbiddenError(f"bytes made from {type(content).__name__} by {encoding!r:.20}")
    return content.encode(encoding)


def collection(kind: type) -> Constructor:
    """Of a type that is made from a list."""

    def make(items: list[Any] | tuple = ()) -> Any:
        if type(items) not in (list, tuple):
            raise ForbiddenError(f"a {kind.__name__} made from {type(items).__name__}")
        return kind(items)

    return Constructor(make)


PLAIN = {
    "dict": collection(dict),
    "list": collection(list),
    "set": collection(set),
    "frozenset": collection(frozenset),
    "int": Constructor(only_named),
    "bytes": Constructor(make_bytes),
    "bytearray": Constructor(lambda *content: bytearray(make_bytes(*content))),
}
CONSTRUCTORS = {
    # Plain ones in their place: what these can do beyond a dict is nothing that data need.
    ("collections", "OrderedDict"): collection(dict),
    ("collections", "defaultdict"): Constructor(lambda *_: {}),
    # Protocols up to 2 say __builtin__, as Python 2 did.
    **{(module, name): made for module in ("builtins", "__builtin__") for name, made in PLAIN.items()},
    ("_codecs", "encode"): Constructor(make_bytes),
    ("numpy", "ndarray"): Constructor(only_named),
    ("numpy", "dtype"): Constructor(PlainDtype),
    **{
        (f"numpy.{core}.{module}", name): Constructor(make)
        for core in ("core", "_core")
        for module, name, make in (
            ("multiarray", "_reconstruct", make_empty),
            ("multiarray", "scalar", make_scalar),
            ("numeric", "_frombuffer", make_array),
        )
    },
}


class PlainUnpickler(pickle.Unpickler):
    """Unpickles plain containers, numbers, strings and numpy arrays; refuses every other class or function."""

    def find_class(self, module: str, name: str) -> Constructor:
        """The constructor for a name that the pickle asks for."""
        if (module, name) not in CONSTRUCTORS:
            raise ForbiddenError(f"{module}.{name}")
        return CONSTRUCTORS[module, name]
