"""Data sets that are made again: all old, all new, or refused, whenever the run was killed and whatever was full."""

import argparse
import errno
import os
import pickletools
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import ae_trainer
from ae_trainer import AutoEncoder
from data_processing import (
    TextEncoder_batch,
    data_process_1,
    data_process_2,
    import_dataset,
    make_dataset,
    make_eval,
    make_pre_train,
    make_token_list,
    pack,
    pre_train_data_process,
)
from data_processing.parts import codes, encoding, merging, tables
from data_processing.parts.check import check_directory
from model import RecGPTConfig
from pre_train import run_metadata
from tests.test_data_processing import (
    WIDTH,
    HashEncoder,
    load,
    save,
    write_data_set,
    write_lines,
    write_own_data,
    write_reviews,
)
from utils import files, matrices, packed
from utils.datasets import CODES as CODES_LIST
from utils.datasets import DATA_SET, HELD_OUT, HISTORIES, MAPS, check_fit, load_eval, load_pre_train, load_test
from utils.errors import InputError
from utils.training.settings import Settings
from utils.Trie import Trie

SCRIPTS = (
    ae_trainer,
    *(TextEncoder_batch, data_process_1, data_process_2, import_dataset),
    *(make_dataset, make_eval, make_pre_train, make_token_list, pack, pre_train_data_process),
)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class Case(NamedTuple):
    """A directory that is made, and made again otherwise."""

    first: list[str]  # commands
    again: list[str]  # one command, and what it is followed by before the directory can be read
    output: str
    read: Callable[[Path], object]  # raises InputError where it refuses


def read_test(folder: Path) -> None:
    """predict.py and --check agree."""
    report = check_directory(folder)
    try:
        load_test(folder, cold=False)
    except InputError:
        assert report.faults
        raise
    if report.faults:
        raise InputError(report.faults[0])


OWN = "make_dataset --input own --output out --embeddings"
IMPORT = "import_dataset --interactions i.csv --items m.csv --output out --embeddings"
REVIEWS = "data_process_1 --reviews reviews.jsonl --meta meta.jsonl --output out --test_share"
ENCODE = "TextEncoder_batch --input out --device cpu --encoder"
MERGED = "--datasets a b --output out"
CODES = "make_token_list --embeddings out/all_item_text_embeddings.npy --output out/token_id_list.pkl --device cpu"
PRE_TRAIN = [f"data_process_2 {MERGED}", f"pre_train_data_process {MERGED}", f"{CODES} --vae_ckpt 0.pt"]
EVAL = "make_eval --output out --device cpu"
CASES = {
    "own data": Case([f"{OWN} 0.npy --test_share 0.5"], [f"{OWN} 1.npy --test_share 0.4 --seed 1"], "out", read_test),
    "no times": Case([f"{OWN} 0.npy"], [f"{OWN.replace('own', 'no_times')} 1.npy"], "out", read_test),
    "import": Case([f"{IMPORT} 0.npy"], [f"{IMPORT} 1.npy --split users"], "out", read_test),
    "reviews": Case(
        [f"{REVIEWS} 0.4", f"{ENCODE} one"],
        [f"{REVIEWS} 0.6 --min_interactions 4", f"{ENCODE} one"],
        "out",
        lambda folder: load_test(folder, cold=False),
    ),
    "texts": Case([f"{OWN} 0.npy --test_share 0.5"], [f"{ENCODE} two"], "out", read_test),
    "merge": Case(PRE_TRAIN, PRE_TRAIN[:1] + [line.replace("a b", "b a") for line in PRE_TRAIN], "out", load_pre_train),
    "matrix": Case(PRE_TRAIN, [f"{PRE_TRAIN[1]} --dtype float16", PRE_TRAIN[2]], "out", load_pre_train),
    "codes": Case(PRE_TRAIN, [f"{CODES} --vae_ckpt 1.pt"], "out", load_pre_train),
    "eval": Case([f"{EVAL} --datasets a --vae_ckpt 0.pt"], [f"{EVAL} --datasets b --vae_ckpt 1.pt"], "out", load_eval),
    "packed": Case(
        [*PRE_TRAIN, "pack --data_path out"],
        ["pack --data_path out --dtype float16 --force"],
        "out/packed",
        lambda folder: packed.open_packed(folder.parent),
    ),
}
ALL = f"make_pre_train {MERGED} --device cpu --users 4 --vae_ckpt"
AT_ONCE = {  # in several steps: a full disk may leave it half-made, and refused
    "all for pre-training": Case(
        [f"{ALL} 0.pt"],
        [f"{ALL} 0.pt --seed 1"],
        "out",
        lambda out: (load_pre_train(out), load_eval(out / "eval"), load_pre_train(out / "whole")),
    ),
    "all with another tokenizer": Case(
        [f"{ALL} 0.pt"],
        [f"{ALL} 1.pt --seed 1"],
        "out",
        lambda out: [
            check_fit(load_pre_train(out).origin, other.origin)
            for other in (load_eval(out / "eval"), load_pre_train(out / "whole"))
        ],
    ),
}


@pytest.fixture
def call(monkeypatch):
    """Run a command line in this process."""

    def run_main(command: str) -> None:
        monkeypatch.setattr(sys, "argv", command.split())
        next(script for script in SCRIPTS if script.__name__.endswith(command.split()[0])).main()

    return run_main


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Input for every script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoding, "load_encoder", lambda name, device: HashEncoder())
    monkeypatch.setattr(encoding, "item_text", lambda fields: str(fields))
    random = np.random.default_rng(0)
    write_own_data(Path("own"))
    write_own_data(Path("no_times"), with_times=False)
    write_reviews(Path())
    rows = [f"{user},{item},{time}\n" for time, (user, item) in enumerate(random.integers(0, [9, 12], (300, 2)))]
    Path("i.csv").write_text("user,item,time\n" + "".join(rows))
    Path("m.csv").write_text("item,title\n" + "".join(f"{item},title {item}\n" for item in range(12)))
    for part in (0, 1):
        np.save(f"{part}.npy", random.normal(size=(12, WIDTH)).astype(np.float32))
        torch.manual_seed(part)
        torch.save(AutoEncoder(WIDTH).state_dict(), f"{part}.pt")
    for name, items in (("a", 5), ("b", 4)):
        lists = {user: random.integers(0, items, 3).tolist() for user in range(6)}
        write_data_set(Path(name), lists, {9: [0, 1]}, random.normal(size=(items, WIDTH)).astype(np.float32))


def state(folder: str) -> dict[str, bytes]:
    """What is in a directory, without hidden files, which nobody reads."""
    files = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "/." not in f"/{name}"}


def failing(monkeypatch, names: tuple, at: int, fail: Callable) -> None:
    """Let the `at`-th of all calls of the named functions call `fail` instead."""
    calls = iter(range(at + 1))

    def counted(function: Callable) -> Callable:
        return lambda *args, **kwargs: fail() if next(calls, None) == at else function(*args, **kwargs)

    for place, name in names:
        monkeypatch.setattr(place, name, counted(getattr(place, name)))


def die() -> None:
    raise Killed


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def before_and_after(case: Case, call: Callable) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The states of the directory, made and made again; a copy of the first is left in "old"."""
    for command in case.first:
        call(command)
    shutil.copytree(case.output, "old")
    case.read(Path(case.output))
    for command in case.again:
        call(command)
    case.read(Path(case.output))
    new = state(case.output)
    assert state("old") != new
    return state("old"), new


def renew(case: Case) -> None:
    shutil.rmtree(case.output)
    shutil.copytree("old", case.output)


def moments(name: str) -> range:
    """Which call fails: each, but every other one of scripts that are slow to start."""
    return range(0, 99, 2 if name in ("import", "reviews") else 1)


@pytest.mark.parametrize("name", [*CASES, *AT_ONCE])
def test_a_data_set_that_is_made_again_is_old_or_new_or_refused(world, call, name):
    case = (CASES | AT_ONCE)[name]
    old, new = before_and_after(case, call)
    for moment in moments(name):
        renew(case)
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree")), moment, die)
            try:
                call(case.again[0])
                break
            except Killed:
                pass
        try:
            case.read(Path(case.output))
        except InputError:
            if moment % 5 == 3:
                for command in case.again:
                    call(command)  # what the message says
                assert state(case.output) == new, moment
        else:
            assert state(case.output) in (old, new), moment
    assert 3 < moment < 98


@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_leaves_all_as_it_was(world, call, name):
    case = CASES[name]
    old, _ = before_and_after(case, call)
    for write in moments(name):
        renew(case)
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, ((os, "fsync"), (os, "posix_fallocate")), write, full)
            try:
                call(case.again[0])
                break
            except InputError as error:
                assert "could not be written" in str(error)
        assert state(case.output) == old, write
        case.read(Path(case.output))
    assert 1 < write < 98


def test_a_killed_process_leaves_no_mixed_data_set(world, call):
    case = CASES["own data"]
    old, new = before_and_after(case, call)
    seen = []
    for moment in range(0, 99, 2):
        renew(case)
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                failing(patch, ((Path, "replace"),), moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
                call(case.again[0])
            os._exit(0)
        if not os.waitpid(child, 0)[1]:
            break
        try:
            read_test(Path("out"))
        except InputError as error:
            assert "command again" in str(error)
            seen.append("refused")
        else:
            seen.append({True: "old", False: "new"}[state("out") == old])
            assert state("out") in (old, new)
    assert set(seen) == {"old", "refused"} or set(seen) == {"old", "refused", "new"}


def test_a_file_that_was_changed_by_hand_is_refused_until_the_list_is_taken_away(world, call):
    call(CASES["own data"].first[0])
    train = load(Path("out/train.pkl"))
    save(Path("out/train.pkl"), train | {"new": [1, 2]})
    for refused in (lambda: read_test(Path("out")), lambda: call(f"{EVAL} --datasets out --vae_ckpt 0.pt")):
        with pytest.raises(InputError, match="train.pkl is not what .*dataset.json lists.* remove .files. from"):
            refused()
    Path("out/dataset.json").unlink()
    read_test(Path("out"))


def test_embeddings_and_their_notes_may_be_renamed_together(world, call):
    call(CASES["own data"].first[0])
    for suffix in (".npy", ".json"):
        shutil.copy(f"out/item_text_embeddings{suffix}", f"mine{suffix}")
    call(f"{OWN} mine.npy --test_share 0.5")
    shutil.copy("1.npy", "mine.npy")
    with pytest.raises(InputError, match="mine.npy is not what mine.json lists"):
        call(f"{OWN} mine.npy --test_share 0.5")


@pytest.mark.parametrize(
    "command",
    [
        "ae_trainer --embeddings out/item_text_embeddings.npy --output vae --device cpu",
        "make_token_list --embeddings out/item_text_embeddings.npy --output c.pkl --vae_ckpt 0.pt --device cpu",
        "pre_train_data_process --datasets out --output merged",
    ],
)
def test_a_matrix_that_is_not_the_one_of_its_notes_is_not_read(world, call, command):
    call(CASES["own data"].first[0])
    call("data_process_2 --datasets out --output merged")
    shutil.copy("1.npy", "out/item_text_embeddings.npy")
    with pytest.raises(InputError, match="item_text_embeddings.npy is not what .*json lists"):
        call(command)


@pytest.mark.parametrize("listed", [True, False])  # in a dataset.json, which the release's directories do not have
def test_merged_embeddings_of_other_items_of_equal_number_are_refused(world, call, listed):
    call(CASES["own data"].first[0])
    if not listed:
        Path("out/dataset.json").unlink()
    for command in PRE_TRAIN:
        call(command.replace("a b", "out").replace("--output out", "--output merged").replace(" out/", " merged/"))
    load_pre_train(Path("merged"))
    write_own_data(Path("own"), items=12, users=30)
    lines = [{"id": item, "text": {"title": f"other {item}"}} for item in range(12)]
    write_lines(Path("own/items.jsonl.gz"), lines)
    call(CASES["own data"].first[0])
    if not listed:
        Path("out/dataset.json").unlink()
    with pytest.raises(InputError, match="is of other items than out have now.*data_process_2.py"):
        call("pre_train_data_process --datasets out --output merged")
    call("data_process_2 --datasets out --output merged")
    with pytest.raises(InputError, match="merged from other items.*make_token_list.py again"):
        load_pre_train(Path("merged"))


def test_an_index_is_old_or_new_whenever_its_saving_was_killed(tmp_path):
    two = [Trie(np.random.default_rng(part).integers(0, 50, (200, 4))) for part in (0, 1)]
    for moment in range(99):
        two[0].save(tmp_path / "index")
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree")), moment, die)
            try:
                two[1].save(tmp_path / "index")
                break
            except Killed:
                pass
        codes = Trie.open(tmp_path / "index").codes
        assert any(torch.equal(codes, trie.codes) for trie in two)
    assert 15 < moment < 98


# What is still current


@pytest.fixture
def few_samples(monkeypatch):
    """Fingerprints read the first bytes only, as they read 4 MiB of a large file."""
    monkeypatch.setattr(files, "BLOCKS", 1)
    monkeypatch.setattr(files, "BLOCK", 16)


def change_in_place(path: Path) -> None:
    """Another byte near the end of a file, which keeps its length."""
    known = files.fingerprint(path)
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)
    assert files.fingerprint(path) == known


@pytest.mark.parametrize(
    ("module", "command", "source"),
    [
        (encoding, f"{OWN} given.npy", "given.npy"),
        (encoding, f"{IMPORT} given.npy", "given.npy"),
        (merging, PRE_TRAIN[1], "b/item_text_embeddings.npy"),
        (codes, "make_token_list --embeddings given.npy --output c.pkl --vae_ckpt 0.pt", "given.npy"),
        (packed, "pack --data_path out --dtype float16 --force", "out/all_item_text_embeddings.npy"),
    ],
)
def test_half_a_matrix_of_a_file_that_changed_since_is_not_gone_on_with(
    world, call, few_samples, monkeypatch, module, command, source
):
    jobs = []

    def noted(path, shape, dtype, job):
        jobs.append(job)
        return matrices.resumable_matrix(path, shape, dtype, job)

    shutil.copy("0.npy", "given.npy")
    for line in PRE_TRAIN:
        call(line)
    for note in Path("out").glob("*.json"):
        note.unlink()
    monkeypatch.setattr(module, "resumable_matrix", noted)
    call(command)
    change_in_place(Path(source))
    call(command)
    assert len(jobs) == 2 and jobs[0] != jobs[1]


def test_texts_that_changed_where_a_fingerprint_does_not_look_are_encoded_again(world, call, few_samples, capsys):
    call(CASES["own data"].first[0])
    Path("out/dataset.json").unlink(missing_ok=True)
    call(f"{ENCODE} one")
    texts = Path("out/item_text_dict.pkl")
    texts.write_bytes(texts.read_bytes().replace(b"item 11", b"item 12"))
    with pytest.raises(InputError, match="made from another item_text_dict.pkl"):
        load_test(Path("out"), cold=False)
    call(f"{ENCODE} one")
    assert "encoded already" not in capsys.readouterr().out
    load_test(Path("out"), cold=False)
    call(f"{ENCODE} one")
    assert "encoded already" in capsys.readouterr().out


def test_the_best_so_far_is_of_the_very_held_out_histories(world, call, few_samples):
    call(CASES["eval"].first[0])
    for line in PRE_TRAIN:
        call(line)
    packed.pack("out")
    settings = Settings(eval_every=1, eval_path="out", data_path="out")
    config, accelerator = RecGPTConfig(layers=1, width=64, embedding_width=WIDTH), argparse.Namespace(num_processes=1)
    known = run_metadata(settings, config, packed.open_packed("out")[0], accelerator, {})["held_out"]
    change_in_place(Path("out/eval.pkl"))
    assert run_metadata(settings, config, packed.open_packed("out")[0], accelerator, {})["held_out"] != known


def test_a_checkpoint_knows_the_encoder_of_its_embeddings(world, call):
    for name in ("a", "b"):
        Path(name, "item_text_embeddings.json").write_text('{"encoder": "one"}')
    for line in PRE_TRAIN:
        call(line)
    packed.pack("out")
    settings = Settings(data_path="out")
    config, accelerator = RecGPTConfig(layers=1, width=64, embedding_width=WIDTH), argparse.Namespace(num_processes=1)
    assert run_metadata(settings, config, packed.open_packed("out")[0], accelerator, {})["encoder"] == "one"


def test_tables_are_of_the_very_file(tmp_path, few_samples):
    path = tmp_path / "reviews.jsonl"
    path.write_text("a" * 100)
    known = tables.file_key(path)
    shutil.copy2(path, tmp_path / "copy").replace(path)  # of the same time
    assert tables.file_key(path) != known


# Pickles for other programs

CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "PERSID", "BINPERSID"}


def test_pickles_ask_for_no_class_or_function(world, call):
    """So that they open under any numpy, and where nothing is allowed."""
    seen = set()
    for case in CASES.values():
        shutil.rmtree("out", ignore_errors=True)
        for command in (*case.first, *case.again):
            call(command)
        for path in Path("out").glob("*.pkl"):
            assert not CALLS & {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}, path
            seen.add(path.name)
    assert seen == {*DATA_SET[:6], *HELD_OUT[:3], CODES_LIST, MAPS, HISTORIES}


def test_maps_with_arrays_are_read_as_before(tmp_path):
    for maps in ({"a": np.arange(5), "b": np.arange(5, 8)}, {"a": [0, 1, 2, 3, 4], "b": [5, 6, 7]}):
        save(tmp_path / MAPS, maps)
        found = pre_train_data_process.load_id_maps(tmp_path / MAPS, ["a", "b"])
        assert {name: ids.tolist() for name, ids in found.items()} == {"a": [0, 1, 2, 3, 4], "b": [5, 6, 7]}
    for odd in ([0.5, 1], [True, 0], ["0"], [[0]], 3, [0, 2**70]):
        save(tmp_path / MAPS, {"a": odd})
        with pytest.raises(InputError, match=f"a: found {re.escape(str(odd))}, expected a list of whole numbers"):
            pre_train_data_process.load_id_maps(tmp_path / MAPS, ["a"])
