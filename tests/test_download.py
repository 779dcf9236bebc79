"""Fetching and unpacking, with the real huggingface_hub client and a stand-in for the Hub on this machine."""

import io
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_processing import data_download
from data_processing.parts import hub as parts_hub
from tests.conftest import ROOT
from tests.hub import COMMIT, Asked, StandInHub, listed, serving
from utils.errors import InputError

WEIGHTS = "recgpt_layer_3_weight.pt"
MODEL = ("model", "hkuds/RecGPT_model")
DATA = ("dataset", "hkuds/RecGPT_dataset")
AMAZON = ("dataset", "McAuley-Lab/Amazon-Reviews-2023")
REVIEWS = "raw/review_categories/Pens.jsonl"
META = "raw/meta_categories/meta_Pens.jsonl"
CHUNK = 10 * 1024 * 1024  # bytes: the client writes so many at a time
RAR = "all_item_text_embeddings.tar.gz.part.part{:02d}.rar"


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def packed(array: np.ndarray) -> bytes:
    """A .tar.gz of the array, as the release's rar parts hold it."""
    content, archive = io.BytesIO(), io.BytesIO()
    np.save(content, array)
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("inner/all_item_text_embeddings.npy")
        member.size = len(content.getvalue())
        tar.addfile(member, io.BytesIO(content.getvalue()))
    return archive.getvalue()


EMBEDDINGS = np.random.default_rng(0).normal(size=(20, 32))
RELEASE = {
    "README.md": b"not asked for",
    "pre_train/train.pkl": noise(5000),
    "pre_train/token_id_list.pkl": b"small",
    "eval/eval.pkl": noise(3000),
    "test/steam/test.pkl": noise(2000),
    "test/baby/test.pkl": noise(2001),
    "test/baby/empty.txt": b"",
}


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    """The Hub with a small release, without rar parts, and one Amazon category."""
    contents = {
        MODEL: {"README.md": b"not asked for", WEIGHTS: noise(4000)},
        DATA: dict(RELEASE),
        AMAZON: {REVIEWS: noise(1500), META: b'{"parent_asin": "p"}\n'},
    }
    with serving(contents) as hub:
        yield hub


@pytest.fixture
def python(hub, tmp_path):
    """Run Python in tmp_path with the Hub's address, and no other; what it printed on stdout, or its error message."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().startswith(("hf_", "transformers_"))}

    def run(*arguments: str, expect: int = 0, **variables: str) -> str:
        environment = clean | hub.environment() | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment | variables, capture_output=True, text=True
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1] if expect else done.stdout

    return run


@pytest.fixture
def download(python):
    """Run data_download.py with these flags."""

    def run(*flags: str, **options) -> str:
        return python(str(ROOT / "data_processing/data_download.py"), *flags, **options)

    return run


def files_in(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stand_in_speaks_as_the_hub(python, hub, tmp_path):
    """The client's own ways to fetch work with it, so that what it serves is what they expect of the Hub."""
    python("-c", f"import huggingface_hub as h; h.hf_hub_download('{MODEL[1]}', '{WEIGHTS}', local_dir='one')")
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == noise(4000)
    call = f"h.snapshot_download('{DATA[1]}', repo_type='dataset', allow_patterns=['test/*'], local_dir='all')"
    python("-c", f"import huggingface_hub as h; {call}")
    fetched = {name: content for name, content in files_in(tmp_path / "all").items() if not name.startswith(".cache")}
    assert fetched == {name: content for name, content in RELEASE.items() if name.startswith("test/")}


def test_release_is_fetched_once(download, hub, tmp_path):
    said = download("--release", "all", "--ckpt_dir", "weights")
    assert files_in(tmp_path / "weights") == {WEIGHTS: noise(4000)}
    wanted = {name: content for name, content in RELEASE.items() if "/" in name}
    assert files_in(tmp_path / "data") == wanted
    assert "data/test: 3 fetched, 0 of 3 already in place" in said
    hub.asked.clear()

    said = download("--release", "all", "--ckpt_dir", "weights")
    assert hub.asked == []
    assert said.count("nothing fetched") == 4 and "data/test: nothing fetched, 3 of 3 already in place" in said

    # Only what is missing or has another size
    (tmp_path / "data/eval/eval.pkl").unlink()
    os.truncate(tmp_path / "data/test/steam/test.pkl", 1999)
    said = download("--release", "eval", "test")
    assert "data/test/steam/test.pkl has 1999 bytes, the Hub lists 2000: it is fetched again" in said
    assert [asked.path for asked in hub.asked] == ["eval/eval.pkl", "test/steam/test.pkl"]
    assert files_in(tmp_path / "data") == wanted


def test_weights_in_parts(download, hub, tmp_path):
    parts = {f"{WEIGHTS}.zip.part{ending}": noise(size) for ending, size in (("aa", 1200), ("ab", 10))}
    hub.contents[MODEL] = {"README.md": b"", **parts}
    download("--release", "weights")
    assert files_in(tmp_path / "ckpt") == parts
    hub.contents[MODEL] = {"other.pt": b""}
    assert f"has no {WEIGHTS}, whole or in parts, but other.pt" in download("--release", "weights", expect=2)


def test_broken_transfer_goes_on_where_it_stopped(download, hub, tmp_path):
    content = noise(CHUNK + 6_000_000)
    hub.contents[AMAZON][REVIEWS] = content
    hub.break_after = CHUNK + 3_000_000
    message = download("--amazon", "Pens", expect=2)
    assert f"{REVIEWS} cannot be fetched (403 Forbidden" in message and "the same command goes on from there" in message
    (partial,) = files_in(tmp_path).items()
    assert partial[0].startswith("data/raw/raw/review_categories/.Pens.jsonl.") and partial[0].endswith(".partial")
    assert partial[1] == content[:CHUNK]

    hub.asked.clear()
    hub.break_after = None
    download("--amazon", "Pens")
    assert hub.asked == [Asked(REVIEWS, CHUNK), Asked(META, None)]
    assert files_in(tmp_path / "data/raw") == hub.contents[AMAZON]


def test_transfer_that_breaks_once_is_mended_in_the_same_run(download, hub, tmp_path):
    hub.contents[AMAZON][REVIEWS] = noise(CHUNK + 1_000_000)
    hub.break_after, hub.refuse_after_break = CHUNK, False
    download("--amazon", "Pens")
    assert hub.asked[:2] == [Asked(REVIEWS, None), Asked(REVIEWS, CHUNK)]
    assert files_in(tmp_path / "data/raw") == hub.contents[AMAZON]


def test_partial_file_of_another_version_is_left_alone(download, hub, tmp_path):
    """What is left of an earlier version never becomes part of a later one, even where the sizes agree."""
    hub.contents[AMAZON][REVIEWS] = b"a" * (CHUNK + 2_000_000)
    hub.break_after = CHUNK + 1_000_000
    download("--amazon", "Pens", expect=2)
    hub.break_after = None
    hub.contents[AMAZON][REVIEWS] = b"b" * (CHUNK + 2_000_000)
    download("--amazon", "Pens")
    assert set((tmp_path / "data/raw" / REVIEWS).read_bytes()) == {ord("b")}


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (noise(1499), f"data/raw/{REVIEWS}: 1499 bytes arrived, the Hub lists 1500. Nothing of it was kept"),
        (noise(1600), f"data/raw/{REVIEWS}: 1600 bytes arrived, the Hub lists 1500. Nothing of it was kept"),
        (noise(1500)[::-1], f"data/raw/{REVIEWS}: what arrived has the SHA-256"),
    ],
)
def test_what_is_not_as_listed_gets_no_name(download, hub, tmp_path, served, said):
    hub.lies[REVIEWS] = served
    assert said in download("--amazon", "Pens", expect=2)
    assert not files_in(tmp_path)


def test_what_the_hub_does_not_have(download, hub, tmp_path):
    del hub.contents[AMAZON][META]
    assert f"{AMAZON[1]}/{META} is no file of the Hub. Check the name." in download("--amazon", "Pens", expect=2)
    for name in [name for name in hub.contents[DATA] if name.startswith("eval/")]:
        del hub.contents[DATA][name]
    message = download("--release", "test", "eval", expect=2)
    assert f"{DATA[1]}/eval cannot be fetched (404" in message and "HF_ENDPOINT" in message
    assert hub.asked == [] and not files_in(tmp_path)  # nothing is fetched before everything is found


@pytest.mark.parametrize("path", ["test/../../evil.pkl", "/etc/evil.pkl", "test/./x.pkl"])
def test_paths_that_lead_out_of_the_folder(path):
    entry = SimpleNamespace(path=path, size=1, blob_id="0" * 40, lfs=None)
    with pytest.raises(InputError, match="leads out of its folder"):
        parts_hub._listed([entry], "some/repository", "dataset", "test")


def test_hub_out_of_reach(download, hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    message = download("--amazon", "Pens", expect=2)
    assert f"{REVIEWS} cannot be fetched (" in message and "refused" in message and "HF_ENDPOINT" in message
    message = download("--release", "weights", expect=2, HF_HUB_OFFLINE="1")
    assert f"{MODEL[1]}/ cannot be fetched (" in message and "HF_HUB_OFFLINE" in message
    assert "Nothing to fetch: give --release" in download(expect=2)


LOCAL_FILE = """
import sys
from data_processing.parts.hub import local_file
from utils.cli import run
run(lambda: print(local_file(sys.argv[1], "fetched")))
"""


def test_file_named_by_its_place_on_the_hub(python, hub, tmp_path):
    hub.contents["dataset", "anna/shop"] = {"in/pens.jsonl": b"{}\n"}
    name = "hf://datasets/anna/shop/in/pens.jsonl"
    for fetched in (1, 1):  # the second time it is there
        assert python("-c", LOCAL_FILE, name).splitlines()[-1] == "fetched/anna/shop/in/pens.jsonl"
        assert len(hub.asked) == fetched
    assert files_in(tmp_path / "fetched") == {"anna/shop/in/pens.jsonl": b"{}\n"}

    python("-c", LOCAL_FILE, "hf://datasets/anna/shop@v1.0/in/pens.jsonl")
    assert "v1.0" in hub.revisions
    assert (tmp_path / "fetched/anna/shop@v1.0/in/pens.jsonl").is_file()

    message = python("-c", LOCAL_FILE, name, expect=2, HF_HUB_OFFLINE="1")
    assert message.endswith("Or name fetched/anna/shop/in/pens.jsonl, which was fetched earlier.")


def test_names_that_are_local_or_wrong(tmp_path):
    assert parts_hub.local_file("some/file.jsonl", tmp_path) == Path("some/file.jsonl")
    for name in (
        "hf://anna/shop/pens.jsonl",
        "hf://datasets/anna/pens.jsonl",
        "hf://datasets/anna/shop/",
        "hf://datasets/anna/shop@/pens.jsonl",
        "hf://datasets/anna/shop/../../pens.jsonl",
        "hf://models/anna/shop/pens.pt",
    ):
        with pytest.raises(InputError, match="is not a name of the form hf://datasets/OWNER/REPO/PATH"):
            parts_hub.local_file(name, tmp_path)


def test_no_room_on_the_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(data_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    file = parts_hub.HubFile("anna/shop", "dataset", None, "a.jsonl", 7_000_000_000, COMMIT, None)
    with pytest.raises(InputError, match="has 5.0 GB free, what is to be fetched needs 7.0 GB"):
        parts_hub.fetch([file], tmp_path)
    monkeypatch.setattr(data_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    write_rar_parts(tmp_path, [1, 2])
    with pytest.raises(InputError, match="unpacking the rar parts needs"):
        data_download.unpack_parts(tmp_path)
    (tmp_path / "all_item_text_embeddings.tar.gz.part").write_bytes(packed(EMBEDDINGS))
    with pytest.raises(InputError, match="unpacking inner/all_item_text_embeddings.npy needs"):
        data_download.unpack_tar(tmp_path)


# Unpacking


def write_rar_parts(folder: Path, numbers: list[int]) -> None:
    for number in numbers:
        (folder / RAR.format(number)).write_bytes(b"part%d" % number)


def test_rar_parts_are_fetched_and_unpacked_once(download, hub, tmp_path):
    """With a stand-in for unrar: the parts are a .tar.gz cut in pieces, and it joins them again."""
    whole = packed(EMBEDDINGS)
    cuts = [whole[start : start + 500] for start in range(0, len(whole), 500)]
    assert len(cuts) > 9  # so that part10 is there
    hub.contents[DATA] |= {f"pre_train/{RAR.format(number)}": cut for number, cut in enumerate(cuts, start=1)}
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/unrar"
    program.write_text('#!/bin/sh\ncat "$(dirname "$3")"/*.rar > "$4/all_item_text_embeddings.tar.gz.part"\n')
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    assert "is unpacked" in download("--release", "pre_train", **path)
    folder = tmp_path / "data/pre_train"
    assert (np.load(folder / "all_item_text_embeddings.npy") == EMBEDDINGS).all()
    assert not list(folder.glob(".*"))

    hub.asked.clear()
    for part in folder.glob("*.rar"):
        part.unlink()
    assert "nothing fetched" in download("--release", "pre_train")
    assert hub.asked == [] and not list(folder.glob("*.rar"))


def test_unpacked_array_that_is_cut_is_noticed(tmp_path):
    write_rar_parts(tmp_path, [1])
    np.save(tmp_path / "all_item_text_embeddings.npy", EMBEDDINGS)
    data_download.unpack_parts(tmp_path)  # nothing to do
    os.truncate(tmp_path / "all_item_text_embeddings.npy", 1000)
    with pytest.raises(InputError, match="not a whole .npy .*Delete it and run the same command again"):
        data_download.unpack_parts(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_archive_is_noticed(tmp_path, damage):
    whole = packed(np.random.default_rng(0).normal(size=6000))
    damaged = whole[:20_000] + bytes([whole[20_000] ^ 1]) + whole[20_001:] if damage == "flip" else whole[:20_000]
    (tmp_path / "all_item_text_embeddings.tar.gz.part").write_bytes(damaged)
    with pytest.raises(InputError, match="not a whole archive"):
        data_download.unpack_tar(tmp_path)


def test_parts_that_cannot_be_unpacked(tmp_path, monkeypatch):
    data_download.unpack_parts(tmp_path)  # nothing to do
    write_rar_parts(tmp_path, [1, 4])
    with pytest.raises(InputError, match="rar parts 2, 3 of 4 are missing"):
        data_download.unpack_parts(tmp_path)
    write_rar_parts(tmp_path, [2, 3])
    monkeypatch.setattr(data_download.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="needs unrar or bsdtar, neither is installed"):
        data_download.unpack_parts(tmp_path)
    program = tmp_path / "bsdtar"
    program.write_text("#!/bin/sh\ncat >/dev/null\necho 'not a rar archive' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(data_download.shutil, "which", lambda name: str(program) if name == "bsdtar" else None)
    with pytest.raises(InputError, match=r"unpacking failed \(not a rar archive\)"):
        data_download.unpack_parts(tmp_path)
    assert not list(tmp_path.glob(".unpack*"))


def number(value: int) -> bytes:
    """A number as rar archives hold it: seven bits a byte, the lowest first."""
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + number(value // 128)


def rar_header(*fields: bytes) -> bytes:
    body = b"".join(fields)
    body = number(len(body)) + body
    return struct.pack("<I", zlib.crc32(body)) + body


def rar_part(name: bytes, content: bytes, cuts: list[bytes], place: int) -> bytes:
    """One part of a rar archive (version 5, stored) of one file."""
    last = place == len(cuts) - 1
    split = 2 + (8 if place else 0) + (0 if last else 16)  # data follow; go on from the part before; go on in the next
    checksum = struct.pack("<I", zlib.crc32(content if last else cuts[place]))
    return b"".join(
        [
            b"Rar!\x1a\x07\x01\x00",
            rar_header(number(1), number(0), number(3), number(place)) if place else rar_header(b"\x01\x00\x01"),
            rar_header(
                *map(number, (2, split, len(cuts[place]), 4, len(content), 0o100644)),
                checksum, *map(number, (0, 1, len(name))), name,
            ),
            cuts[place],
            rar_header(number(5), number(0), number(0 if last else 1)),
        ]
    )  # fmt: skip


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.skipif(not shutil.which("bsdtar"), reason="bsdtar is not installed")
def test_real_rar_parts(tmp_path, damaged):
    array = np.random.default_rng(0).normal(size=(200, 32))
    whole = packed(array)
    cuts = [whole[start : start + 5000] for start in range(0, len(whole), 5000)]
    for place in range(len(cuts)):
        part = rar_part(b"all_item_text_embeddings.tar.gz.part", whole, cuts, place)
        if damaged and place == 3:
            part = part[:2000] + bytes([part[2000] ^ 1]) + part[2001:]
        (tmp_path / RAR.format(place + 1)).write_bytes(part)
    assert len(cuts) > 9
    if damaged:
        with pytest.raises(InputError, match=r"unpacking failed|not a whole archive"):
            data_download.unpack_parts(tmp_path)
    else:
        data_download.unpack_parts(tmp_path)
        assert (np.load(tmp_path / "all_item_text_embeddings.npy") == array).all()
    assert not list(tmp_path.glob(".unpack*"))


# Links


@pytest.fixture
def outside(tmp_path) -> Path:
    """A file that nothing fetched may change or move."""
    path = tmp_path / "outside" / "kept.npy"
    path.parent.mkdir()
    path.write_bytes(b"kept")
    return path


def unpack_with(monkeypatch, folder: Path, *commands: str) -> None:
    """Unpack the parts in a folder by these commands in place of unrar; $4 is where to."""
    folder.mkdir()
    write_rar_parts(folder, [1])
    program = folder / "unrar"
    program.write_text("\n".join(["#!/bin/sh", *commands, ""]))
    program.chmod(0o755)
    monkeypatch.setattr(data_download.shutil, "which", lambda name: str(program) if name == "unrar" else None)
    data_download.unpack_parts(folder)


@pytest.mark.parametrize("link", ["ln -s", "ln"])
def test_links_in_archives_are_not_written_through(monkeypatch, tmp_path, outside, link):
    (tmp_path / "a.tar.gz").write_bytes(packed(EMBEDDINGS))
    placed = [f'{link} {outside} "$4/all_item_text_embeddings.npy"', f'cp {tmp_path}/a.tar.gz "$4"']
    unpack_with(monkeypatch, tmp_path / "data", *placed)
    target = tmp_path / "data/all_item_text_embeddings.npy"
    assert outside.read_bytes() == b"kept" and not target.is_symlink()
    assert (np.load(target) == EMBEDDINGS).all()


@pytest.mark.parametrize("link", ["ln -s", "ln", "mkfifo $4/x.tar.gz; :"])
def test_links_in_archives_are_no_files_of_theirs(monkeypatch, tmp_path, outside, link):
    (tmp_path / "outside/a.tar.gz").write_bytes(packed(EMBEDDINGS))
    placed = [f'{link} {outside} "$4/all_item_text_embeddings.npy"', f'{link} {outside.parent}/a.tar.gz "$4"']
    with pytest.raises(InputError, match="the rar parts hold no all_item_text_embeddings.npy"):
        unpack_with(monkeypatch, tmp_path / "data", *placed)
    assert outside.read_bytes() == b"kept"
    assert not list((tmp_path / "data").glob("*.npy"))


def test_an_archive_that_unpacks_to_far_more_than_it_is(tmp_path):
    (tmp_path / "all_item_text_embeddings.tar.gz").write_bytes(packed(np.zeros((100, 1000))))
    with pytest.raises(InputError, match=r"all_item_text_embeddings.tar.gz: its \d+ bytes unpack to 800128"):
        data_download.unpack_tar(tmp_path)


def test_two_files_of_one_name_in_an_archive(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for folder in ("a", "b"):
            member = tarfile.TarInfo(f"{folder}/x.npy")
            member.size = 3
            tar.addfile(member, io.BytesIO(folder.encode() * 3))
    with pytest.raises(InputError, match="holds two files called x.npy"):
        data_download.unpack_tar(tmp_path)


def test_a_partial_file_that_is_a_link_is_not_written_through(download, hub, tmp_path, outside):
    file = parts_hub.HubFile(*AMAZON[::-1], None, REVIEWS, 1500, listed(REVIEWS, noise(1500))["oid"], None)
    partial = file.partial(tmp_path / "data/raw")
    partial.parent.mkdir(parents=True)
    partial.symlink_to(outside)
    download("--amazon", "Pens")
    assert outside.read_bytes() == b"kept"
    assert files_in(tmp_path / "data/raw") == hub.contents[AMAZON]
