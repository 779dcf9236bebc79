"""Files made to do harm: refused with one message, before they take memory, crash the process or leave the folder."""

import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from utils.files import load_pickle, save_pickle

ALLOWED = 400  # MiB that a small file may take before it is refused

WATCHED = """
import resource, sys
from utils.cli import run
{imports}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
def main():
    before = peak()
    try:
        {call}
    finally:
        print(peak() - before)
run(main)
"""


def refused(imports: str, call: str, *arguments: str | Path) -> str:
    """Make a call in a process of its own: it must be refused with little memory taken. Returns the message."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED.format(imports=imports, call=call), *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-2000:]}"
    assert int(done.stdout.split()[-1]) < ALLOWED, f"{done.stdout.split()[-1]} MiB taken\n{done.stderr}"
    assert len(done.stderr.strip().splitlines()) <= 3
    return done.stderr


# Pickles


class Call:
    """Pickles to a call, with a state to give to the result."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def dtype(name: str = "i8", **changes) -> Call:
    """Pickles to a dtype with a changed state."""
    state = dict(order="<", subarray=None, names=None, fields=None, size=-1, alignment=-1, flags=0) | changes
    return Call(np.dtype, name, False, True, state=(3, *state.values()))


BOXED = Call(np.ndarray, (1,), np.dtype("O"))
SHORT = (1, (1 << 40,), np.dtype("i8"), False, b"12345678")
RAW = Call(
    np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1 << 40,), np.dtype("i8"), False, b"12345678")
)
PROTOCOL_4, LIST = b"\x80\x04", b"]\x94"
COPY = b"cbuiltins\nlist\nh\x00\x85Ra"  # of the list above, into itself
CALLS = {
    "fields of a dtype": dtype("V16", names=("a",), fields={"a": (np.dtype("O"), 8)}, size=16),
    "size of a dtype": Call(np._core.numeric._frombuffer, b"12345678", dtype("S1", order="|", size=0), (8,), "C"),
    "objects": np.array([[1], None], dtype=object),
    "a record": np.zeros(2, dtype=[("a", "i4")]),
    "an array over pointers": Call(np.ndarray, (1,), np.dtype("i8"), BOXED),
    "an array of nothing": Call(np.ndarray, (1 << 31,), np.dtype("i8")),
    "an array larger than its bytes": RAW,
    "a buffer that is no bytes": Call(np._core.numeric._frombuffer, np.arange(8), np.dtype("i8"), (8,), "C"),
    "bytes by their number": Call(bytearray, 1 << 31),
    "a codec": Call(__import__("_codecs").encode, "00" * 99, "utf-32"),
    "a dict of another kind of thing": Call(OrderedDict, b"12"),
    "a range of numbers": Call(list, np.arange(9)),
}
BYTES = {
    "a change of a function": PROTOCOL_4 + b"cnumpy._core.numeric\n_frombuffer\n}\x8c\x01aK\x01sb0}.",
    "a change of a container": PROTOCOL_4 + b"ccollections\nOrderedDict\n)R}\x8c\x05itemsK\x01sb.",
    "a new instance": PROTOCOL_4 + b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85\x81.",
    "a place in the memo": PROTOCOL_4 + b"]r" + struct.pack("<I", 1 << 26) + b".",
    "lists in lists": PROTOCOL_4 + b"]" + LIST + b"(" + b"N" * 9999 + b"e" + COPY * 9999 + b".",
    "tuples in tuples": PROTOCOL_4 + b"})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "an extension": PROTOCOL_4 + b"\x82\x01.",
    "a persistent name": b"Pname\n.",
    "a buffer from elsewhere": b"\x80\x05\x97.",
    "a frame of many bytes": PROTOCOL_4 + b"\x95" + struct.pack("<Q", 1 << 50) + b"].",
    "bytes of many": PROTOCOL_4 + b"\x8e" + struct.pack("<Q", 1 << 50) + b"x.",
}  # fmt: skip


@pytest.mark.parametrize("content", [*CALLS.values(), *BYTES.values()], ids=[*CALLS, *BYTES])
def test_pickles_that_ask_for_more_than_plain_data(tmp_path, content):
    path = tmp_path / "x.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps({1: content}, 4))
    imports = "from utils.files import load_pickle"
    assert str(path) in refused(imports, "load_pickle(sys.argv[1], (dict, list, set), '')", path)


REAL = {
    "arrays": [np.arange(6).reshape(2, 3).astype(kind) for kind in ("i1", "<u2", ">i4", "<f2", ">f8", "?")],
    "order": [np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0), np.arange(6).reshape(2, 3).T, np.arange(9)[::2]],
    "sizes": [np.array(5.0), np.empty(0), np.empty((0, 768)), np.array([])],
    "texts": [np.array(["pen", "über"]), np.array(["a", "é"], dtype=">U3"), np.array([b"ab", b"c"])],
    "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("ab"), np.str_(""), np.bytes_(b"\xff")],
    "plain": [1, 2**99, 1.5, True, None, "é", b"", b"\xff", bytearray(b"ab"), bytearray(), (1, (2, ()))],
    "containers": [{1: {2: [3]}}, {4}, frozenset([5, 6]), set(), OrderedDict(b=1, a=2), defaultdict(list, {7: [8]})],
    (1, "key"): [],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numpy", [b"numpy._core", b"numpy.core"])  # 2.x, 1.x
def test_real_pickles_load(tmp_path, protocol, numpy):
    path = tmp_path / "x.pkl"
    content = pickle.dumps(REAL, protocol)
    if numpy == b"numpy.core":
        lengths = {name: bytes([len(name)]) + name for name in (b"numpy._core.multiarray", b"numpy._core.numeric")}
        for name, counted in lengths.items():
            older = name.replace(b"._core", b".core")
            content = content.replace(counted, bytes([len(older)]) + older).replace(name, older)
        content = content[:2] + content[11:] if protocol > 3 else content  # whose frame has another length now
    path.write_bytes(content)
    loaded = load_pickle(path, dict, "")
    assert list(loaded) == list(REAL)
    for name, expected in REAL.items():
        for found, value in zip(loaded[name], expected, strict=True):
            assert isinstance(found, dict if isinstance(value, dict) else type(value))
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(found, value)
                assert found.dtype.newbyteorder("=") == value.dtype.newbyteorder("=") and found.shape == value.shape
                assert repr(found).startswith("array(")  # as in an item's text
            else:
                assert found == value
    save_pickle(path, loaded)  # opens everywhere
    assert b"utils" not in path.read_bytes() and list(load_pickle(path, dict, "")) == list(REAL)
