"""Files made to do harm: refused with one message, before they take memory, crash the process or leave the folder."""

import gzip
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from data_processing.parts.tables import workspace
from tests.conftest import ROOT
from utils.checkpoint import load_state
from utils.datasets import load_sequences
from utils.errors import InputError
from utils.files import check_whole, check_writable, load_matrix, save_json, staged_directory
from utils.matrices import resumable_matrix
from utils.pickles import load_pickle, save_pickle
from utils.Trie import Trie
from utils.util import append_results

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
    imports = "from utils.pickles import load_pickle"
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


def test_an_array_does_not_follow_a_bytearray_that_grows(tmp_path):
    array = Call(np._core.numeric._frombuffer, bytearray(b"12345678"), np.dtype("u1"), (8,), "C")
    content = pickle.dumps([array], 5)
    place = content.count(b"\x94", 0, content.index(b"12345678"))  # of the bytearray in the memo
    grow = b"h" + bytes([place]) + b"(" + b"K\x30" * 5000 + b"e0"
    path = tmp_path / "x.pkl"
    path.write_bytes(content[:2] + content[11:-1] + grow + b".")
    assert bytes(load_pickle(path, list, "")[0]) == b"12345678"


# Weights


def write_pt(path: Path, pickled: bytes, record: bytes = b"", compression: int = zipfile.ZIP_STORED) -> None:
    """A file as torch.save writes it, with this pickle and one record."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "data/0": record, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", content)


def pickled_in(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def write_hostile_weights(folder: Path, reference) -> list[Path]:
    """Small files that hold, or ask for, much."""
    names = "deflated", "bytes", "legacy", "stride", "shared", "layers", "wide", "parts", "tokenizer"
    paths = {name: folder / f"{name}.pt" for name in names}
    wide = {"gpt2model.wte.weight": torch.zeros(5 << 20)}
    torch.save(wide, paths["deflated"])
    pickled = pickled_in(paths["deflated"])
    write_pt(paths["deflated"], pickled, bytes(20 << 20), zipfile.ZIP_DEFLATED)
    write_pt(folder / "inner.pt", pickled, bytes(20 << 20))
    with zipfile.ZipFile(folder / "parts.pt.zip.partaa", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "inner.pt", "parts.pt")
    write_pt(paths["bytes"], b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85q\x01Rs.")
    paths["legacy"].write_bytes(b"\x80\x02]r" + struct.pack("<I", 1 << 26) + b".")
    torch.save({"a": torch.zeros(1).expand(1 << 29)}, paths["stride"])
    torch.save(dict.fromkeys(map(str, range(400)), torch.zeros(1 << 18)), paths["shared"])
    small = {name: value for name, value in reference.model.items() if not name.startswith("gpt2model.h.")}
    small |= {"gpt2model.wte.weight": torch.zeros(15361, 64), "gpt2model.h.9999999.ln_1.weight": torch.zeros(1)}
    small |= {"gpt2model.wpe.weight": torch.zeros(1024, 64), "linear_layer.weight": torch.zeros(64, 192)}
    torch.save({name: value for name, value in small.items() if name != "pred_head.weight"}, paths["layers"])
    torch.save(
        {"gpt2model.h.0.a": torch.zeros(1), "gpt2model.wpe.weight": torch.zeros(1024, 1)}
        | {"gpt2model.wte.weight": torch.zeros(0, 1 << 40), "linear_layer.weight": torch.zeros(0, 1 << 40)},
        paths["wide"],
    )
    torch.save({"quantizer.project_in.weight": torch.zeros(0, 1 << 20)}, paths["tokenizer"])
    return list(paths.values())


def test_weights_that_hold_more_than_their_file(tmp_path, reference):
    paths = write_hostile_weights(tmp_path, reference)
    imports = """
from pathlib import Path
import torch
from ae_trainer import load_tokenizer
from model import load_model
from utils.checkpoint import load_state
from utils.errors import InputError
def load(paths):
    said = []
    for path in paths:
        try:
            load_tokenizer(path) if "tokenizer" in path else load_model(path, torch.device("cpu"))
        except InputError as error:
            said.append(str(error))
    raise InputError("; ".join(said))
"""
    said = refused(imports, "load(sys.argv[1:])", *paths)
    assert all(str(path) in said for path in paths)
    counts = {"unpack to": 2, "asks for more memory": 1, "claim tensors of": 2, "too few": 3, "no whole file": 1}
    assert {words: said.count(words) for words in counts} == counts


@pytest.mark.parametrize("kind", ["code", "class", "text"])
def test_refusals_do_not_pass_on_advice_to_load_it_nevertheless(house, tmp_path, monkeypatch, capsys, kind):
    path = tmp_path / "x.pt"
    torch.save({"a": Call(exec, "1") if kind == "code" else Path("x")}, path)
    if kind == "text":
        path.write_text("no weights")
    house.refuse(monkeypatch, capsys, f"python eval.py --ckpt_path {path}", str(path), "refused")
    with pytest.raises(InputError) as refusal:
        load_state(path)
    assert not [words for words in ("trust", "weights_only", "load", "\n", "\x1b") if words in str(refusal.value)]


# Arrays and lines


def write_npy(path: Path, shape: tuple, extra: str = "", content: bytes = bytes(64)) -> Path:
    header = str({"descr": "<f4", "fortran_order": False, "shape": shape}) + extra + "\n"
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header.encode() + content)
    return path


@pytest.mark.parametrize(
    ("shape", "extra", "said"),
    [
        ((1 << 40, 768), "", "is not a whole .npy array"),
        ((1 << 40, 0), "", "expected a floating-point matrix"),
        ((4, 4), " " * 20_000, "is large and may not be safe"),
    ],
)
def test_headers_that_claim_much(tmp_path, shape, extra, said):
    path = write_npy(tmp_path / "m.npy", shape, extra)
    with pytest.raises(InputError) as refusal:
        load_matrix(path, "Make it again.")
    message = str(refusal.value)
    assert said in message and str(path) in message and "allow_pickle" not in message and "\n" not in message


def test_other_files_in_place_of_an_array(tmp_path):
    """What numpy says of them is how to load them nevertheless."""
    np.savez_compressed(tmp_path / "zip.npz", a=np.zeros(1 << 20))
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1]))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match="is not a whole .npy array") as refusal:
            load_matrix(path, "Make it again.")
        assert "trust" not in str(refusal.value) and "allow_pickle" not in str(refusal.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_a_line_without_end(tmp_path, name):
    path = tmp_path / name
    with (gzip.open if name.endswith("gz") else open)(path, "wb") as file:
        file.write(b'{"id": 0}\n"')
        for _ in range(40):
            file.write(bytes(1 << 20))
    imports = "from utils.files import read_jsonl"
    assert f"{path}, line 2: longer than" in refused(imports, "list(read_jsonl(sys.argv[1], ''))", path)


# Links in a circle, and what is appended


@pytest.fixture
def circle(tmp_path) -> Path:
    """A link to a link to itself."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("inside", ["", "x.npy"])
def test_links_in_a_circle(circle, inside):
    path = circle / inside
    for write in (
        lambda: save_pickle(path, [1]),
        lambda: resumable_matrix(path, (2, 2), "f4", {}).__enter__(),
        lambda: staged_directory(path).__enter__(),
        lambda: workspace(path, {}).__enter__(),
        lambda: append_results(str(path), [{}]),
        lambda: check_writable(path),
    ):
        with pytest.raises(InputError, match=f"{circle}.* leads in a circle"):
            write()
    for read in (load_pickle, load_matrix):
        with pytest.raises(InputError, match=f"{circle}.* leads in a circle" if not inside else "x.npy"):
            read(path, *([dict] if read is load_pickle else []), "Make it again.")


def test_commands_given_links_in_a_circle(house, circle, monkeypatch, capsys):
    script = "python data_processing/"
    for command in (
        f"{script}data_process_2.py --datasets data/test/steam --output {circle}",
        f"{script}make_token_list.py --embeddings {circle} --output {house.folder}/x.pkl",
    ):
        house.refuse(monkeypatch, capsys, command, str(circle))


def test_results_stay_whole_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    append_results(str(path), [{"a": 1}])
    before = path.read_bytes()
    code = "import sys, resource, signal; from utils.util import append_results; from utils.cli import run;"
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
    code += "run(lambda: append_results(sys.argv[1], [{'b': 'x' * 60}, {'c': 'y' * 60}]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"{path} could not be written (File too large)" in done.stderr
    assert path.read_bytes() == before


def test_results_are_lines_of_json(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    append_results(str(path), [{"a": float("nan"), "b": [float("inf"), 1.5]}])
    path.write_bytes(path.read_bytes()[:-1])  # as an editor may leave it
    append_results(str(path), [{"c": 2}])
    assert path.read_text() == '{"a": null, "b": [null, 1.5]}\n{"c": 2}\n'
    append_results("/dev/null", [{"c": 2}])
    save_json(path, {"a": -float("inf")})
    assert path.read_text() == '{\n "a": null\n}\n'


@pytest.mark.parametrize(
    ("start", "end", "name"),
    [
        (b"\x80\x04}\x8c\x04anna]", b"as.", "test.pkl"),  # an item id
        (b"\x80\x04]", b"a.", "codes.pkl"),
        (b"\x80\x04}K\x01", b"s.", "item_text_dict.pkl"),
    ],
)
def test_values_that_are_short_in_a_file_and_endless_in_a_message(tmp_path, start, end, name):
    (tmp_path / name).write_bytes(start + b")" + b"2\x86" * 60 + end)  # a pair of a thing and itself, sixty times
    reads = {
        "test.pkl": "load_sequences(path, '')",
        "codes.pkl": "codes_array(load_pickle(path, list, ''), path)",
        "item_text_dict.pkl": "load_item_texts(path)",
    }
    imports = """
from pathlib import Path
from data_processing.parts.merging import load_item_texts
from utils.pickles import load_pickle
from utils.datasets import codes_array, load_sequences
path = Path(sys.argv[1])
"""
    assert name in refused(imports, reads[name], tmp_path / name)


def test_numbers_too_long_to_be_printed(tmp_path):
    for number, value in enumerate(({"anna": [1, 1 << 20_000]}, {1 << 20_000: [1, "x"]})):
        save_pickle(tmp_path / f"{number}.pkl", value)
        with pytest.raises(InputError, match="a whole number of 20001 bits"):
            load_sequences(tmp_path / f"{number}.pkl", "")


@pytest.mark.parametrize("users", [{(1, 2): [1, 2], (3, 4): [2, 1]}, {(5,): [1, 2]}, {b"a": [1, 2], (): [2, 1]}])
def test_users_that_are_tuples(tmp_path, users):
    save_pickle(tmp_path / "x.pkl", users)
    assert load_sequences(tmp_path / "x.pkl", "").users.tolist() == list(users)


@pytest.mark.parametrize("name", [".", "./x", ".a/b", "x" * 300, "." + "x" * 300, "a/../../b", "/x"])
def test_a_note_that_lists_what_is_no_file_beside_it(tmp_path, name):
    note = tmp_path / "dataset.json"
    save_json(note, {"files": {name: None}})
    with pytest.raises(InputError, match="dataset.json"):
        check_whole(note)


def test_a_note_with_a_nan_does_not_hang(tmp_path):
    """NaN differs from itself, so that an index always seemed to have been saved anew."""
    Trie(np.arange(8, dtype=np.int16).reshape(2, 4)).save(tmp_path)
    note = tmp_path / "trie.json"
    note.write_text(note.read_text().replace('"items": 2', '"items": NaN'))
    opens = "from utils.Trie import Trie"
    assert "trie.json" in refused(opens, "Trie.open(sys.argv[1])", tmp_path)
