"""Pickles of plain data: reading those of others without executing anything, and writing our own.

Only plain containers, numbers, text and numpy arrays of numbers or text are read. Python's own unpickler does it, but
for every class or function that a pickle names it gets one of the constructors below. They make what real files hold,
and accept only what real files give them; nothing in a pickle can change them.
"""

import contextlib
import gc
import io
import math
import pickle
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.errors import InputError, reason
from utils.files import atomic_write, limited_memory, require_file

PICKLE_MEMORY = 64  # bytes of memory for each byte of a pickle: an empty list takes two bytes in the file
STACK_PER_BYTE, MOST_STACK = 128, 1 << 30  # bytes of stack for each byte of a pickle
AT_ONCE = 1000  # values of a stream that are pickled together


class ForbiddenError(Exception):
    """A pickle asked for something that is not plain data."""


class Constructor:
    """What a pickle gets for an allowed name. It is no type: an unpickler makes instances of types without a call."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]):
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        """Make what the pickle asks for."""
        return self.make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ForbiddenError("a change of a function or class")


class PlainDtype:
    """What a pickle gets for a numpy dtype; only numbers, truth values and text of fixed size are allowed."""

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
    """An array while it is unpickled: first empty, then filled once, and read-only, so that no opcode can change it."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, dtype, fortran, content = state
        if version != 1 or self.shape != (0,):
            raise ForbiddenError("an array that is filled twice")
        super().__setstate__((1, shape, fitting(dtype, shape, content), bool(fortran), content))
        self.flags.writeable = False

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)  # pickled and printed like any other array

    def __repr__(self) -> str:
        return repr(self.view(np.ndarray))


def fitting(dtype: PlainDtype, shape: tuple[int, ...], content: bytes | bytearray) -> np.dtype:
    """Return the real dtype; raise an error unless an array of this shape takes exactly these bytes."""
    if type(dtype) is not PlainDtype or type(content) not in (bytes, bytearray) or type(shape) is not tuple:
        raise ForbiddenError("an array over something else than bytes")
    itemsize = dtype.real.itemsize
    if shape and (not itemsize or set(map(type, shape)) != {int} or min(shape) < 0):
        raise pickle.UnpicklingError("an array of no such shape")
    if math.prod(shape) * itemsize != len(content):
        raise pickle.UnpicklingError(f"an array of another size than its {len(content)} bytes")
    return dtype.real


def only_named(*_: Any) -> None:
    """What a pickle gets for what real files name only as an argument, and never call."""
    raise ForbiddenError("a call of int or numpy.ndarray")


def make_empty(*_: Any) -> PlainArray:
    """Stands for numpy's _reconstruct: makes an empty array, which `PlainArray.__setstate__` fills."""
    array = np.empty(0, np.int8).view(PlainArray)
    array.flags.writeable = False
    return array


def make_array(
    content: bytes, dtype: PlainDtype, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> PlainArray:
    """Stands for numpy's _frombuffer: makes an array of the bytes; `axes` is the order of its axes, for order "K"."""
    layout, real = "F" if order == "F" else "C", fitting(dtype, shape, content)
    # A bytearray is copied: the rest of the pickle could change its size while numpy has a view of it.
    array = np.ndarray(shape, real, bytes(content), order=layout).view(PlainArray)
    array.flags.writeable = False
    return array if axes is None else array.transpose(axes)


def make_scalar(dtype: PlainDtype, content: bytes) -> np.generic:
    """Stands for numpy's scalar."""
    return np.ndarray((), fitting(dtype, (), content), content)[()]


def make_bytes(content: bytes | str = b"", encoding: str = "latin1") -> bytes:
    """Make bytes, which protocols up to 2 store as Latin-1 text."""
    if type(content) is bytes:
        return content
    if type(content) is not str or encoding not in ("latin1", "latin-1"):
        raise ForbiddenError(f"bytes made from {type(content).__name__} by {encoding!r:.20}")
    return content.encode(encoding)


def collection(kind: type) -> Constructor:
    """The constructor of a type that is made from a list."""

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
    # Both become plain dicts: data need nothing of what these can do beyond that.
    ("collections", "OrderedDict"): collection(dict),
    ("collections", "defaultdict"): Constructor(lambda *_: {}),
    # Protocols up to 2 write __builtin__, as Python 2 did.
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
        """Return the constructor for a name, or refuse it."""
        if (module, name) not in CONSTRUCTORS:
            raise ForbiddenError(f"{module}.{name}")
        return CONSTRUCTORS[module, name]


def load_pickle(path: str | Path, expected: type | tuple[type, ...], remedy: str) -> Any:
    """Load a pickle of plain containers and numpy arrays, such as those of the release, without executing anything.

    Raises:
        InputError: missing, truncated or corrupt file, a forbidden class, or not an object of type `expected`.
    """
    path = require_file(path, remedy)
    try:
        with path.open("rb") as file, _without_garbage_collection():
            loaded = _unpickle(file, path.stat().st_size)
    except ForbiddenError as error:
        raise InputError(
            f"{path} asks for {error}, which is neither a plain container nor an array of numbers or text: refused, "
            "nothing was executed. Use a file from a source you trust, saved as plain dicts, lists and arrays."
        ) from None
    except MemoryError as error:
        raise InputError(
            f"{path} asks for more memory than a pickle of its {path.stat().st_size} bytes needs: refused. {remedy}"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}.") from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise InputError(
            f"{path} is not a whole pickle file ({reason(error)}); it is truncated or corrupt. {remedy}"
        ) from error
    if not isinstance(loaded, expected):
        names = expected.__name__ if isinstance(expected, type) else " or ".join(kind.__name__ for kind in expected)
        raise InputError(f"{path} holds a {type(loaded).__name__}, expected a {names}. {remedy}")
    return loaded


def _unpickle(file: IO[bytes], size: int) -> Any:
    """Read a pickle so that neither its size in memory nor the depth of its keys can end the process.

    Keys that are tuples in tuples are hashed by a recursion in C, which can overflow the stack. So the pickle is read
    in a thread whose stack is large enough for the depth that a file of this size can have.
    """

    def load() -> Any:
        with limited_memory(PICKLE_MEMORY * size):
            return PlainUnpickler(file).load()

    previous = threading.stack_size((1 << 24) + min(STACK_PER_BYTE * size, MOST_STACK) // 4096 * 4096)
    try:
        with ThreadPoolExecutor(1) as pool:
            loaded = pool.submit(load).result()
    finally:
        threading.stack_size(previous)
    keys = [key for key in loaded if type(key) is tuple] if isinstance(loaded, dict) else []
    if any(type(part) is tuple for key in keys for part in key):
        raise ForbiddenError("keys that are tuples in tuples")
    return loaded


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off: with millions of new lists it would take half of the time, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def save_pickle(path: str | Path, value: Any) -> None:
    """Write a pickle atomically."""
    with atomic_write(path) as file:
        pickle.dump(value, file, protocol=4)


def save_dict(path: str | Path, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Write the pickle of a dict atomically from an iterator of its pairs; the dict is never in memory."""
    _save_stream(path, dict, pairs)


def save_list(path: str | Path, values: Iterable[Any]) -> None:
    """Write the pickle of a list atomically from an iterator of its values; the list is never in memory."""
    _save_stream(path, list, values)


def _save_stream(path: str | Path, kind: type[dict] | type[list], values: Iterable[Any]) -> None:
    """Write an empty container, and then some values at a time that are added to it; no class is named."""
    values = iter(values)
    with atomic_write(path) as file:
        file.write(_pickled(kind())[:-1])  # without the STOP at the end
        while batch := kind(islice(values, AT_ONCE)):
            file.write(_pickled(batch)[3:-1])  # also without the protocol and the empty container
        file.write(pickle.STOP)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=3)  # the last protocol without frames, which could not be cut
    # Without a memo of what was written: with it, the bytes would depend on which equal values are the same object.
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()
