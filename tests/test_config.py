"""Settings in files of TOML: what pre_train.py --config takes, refuses, and writes beside checkpoints."""

import dataclasses
import json
import shutil
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pre_train
from tests import runs
from tests.conftest import ROOT, House
from utils.config import ONLY_TYPED, read_settings, to_toml
from utils.errors import InputError
from utils.training.settings import Settings

DATA = "--data_path ../pt --eval_path ../ev "
SMALL = 'width = 64\ntf_layer = 1\nlr = 2e-3\ndevice = "cpu"\nbatch_size = 8\nlog_file = "log.jsonl"\n'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    runs.make_data(folder, 41)
    return folder


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """parsed(text, flags): the settings of `pre_train.py --config FILE FLAGS` with this text in the file."""

    def parse(text, flags=""):
        (tmp_path / "c.toml").write_text(text, encoding="utf-8")
        monkeypatch.setattr("sys.argv", ["pre_train.py", "--config", str(tmp_path / "c.toml"), *flags.split()])
        return pre_train.settings_of(pre_train.parse())

    return parse


# What a file says


def test_typed_flags_win_over_the_file_and_the_file_over_the_defaults(parsed):
    found = parsed("lr = 1e-3\nepoch = 7\nsave_last = true\ndropout = 0\n", "--epoch 9 --save_last False")
    assert found == Settings(lr=1e-3, epoch=9, dropout=0.0)
    assert type(found.dropout) is float, "a whole number is a number, too"
    assert parsed("epoch = 9", "--epoch 5").epoch == 5, "typed, though it is the default"
    assert parsed("\ufeff# as editors of Windows begin files\r\nepoch = 9\r\n").epoch == 9
    assert parsed("") == Settings()


def test_of_two_files_the_last_counts(parsed, tmp_path):
    (tmp_path / "mine.toml").write_text("lr = 0.5")
    assert parsed("epoch = 9", f"--config {tmp_path / 'mine.toml'}") == Settings(lr=0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_sise = 8", "'batch_sise' is no setting (batch_size is)"),
        ("tf-layer = 8", "'tf-layer' is no setting (tf_layer is)"),
        ("--lr = 8", "'--lr' is no setting (lr is)"),
        ("xyzzy = 8", "'xyzzy' is no setting. Mend"),
        ("[optimiser]\nlr = 1e-3", "'optimiser' is a table, and settings stand outside of tables"),
        ("lr.start = 1e-3", "'lr' is a table"),
        ('lr = "1e-3"', "lr is '1e-3', and should be a number"),
        ("lr = true", "lr is True, and should be a number"),
        ("lr = inf", "lr: 'inf' is not a finite number above 0"),
        ("lr = nan", "lr: 'nan' is not a finite number above 0"),
        ("lr = -1", "lr: '-1' is not a finite number above 0"),
        ("dropout = 1.0", "dropout: '1.0' is not a finite number from 0 to below 1"),
        ("epoch = true", "epoch is True, and should be a whole number"),
        ('epoch = "5"', "epoch is '5', and should be a whole number"),
        ("epoch = 5.0", "epoch is 5.0, and should be a whole number"),
        ("epoch = 0", "epoch: '0' is not a whole number of 1 or more"),
        ("seed = -1", "seed: '-1' is not a whole number from 0 to 4294967295"),
        (f"epoch = 0x{'f' * 9000}", "epoch: Exceeds the limit"),
        ("save_last = 1", "save_last is 1, and should be true or false"),
        ('save_last = "True"', "save_last is 'True', and should be true or false"),
        ("ckpt_dir = 3", "ckpt_dir is 3, and should be text in quotes"),
        ('ckpt_dir = ["a"]', "ckpt_dir is ['a'], and should be text in quotes"),
        ("ckpt_dir = 2026-01-01", "ckpt_dir is datetime.date(2026, 1, 1), and should be text in quotes"),
        (r'ckpt_dir = "a\u0000b"', "NUL"),
        ('predict = "item"', "predict is 'item', and should be one of codes, items"),
        ("resume = true", "resume stands in the file, and is only taken where it is typed, as --resume"),
        ('config = "other.toml"', "config stands in the file, and is only taken where it is typed, as --config"),
        ("debug = true", "debug stands in the file, and is only taken where it is typed, as --debug"),
        ("lr 1e-3", "is not readable TOML (Expected '='"),
        ("predict = items", "is not readable TOML (Invalid value"),
        ("lr = 1\nlr = 2", "is not readable TOML (Cannot overwrite a value"),
        ("lr = " + "[" * 9000, "is not readable TOML"),
        ("lr = " + "9" * 9000, "is not readable TOML"),
    ],
)
def test_what_a_flag_refuses_the_file_refuses(parsed, text, said):
    with pytest.raises(InputError) as refused:
        parsed(text)
    message = str(refused.value)
    assert "c.toml" in message and said in message and len(message) < 500
    assert "--help lists all settings" in message or "Write lines such as" in message


def test_all_problems_of_a_file_are_told_together(parsed):
    with pytest.raises(InputError, match="lr is 'x', .*; epoch: '0' .*; 'weight' is no setting.*; and 2 more[.] "):
        parsed('lr = "x"\nseed = 3\nepoch = 0\nweight = 1\na = 1\nb = 2\nc = 3\nd = 4\n')


@pytest.mark.parametrize(("name", "found"), [("no.toml", "does not exist"), ("", "is a directory")])
def test_a_file_that_is_none(tmp_path, name, found):
    with pytest.raises(InputError, match=f"{found}; a file was expected here. Give --config a file of settings"):
        read_settings(tmp_path / name, Settings)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "c.toml").write_bytes(b'ckpt_dir = "\xff"')
    with pytest.raises(InputError, match="c.toml is not readable TOML"):
        read_settings(tmp_path / "c.toml", Settings)


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("patience = 3", "", "--patience counts evaluations"),
        ('predict = "items"', "--tie_embeddings", "Leave --tie_embeddings out"),
        ("width = 100\nheads = 3", "", "--width 100 does not divide by 3 heads"),
        ("lr = 0", "", "c.toml: lr: '0' is not a finite number above 0"),
    ],
)
def test_what_does_not_fit_together_is_refused_as_if_typed(tmp_path, monkeypatch, capsys, text, flags, said):
    (tmp_path / "c.toml").write_text(text)
    House.refuse(Namespace(folder=tmp_path), monkeypatch, capsys, f"python pre_train.py --config c.toml {flags}", said)


# The files of the repository


@pytest.mark.parametrize("name", ["paper", "small_cpu", "sample"])
def test_the_files_of_the_repository_are_read(monkeypatch, name):
    monkeypatch.setattr("sys.argv", ["pre_train.py", "--config", str(ROOT / f"configs/{name}.toml")])
    settings = pre_train.settings_of(pre_train.parse())
    pre_train.check_predicted(settings)
    if name == "paper":
        assert settings == Settings(batch_size=40), "the defaults are the published ones"
    else:
        assert settings.width == 128


def test_no_other_file_is_there():
    assert {path.stem for path in ROOT.glob("configs/*")} == {"paper", "small_cpu", "sample"}


# What is written


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), st.booleans() | st.integers() | st.floats() | TEXTS))
def test_what_is_written_is_read_back(values):
    found = tomllib.loads(to_toml(values))
    assert list(found) == list(values)
    for name, value in values.items():
        assert type(found[name]) is type(value) and repr(found[name]) == repr(value)  # repr: NaN and -0.0


def test_a_setting_without_a_value_is_left_out(parsed):
    assert "max_steps" not in to_toml(Settings().to_config())
    assert parsed(to_toml(Settings().to_config())) == Settings()
    chosen = Settings(max_steps=3, minutes=1e-7, lr=1e22, ckpt_dir='a "b"\\c\x7f\n', fsdp=True)
    assert parsed(to_toml(chosen.to_config())) == chosen


def test_every_flag_is_a_setting_or_only_typed():
    flags = set(vars(pre_train.flags().parse_args([])))
    assert flags == {field.name for field in dataclasses.fields(Settings)} | set(ONLY_TYPED)


def noted(checkpoint: Path) -> dict:
    return tomllib.loads(checkpoint.with_suffix(".toml").read_text(encoding="utf-8"))


def test_the_settings_beside_a_checkpoint_repeat_the_run(place):
    (place / "c.toml").write_text(SMALL + "max_steps = 4\neval_every = 2\n")
    runs.finish(place, f"--config c.toml {DATA} --ckpt_dir one --dropout 0.2")
    weights = sorted((place / "one").glob("*.pt"))
    assert len(weights) > 2 and {path.stem for path in (place / "one").glob("*.toml")} == {one.stem for one in weights}
    settings = noted(place / "one/layer_1_best.pt")
    assert settings["dropout"] == 0.2 and settings["lr"] == 2e-3 and settings["ckpt_dir"] == "one"
    metadata = json.loads((place / "one/layer_1_best.json").read_text())["training"]
    assert {name: value for name, value in metadata.items() if value is not None}.items() <= settings.items()
    shutil.copy(place / "one/layer_1_best.toml", place / "again.toml")
    runs.finish(place, "--config again.toml --ckpt_dir two")
    for path in weights:
        assert runs.same(path, place / "two" / path.name), path
        assert noted(place / "two" / path.name) == settings | {"ckpt_dir": "two"}


def test_settings_go_where_their_checkpoint_goes(place):
    (place / "c.toml").write_text(SMALL + "epoch = 1\nsave_every = 1\nkeep = 2\n")
    runs.finish(place, f"--config c.toml {DATA}")
    weights = {path.stem for path in (place / "ckpt").glob("*.pt")}
    assert {path.stem for path in (place / "ckpt").glob("*.toml")} == weights and len(weights) < 7
    assert not list((place / "ckpt").glob(".*"))


def test_a_file_counts_as_typed_where_a_run_goes_on(place):
    (place / "c.toml").write_text(SMALL + "max_steps = 2\n")
    runs.finish(place, f"--config c.toml {DATA}")
    said = runs.finish(place, "--config c.toml --resume --max_steps 3")
    assert "step 2: --max_steps 3 (was 2)\n" in said
    (place / "other.toml").write_text("lr = 1e-3\nmax_steps = 4\n")
    said = runs.finish(place, "--config other.toml --resume")
    assert "step 3: --max_steps 4 (was 3), --lr 0.001 (was 0.002)\n" in said
    assert noted(place / "ckpt/layer_1_epoch_0_step_4.pt")["lr"] == 1e-3
    (place / "wide.toml").write_text("width = 128\n")
    said = runs.finish(place, "--config wide.toml --resume", expect=2)
    assert (
        "--width 128 contradicts ckpt/" in said and "Leave the flag out, and width out of wide.toml, or start" in said
    )
    for flag in ("init_from", "refit_of"):
        said = runs.finish(place, f"--config wide.toml --{flag} ckpt/layer_1_epoch_0_step_4.pt --ckpt_dir x", expect=2)
        assert "--width 128 contradicts ckpt/" in said and "and width out of wide.toml" in said


def test_what_a_run_was_started_from_is_written_however_often_it_goes_on(place):
    (place / "c.toml").write_text(SMALL + "max_steps = 2\n")
    runs.finish(place, f"--config c.toml {DATA} --ckpt_dir from")
    weights = "from/layer_1_epoch_0_step_2.pt"
    runs.finish(place, f"--config c.toml {DATA} --init_from {weights}")
    runs.finish(place, "--resume --max_steps 3")
    settings = noted(place / "ckpt/layer_1_epoch_0_step_3.pt")
    assert settings["init_from"] == weights and settings["max_steps"] == 3 and "refit_of" not in settings
    shutil.copy(place / "ckpt/layer_1_epoch_0_step_3.toml", place / "again.toml")
    runs.finish(place, "--config again.toml --ckpt_dir again")
    assert runs.same(place / "again/layer_1_epoch_0_step_3.pt", place / "ckpt/layer_1_epoch_0_step_3.pt")

    refit = "again/layer_1_epoch_0_step_3.pt"
    runs.finish(
        place, f"--refit_of {refit} --init_from {weights} --log_file log.jsonl {DATA} --device cpu --ckpt_dir r"
    )
    settings = noted(place / "r/layer_1_epoch_0_step_3.pt")
    assert settings["refit_of"] == refit and settings["init_from"] == weights and settings["max_steps"] == 3
    runs.finish(place, "--ckpt_dir r --resume --max_steps 4 --device cpu")
    assert noted(place / "r/layer_1_epoch_0_step_4.pt") == settings | {"max_steps": 4}
