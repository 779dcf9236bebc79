"""The packed form, streamed pickles, matrices and tables that resume: what is written, refused, and left by a kill."""

import json
import os
import pickle
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ae_trainer import AutoEncoder
from benchmarks import scale
from data_processing import pack as pack_script
from data_processing.parts import tables
from data_processing.parts.merging import load_histories
from utils import files, matrices, packed
from utils.data import Sequences, training_batch
from utils.datasets import load_pre_train
from utils.errors import DiskError, InputError
from utils.files import fingerprint, save_matrix, staged_directory
from utils.matrices import resumable_matrix
from utils.packed import data_fingerprint, is_current, open_packed, pack
from utils.pickles import load_pickle, save_dict, save_list, save_pickle
from utils.training.batches import epoch_batches

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 32


@pytest.fixture
def pre_train_folder(tmp_path):
    """Release layout: 30 histories over 20 items."""
    random = np.random.default_rng(0)
    histories = {f"u{user}": random.integers(0, 20, random.integers(2, 9)).tolist() for user in range(30)}
    save_pickle(tmp_path / "train.pkl", histories)
    save_pickle(tmp_path / "token_id_list.pkl", random.integers(0, 15360, (20, 4)).tolist())
    (tmp_path / "token_id_list.json").write_text(json.dumps({"tokenizer": "abc"}))
    save_matrix(tmp_path / "all_item_text_embeddings.npy", random.standard_normal((20, WIDTH)))
    return tmp_path


# Streamed pickles


@given(st.dictionaries(st.integers(-(2**40), 2**40) | st.text(), st.lists(st.integers(0, 2**31 - 1))))
def test_streamed_pickles_hold_the_values(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("stream") / "dict.pkl"
    save_dict(path, values.items())
    assert pickle.loads(path.read_bytes()) == values  # noqa: S301 - the published program loads it so
    assert load_pickle(path, dict, "") == values
    save_list(path, values.values())
    assert load_pickle(path, list, "") == list(values.values())


def test_a_streamed_pickle_that_breaks_off_leaves_the_old_one(tmp_path):
    save_dict(tmp_path / "d.pkl", [(1, [2])])

    def broken():
        yield 1, [3]
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        save_dict(tmp_path / "d.pkl", broken())
    assert load_pickle(tmp_path / "d.pkl", dict, "") == {1: [2]}
    assert [path.name for path in tmp_path.iterdir()] == ["d.pkl"]


# Packed form


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_packed_data_are_the_release_data(pre_train_folder, dtype):
    expected = load_pre_train(pre_train_folder)
    assert not is_current(pre_train_folder)
    pack(pre_train_folder, dtype)
    assert is_current(pre_train_folder, dtype=dtype)
    data, header = open_packed(pre_train_folder)
    assert data.sequences.lists() == expected.sequences.lists()
    np.testing.assert_array_equal(data.catalog.codes, expected.catalog.codes)
    assert data.catalog.codes.dtype == np.int16
    assert data.sequences.items.dtype == np.int32
    assert data.catalog.embeddings.dtype == (dtype or np.float64)
    np.testing.assert_allclose(data.catalog.embeddings, expected.catalog.embeddings, rtol=1e-3, atol=1e-4)
    assert (header["histories"], header["items"], data.tokenizer) == (30, 20, "abc")
    rows = np.array([3, 17, 4])
    batch = training_batch(data.sequences.select(rows), data.catalog)
    plain = training_batch(expected.sequences.select(rows), expected.catalog)
    for name in ("codes", "positions", "last", "targets"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))


def test_opening_maps_and_copies_nothing(pre_train_folder):
    pack(pre_train_folder)
    data, _ = open_packed(pre_train_folder)
    for array in (data.sequences.items, data.sequences.offsets, data.catalog.codes, data.catalog.embeddings):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_packing_twice_gives_the_same_bytes(pre_train_folder):
    pack(pre_train_folder, "float16")
    first = {path.name: path.read_bytes() for path in (pre_train_folder / "packed").iterdir()}
    shutil.rmtree(pre_train_folder / "packed")
    pack(pre_train_folder, "float16")
    assert first == {path.name: path.read_bytes() for path in (pre_train_folder / "packed").iterdir()}


def test_guessing_loss_is_the_entropy_of_the_codes(pre_train_folder):
    header = pack(pre_train_folder)
    data = load_pre_train(pre_train_folder)
    shown = data.catalog.codes[data.sequences.items]  # (interactions, K)
    entropies = []
    for place in range(4):
        counts = np.unique(shown[:, place], return_counts=True)[1]
        entropies.append(-np.sum(counts / counts.sum() * np.log(counts / counts.sum())))
    assert header["guessing_loss"] == pytest.approx(np.mean(entropies))


def test_a_changed_source_no_longer_fits(pre_train_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pack", "--data_path", str(pre_train_folder)])
    pack_script.main()
    assert "30 histories" in capsys.readouterr().out
    assert not is_current(pre_train_folder, drop_short=True)
    save_pickle(pre_train_folder / "train.pkl", {0: [1, 2], 1: [3]})
    assert not is_current(pre_train_folder)
    with pytest.raises(InputError, match="user 1: 1 item"):
        pack_script.main()
    assert open_packed(pre_train_folder)[1]["histories"] == 30  # the old one is whole
    monkeypatch.setattr(sys, "argv", ["pack", "--data_path", str(pre_train_folder), "--drop_short"])
    pack_script.main()
    assert "1 histories" in capsys.readouterr().out
    for name in ("train.pkl", "token_id_list.pkl"):
        (pre_train_folder / name).unlink()
    assert is_current(pre_train_folder)  # nothing left that it could differ from


@pytest.fixture
def few_samples(monkeypatch):
    """Fingerprints read the first bytes only, as they read 4 MiB of a large file."""
    monkeypatch.setattr(files, "BLOCKS", 1)
    monkeypatch.setattr(files, "BLOCK", 16)


def change_in_place(path: Path) -> None:
    """Another byte near the end of a file, which keeps its length and is a nanosecond younger."""
    changed, metadata = bytearray(path.read_bytes()), path.stat()
    changed[-20] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(metadata.st_atime_ns, metadata.st_mtime_ns + 1))


@pytest.mark.parametrize("name", ["train.pkl", "token_id_list.pkl", "all_item_text_embeddings.npy"])
def test_a_source_that_changed_where_nobody_looks_no_longer_fits(pre_train_folder, few_samples, name):
    path = pre_train_folder / name
    pack(pre_train_folder)
    shutil.copy2(path, pre_train_folder / "copy").replace(path)
    assert not is_current(pre_train_folder)  # a file of the same time may be another
    pack(pre_train_folder)
    sampled = fingerprint(path)
    change_in_place(path)
    assert fingerprint(path) == sampled
    assert not is_current(pre_train_folder)


def test_what_resume_compares_is_the_content(pre_train_folder, few_samples):
    pack(pre_train_folder)
    known = data_fingerprint(pre_train_folder)
    copied = pre_train_folder / "copied"
    shutil.copytree(pre_train_folder, copied, copy_function=shutil.copyfile)
    assert not is_current(copied)
    assert data_fingerprint(copied) == known
    pack(copied)
    assert data_fingerprint(copied) == known
    histories = load_pickle(copied / "train.pkl", dict, "")
    histories["u29"][-1] ^= 1
    save_pickle(copied / "train.pkl", histories)
    pack(copied)
    assert data_fingerprint(copied) != known  # though it is the last of all items


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_sources_that_change_while_they_are_packed_are_refused(pre_train_folder, monkeypatch, dtype):
    def loss(*_):
        change_in_place(pre_train_folder / "token_id_list.pkl")
        return 0.0

    monkeypatch.setattr(packed, "guessing_loss", loss)
    before = sorted(path.name for path in pre_train_folder.iterdir())
    with pytest.raises(InputError, match="token_id_list.pkl changed while it was packed"):
        pack(pre_train_folder, dtype)
    found = sorted(path.name for path in pre_train_folder.iterdir() if path.name != "packed" or any(path.iterdir()))
    assert found == before


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "codes.npy", "../all_item_text_embeddings.npy"])
def test_another_file_under_a_packed_name_is_refused(pre_train_folder, name):
    pack(pre_train_folder)
    path = pre_train_folder / "packed" / name
    array = np.load(path)
    array[0] += 1
    np.save(path, array)
    with pytest.raises(InputError, match=f"{Path(name).name} is not the file .* --force"):
        open_packed(pre_train_folder)
    np.save(path, array[:-1])
    with pytest.raises(InputError, match=f"{Path(name).name} is not the file .* --force"):
        open_packed(pre_train_folder)
    path.unlink()
    with pytest.raises(InputError, match=f"{Path(name).name} does not exist"):
        open_packed(pre_train_folder)


def test_a_header_that_counts_otherwise_is_refused(pre_train_folder):
    header, path = pack(pre_train_folder), pre_train_folder / "packed/packed.json"
    for change in ({"items": 21}, {"histories": None}, {"interactions": "x"}):
        path.write_text(json.dumps(header | change))
        with pytest.raises(InputError, match="counts something else than its files hold"):
            open_packed(pre_train_folder)
    path.write_text(json.dumps(header | {"sources": []}))
    assert not is_current(pre_train_folder)  # and so it is packed again


def test_a_header_of_another_version_is_refused(pre_train_folder):
    with pytest.raises(InputError, match="packed.json does not exist"):
        open_packed(pre_train_folder)
    pack(pre_train_folder)
    path = pre_train_folder / "packed/packed.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match="has format 2, this program reads 1"):
        open_packed(pre_train_folder)


def test_selecting_histories_does_not_read_all_offsets():
    class Counted(np.ndarray):
        read = 0

        def __getitem__(self, key):
            found = np.asarray(self)[key]
            Counted.read += np.size(found)
            return found

    offsets = np.arange(0, 3001, 3).view(Counted)
    picked = Sequences(None, np.arange(3000, dtype=np.int32), offsets).select(np.array([999, 0]))
    assert picked.lists() == [[2997, 2998, 2999], [0, 1, 2]]
    assert Counted.read == 4


def test_an_epoch_has_the_same_order_at_any_integer_width():
    order = np.concatenate(list(epoch_batches(1000, 7, seed=3, epoch=2)))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, np.random.default_rng([3, 2]).permutation(1000))


# Matrices and tables that resume


def test_a_fingerprint_sees_size_and_content(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    seen = {fingerprint(small)}
    for content in (b"abd", b"abcd", b""):
        small.write_bytes(content)
        seen.add(fingerprint(small))
    assert len(seen) == 4
    block = np.random.default_rng(0).bytes(files.BLOCK)
    large.write_bytes(block * (3 * files.BLOCKS))
    whole = fingerprint(large)
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    assert fingerprint(large) != whole


def test_a_matrix_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(matrices, "NOTE_EVERY", 0.0)
    path, job = tmp_path / "m.npy", {"from": "a"}
    with pytest.raises(KeyboardInterrupt), resumable_matrix(path, (4, 2), np.float32, job) as filling:
        filling.matrix[:2] = 1
        filling.note(2)
        filling.matrix[2] = 9  # written, but not noted
        raise KeyboardInterrupt
    assert not path.exists()
    with pytest.raises(DiskError), resumable_matrix(path, (4, 2), np.float32, job) as filling:
        assert filling.done == 2
        raise DiskError("full")
    with resumable_matrix(path, (4, 2), np.float32, job) as filling:
        assert (filling.done, filling.matrix[:2].sum()) == (2, 4)
        filling.matrix[2:] = 2
    assert np.load(path).tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]
    assert [found.name for found in tmp_path.iterdir()] == ["m.npy"]


def test_a_matrix_of_another_job_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(matrices, "NOTE_EVERY", 0.0)
    for job, shape in (({"from": "a"}, (4, 2)), ({"from": "b"}, (4, 2)), ({"from": "b"}, (3, 2))):
        with pytest.raises(KeyboardInterrupt), resumable_matrix(tmp_path / "m.npy", shape, np.float32, job) as filling:
            assert filling.done == 0
            assert not filling.matrix.any()
            filling.matrix[:] = 1
            filling.note(2)
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), resumable_matrix(tmp_path / "m.npy", shape, np.float32, job) as filling:
        assert filling.done == 2
        raise KeyboardInterrupt
    (tmp_path / ".m.npy.partial.json").write_text("{")  # cut: worth no more than none
    with pytest.raises(InputError), resumable_matrix(tmp_path / "m.npy", shape, np.float32, job) as filling:
        assert filling.done == 0
        raise InputError("row 2")
    assert not list(tmp_path.iterdir())  # the same input would fail again


def test_a_second_run_does_not_write_into_the_first_ones_matrix(tmp_path):
    path = tmp_path / "m.npy"
    with resumable_matrix(path, (4, 2), np.float32, {"from": "a"}) as filling:
        filling.matrix[:] = 1
        other = resumable_matrix(path, (3, 2), np.float32, {"from": "b"})
        with pytest.raises(InputError, match="another run is writing here"), other:
            pass
    assert np.load(path).tolist() == [[1, 1]] * 4
    assert [found.name for found in tmp_path.iterdir()] == ["m.npy"]


def test_tables_survive_and_are_removed(tmp_path):
    output, made = tmp_path / "out", []

    def work(job, fail=None):
        with tables.workspace(output, {"job": job}) as found:
            made.append(found.value("SELECT count(*) FROM information_schema.tables WHERE table_name = 'numbers'"))
            assert found.make("numbers", "SELECT * FROM range(?) AS r(n)", 5) == 5
            if fail:
                raise fail
            return found.columns("SELECT n FROM numbers ORDER BY n DESC")["n"].tolist()

    for fail in (KeyboardInterrupt(), DiskError("full"), InputError("bad")):
        with pytest.raises(type(fail)):
            work(1, fail)
    assert made == [0, 1, 1]
    with pytest.raises(KeyboardInterrupt):
        work(1, KeyboardInterrupt())
    assert work(2) == [4, 3, 2, 1, 0]  # another job's tables are thrown away
    assert made == [0, 1, 1, 0, 0]
    assert not list(tmp_path.iterdir())


def test_a_second_run_in_the_same_place_is_refused(tmp_path):
    program = "import sys; from pathlib import Path; from data_processing.parts import tables\n"
    program += "with tables.workspace(Path(sys.argv[1]), {}): print('here', flush=True); input()"
    command = [sys.executable, "-c", program, str(tmp_path / "o")]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"here\n"
        with pytest.raises(InputError, match="another run is at work there"), tables.workspace(tmp_path / "o", {}):
            pass
    finally:
        other.communicate(b"\n")


# Kills


def test_what_killed_runs_left_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = platform.node()
    for name in (f".a.pkl.{host}.{dead.pid}.partial", f".a.pkl.{host}.{os.getpid()}.partial", ".a.pkl.other.1.partial"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".a.{host}.{dead.pid}.partial").mkdir()
    save_pickle(tmp_path / "a.pkl", 1)
    with staged_directory(tmp_path / "a"):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a", "a.pkl", ".a.pkl.other.1.partial"}  # another machine's may still be at work


def test_killed_and_started_again_the_output_is_the_same(tmp_path):
    """Ten kills at random moments, spread over the steps; each step at a few thousand users."""
    moments = random.Random(5)
    size = 2e-4
    for name, kills in (("pack", 2), ("reviews", 3), ("codes", 2), ("merge", 1), ("embeddings", 2)):
        step = scale.STEPS[name]
        step.prepare(tmp_path, size)
        output = tmp_path / "out" / name
        once = scale.measured(step.command(tmp_path, output))
        expected = scale.hashes(output)
        shutil.rmtree(output)
        build = lambda step=step, output=output: step.command(tmp_path, output)  # noqa: E731
        assert scale.killed(build, output, once["seconds"], kills, moments.randrange(1000)) == kills
        assert scale.hashes(output) == expected, name
        assert expected


# Histories


def test_histories_are_refused_by_user(tmp_path):
    save_pickle(tmp_path / "train.pkl", {"anna": [0], "ben": [0, 7]})
    assert load_histories(tmp_path / "train.pkl", 8).lists() == [[0], [0, 7]]
    with pytest.raises(InputError, match="user 'ben': item id 7"):
        load_histories(tmp_path / "train.pkl", 7)


def test_codes_are_written_in_both_forms(tmp_path):
    torch.manual_seed(0)
    torch.save(AutoEncoder(WIDTH).state_dict(), tmp_path / "t.pt")
    save_matrix(tmp_path / "e.npy", np.random.default_rng(0).standard_normal((50, WIDTH), dtype=np.float32))
    command = [sys.executable, "data_processing/make_token_list.py", "--embeddings", tmp_path / "e.npy"]
    command += ["--vae_ckpt", tmp_path / "t.pt", "--output", tmp_path / "c.pkl", "--device", "cpu"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert np.load(tmp_path / "c.npy").tolist() == load_pickle(tmp_path / "c.pkl", list, "")
