"""What the commands say of each kind of bad input: exit code 2, the place, no traceback, nothing left behind."""

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, dump
from utils.errors import InputError
from utils.files import atomic_write, load_matrix, staged_directory
from utils.pickles import load_pickle, save_pickle

PREDICT = "python predict.py --ckpt_path ckpt/recgpt_layer_3_weight.pt --dataset "


class Attack:
    """Pickles to a call."""

    def __reduce__(self):
        return exec, ("open('attacked', 'w')",)


@pytest.fixture
def broken(house, request):
    """A copy of data/test/steam to damage."""
    folder = house / "data/test/broken"
    shutil.copytree(house / "data/test/steam", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def refuse(house, monkeypatch, capsys):
    """refuse(command, words…): the command ends with exit code 2 and a message that has the words."""
    return functools.partial(house.refuse, monkeypatch, capsys)


def test_missing_data(refuse, house):
    refuse(PREDICT + "nowhere", "data/test/nowhere", "steam", "data_download.py")
    refuse("python eval.py --data_path nowhere", "nowhere/eval.pkl", "make_eval.py")
    refuse("python pre_train.py --data_path nowhere", "nowhere/train.pkl", "data_download.py")
    refuse("python predict.py --dataset steam --ckpt_path ckpt/none.pt", "ckpt/none.pt", "data_download.py")


def test_truncated_files(refuse, house, broken):
    for name, tool in (("test.pkl", "pickle"), ("item_text_embeddings.npy", ".npy")):
        whole = (broken / name).read_bytes()
        (broken / name).write_bytes(whole[: len(whole) // 2])
        refuse(PREDICT + "broken", name, tool, "truncated")
        (broken / name).write_bytes(whole)
    whole = (house / "vae_ckpt/vae_len4_fsq88865_ep90.pt").read_bytes()
    (house / "vae_ckpt/half.pt").write_bytes(whole[: len(whole) // 2])
    refuse(PREDICT + "steam --vae_ckpt vae_ckpt/half.pt", "vae_ckpt/half.pt", "truncated")


def test_code_in_files_is_refused_and_not_run(refuse, house, broken):
    dump(broken / "test.pkl", {0: [1, 2], 1: Attack()})
    refuse(PREDICT + "broken", "test.pkl", "refused", "exec")
    torch.save({"a": Attack()}, house / "vae_ckpt/attack.pt")
    refuse(PREDICT + "steam --vae_ckpt vae_ckpt/attack.pt", "vae_ckpt/attack.pt", "refused")
    np.save(broken / "item_text_embeddings.npy", np.array([[Attack()]], dtype=object), allow_pickle=True)
    dump(broken / "test.pkl", {0: [1, 2]})
    refuse(PREDICT + "broken", "item_text_embeddings.npy")
    assert not (house / "attacked").exists()


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"anna": [3, 400, 5]}, ("'anna'", "400", "0 to 399")),
        ({"anna": [3, -1, 5]}, ("'anna'", "-1")),
        ({"anna": [3, 4], "bert": [7]}, ("'bert'", "1 item", "--drop_short")),
        ({"anna": [3, 4], "bert": []}, ("'bert'", "0 item")),
        ({"anna": [3, 4], "bert": 5}, ("'bert'", "int", "list")),
        ({"anna": [3, "4"]}, ("'anna'", "'4'")),
        ({"anna": [3, 4.0]}, ("'anna'", "4.0")),
        ({"anna": [3, True]}, ("'anna'", "True")),
        ({"anna": [3, 2**70]}, ("'anna'", str(2**70))),
        ({"anna": [3, [4]]}, ("'anna'", "[4]")),
        ({"anna": {3, 4}}, ("'anna'", "set", "list")),
        ({}, ("no user",)),
        ([[3, 4]], ("list", "dict")),
    ],
)
def test_bad_histories(refuse, house, broken, lists, said):
    dump(broken / "test.pkl", lists)
    refuse(PREDICT + "broken", "test.pkl", *said)


def test_short_histories_can_be_dropped(house, broken):
    dump(broken / "test.pkl", {"anna": [3, 4, 5], "bert": [7]})
    done = house.type(PREDICT + "broken --drop_short --output short.jsonl")
    assert [json.loads(line)["user"] for line in (house / "short.jsonl").read_text().splitlines()] == ["anna"]
    assert "all users: 1" in done.stdout


def test_bad_embeddings(refuse, house, broken, reference):
    damaged = reference.embeddings.copy()
    damaged[17, 3] = np.nan
    np.save(broken / "item_text_embeddings.npy", damaged)
    refuse(PREDICT + "broken", "item_text_embeddings.npy", "row 17", "NaN")
    np.save(broken / "item_text_embeddings.npy", reference.embeddings[:, :700])
    refuse(PREDICT + "broken", "700", "768")
    np.save(broken / "wide.npy", reference.embeddings[:, :100])
    refuse(f"python ae_trainer.py --embeddings {broken / 'wide.npy'}", "100 wide", "multiple of 32")
    np.save(broken / "item_text_embeddings.npy", np.zeros_like(reference.embeddings))
    refuse(PREDICT + "broken", "no item of the catalog has text")


def test_items_without_text_are_left_out_and_counted(house, broken, reference):
    embeddings = reference.embeddings.copy()
    embeddings[:50] = 0
    np.save(broken / "item_text_embeddings.npy", embeddings)
    done = house.type(PREDICT + "broken --topk 400 --output without.jsonl")
    assert "50 of 400 items have no text" in done.stdout
    lists = [json.loads(line)["items"] for line in (house / "without.jsonl").read_text().splitlines()]
    assert all(sorted(items) == list(range(50, 400)) for items in lists)  # k larger than the catalog: all of it, once
    done = house.type(PREDICT + "broken --protocol released --search exact --topk 400 --output without.jsonl")
    assert "have no text" not in done.stdout
    lists = [json.loads(line)["items"] for line in (house / "without.jsonl").read_text().splitlines()]
    assert all(49 in items and 0 not in items for items in lists)  # of fifty equal rows the one with the highest id


def test_sizes_that_contradict_each_other(refuse, house):
    refuse("python predict.py --dataset steam --tf_layer 2", "--tf_layer 2", "3 layers")
    refuse("python pre_train.py --width 100 --heads 3", "--width 100", "3 heads")
    state = torch.load(house / "vae_ckpt/vae_len4_fsq88865_ep90.pt", weights_only=True)
    torch.save(state, house / "ckpt/tokenizer.pt")
    refuse("python predict.py --dataset steam --ckpt_path ckpt/tokenizer.pt", "does not hold", "RecGPT")
    (house / "ckpt/tokenizer.pt").unlink()


def test_another_tokenizer_than_the_checkpoint_knows(refuse, house):
    metadata = house / "ckpt/recgpt_layer_3_weight.json"
    metadata.write_text(json.dumps({"tokenizer": "0123456789abcdef"}))
    refuse(PREDICT + "steam", "0123456789abcdef", "--vae_ckpt")
    metadata.unlink()


def test_another_encoder_than_the_checkpoint_knows(refuse, house, tmp_path):
    """Embeddings of two encoders may be equally wide."""
    metadata = house / "ckpt/recgpt_layer_3_weight.json"
    metadata.write_text(json.dumps({"encoder": "sentence-transformers/one"}))
    notes = house / "data/test/steam/item_text_embeddings.json", house / "data/eval/all_item_text_embeddings_eval.json"
    for note, command in zip(notes, (PREDICT + "steam", f"python eval.py --ckpt_path {house / 'ckpt'}"), strict=True):
        note.write_text(json.dumps({"encoder": "sentence-transformers/two"}))
        refuse(command, str(note.stem), "sentence-transformers/one", "sentence-transformers/two")
    for note in (*notes, metadata):
        note.unlink()


def test_bad_codes(refuse, house):
    folder = house / "data/wrong"
    shutil.copytree(house / "data/pre_train", folder)
    codes = pickle.loads((folder / "token_id_list.pkl").read_bytes())  # noqa: S301 - written by the tests
    dump(folder / "token_id_list.pkl", [*codes[:9], [1, 2, 15360, 4], *codes[10:]])
    refuse("python pre_train.py --data_path data/wrong", "token_id_list.pkl", "row 9", "15360")
    dump(folder / "token_id_list.pkl", [*codes[:9], [1, 2, 4], *codes[10:]])
    refuse("python pre_train.py --data_path data/wrong", "token_id_list.pkl", "row 9", "4 whole numbers")
    dump(folder / "token_id_list.pkl", codes[:-1])
    refuse("python pre_train.py --data_path data/wrong", "399 items", "400 rows")
    shutil.rmtree(folder)


def test_usage(refuse, house):
    assert "neither True nor False" in house.type("python predict.py --cold maybe", expect=2).stderr
    assert "--topk" in house.type("python predict.py --topk 0", expect=2).stderr
    refuse("python predict.py --dataset steam --device cuda:7", "--device cuda:7")
    assert "Traceback" in house.type("python predict.py --dataset nowhere --debug", expect=2).stderr


def test_an_unexpected_error_shows_its_traceback():
    code = "from utils.cli import run; run(lambda: 1 / 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr.splitlines()[-1]


def test_plain_containers_and_numpy_load(tmp_path):
    value = {
        1: [1, 2.5, "three", None, (4, {5}), b"6"],
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, b=[2]),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "scalar": np.float32(1.5),
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
        loaded = load_pickle(tmp_path / "x.pkl", dict, "")
        assert loaded[1] == value[1] and loaded["default"] == {"b": [2]} and loaded["scalar"] == 1.5
        np.testing.assert_array_equal(loaded["array"], value["array"])


def test_a_failed_write_keeps_the_old_file(tmp_path):
    save_pickle(tmp_path / "x.pkl", {1: 2})
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "x.pkl") as file:
        file.write(b"half")
        raise RuntimeError
    assert load_pickle(tmp_path / "x.pkl", dict, "") == {1: 2}
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


def test_a_matrix_must_be_a_matrix_of_floats(tmp_path):
    for array in (np.zeros(3), np.zeros((2, 2), dtype=int)):
        np.save(tmp_path / "m.npy", array)
        with pytest.raises(InputError, match="floating-point matrix"):
            load_matrix(tmp_path / "m.npy", "")


def test_flipped_bits_in_weights_are_noticed(house, refuse):
    whole = bytearray((house / "vae_ckpt/vae_len4_fsq88865_ep90.pt").read_bytes())
    whole[len(whole) // 2] ^= 1
    (house / "vae_ckpt/flipped.pt").write_bytes(whole)
    refuse("python predict.py --dataset steam --vae_ckpt vae_ckpt/flipped.pt", "vae_ckpt/flipped.pt", "checksum")


@pytest.mark.parametrize("flag", ["--lr nan", "--lr 0", "--lr inf", "--seed -1", "--seed 1e3", "--weight_decay -1"])
def test_numbers_that_make_no_sense(refuse, flag):
    refuse(f"python pre_train.py {flag}", flag.split()[0], flag.split()[1])


def test_diverged_training_stops(house, refuse):
    command = "python pre_train.py --width 64 --tf_layer 1 --epoch 20 --lr 1e30 --ckpt_dir ckpt_diverged"
    refuse(command, "the loss is", "--lr")
    assert all(path.suffix in (".pt", ".json", ".toml", ".resume") for path in (house / "ckpt_diverged").iterdir())


def test_places_that_cannot_be_written_are_told_before_the_work(house, refuse):
    (house / "file").write_text("")
    refuse(PREDICT + "steam --output file/lists.jsonl", "file cannot be")
    refuse(PREDICT + "steam --output ckpt", "is a directory")
    refuse("python pre_train.py --width 64 --ckpt_dir file", "file cannot be")


def test_links_are_followed_and_devices_are_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link", "pipe"):
        with atomic_write(tmp_path / name) as file:
            file.write(b"whole")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"whole"
    assert os.read(reader, 5) == b"whole" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_several_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").write_text("old")
    with pytest.raises(RuntimeError), staged_directory(tmp_path / "set") as staging:
        (staging / "a").write_text("new")
        raise RuntimeError
    assert [path.read_text() for path in (tmp_path / "set").iterdir()] == ["old"]
    with staged_directory(tmp_path / "set") as staging:
        assert staging.parent == tmp_path / "set"  # a mounted disk takes files only from itself
        (staging / "a").write_text("new")
        (staging / "b").write_text("new")
    assert {path.name: path.read_text() for path in (tmp_path / "set").iterdir()} == {"a": "new", "b": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
