"""run.sh by itself, with stand-ins for the programs that it calls: what it removes, types and passes on."""

import os
import signal
import stat
import subprocess

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/bash
case "$*" in
    *torch*) echo 1 ;;
    *sys.prefix*) pwd ;;
    *make_dataset.py*) mkdir -p data/sample/built ;;
    ae_trainer.py*) echo "$*" ;;
    eval.py*) echo best: it ;;
    predict.py*) echo "$*" ;;
esac
"""
ACCELERATE = """#!/bin/bash
echo "typed: $*"
# A signal is lost on what has just been forked and is not yet `sleep`: its outputs would keep the test waiting.
[ ! -e wait ] || { trap 'echo saved; exit 0' TERM; echo waiting; sleep 60 >/dev/null 2>&1 & wait; }
"""
PUBLISHED, SAMPLE = "--config configs/paper.toml", "--config configs/sample.toml"


@pytest.fixture
def start(tmp_path):
    """start(flags): `bash run.sh FLAGS` in a folder of its own."""
    (tmp_path / "bin").mkdir()
    for name, script in (("python", PYTHON), ("accelerate", ACCELERATE)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    for path in (ROOT / "run.sh", ROOT / "utils", *ROOT.glob("requirements*.txt")):
        (tmp_path / path.name).symlink_to(path)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}

    def start(flags):
        command, pipes = ["bash", "run.sh", *flags.split()], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=tmp_path, env=env, text=True, **pipes)

    return start


@pytest.mark.parametrize(
    ("flags", "folder", "goes_on"),
    [
        ("--resume auto", "data/sample/built/ckpt", True),
        ("--resume=auto", "data/sample/built/ckpt", True),
        ("--max_steps 5 --resume auto --keep 2", "data/sample/built/ckpt", True),
        ("--resume auto --ckpt_dir mine", "mine", True),
        ("--resume=auto --ckpt_dir=mine", "mine", True),
        ("--resume auto --ckpt_dir mine", "data/sample/built/ckpt", False),
        ("--resume auto", "data/sample/built/other", False),
        ("--resume", "data/sample/built/other", True),
        ("--resume=", "data/sample/built/other", True),
        ("--resume --keep 2", "data/sample/built/other", True),
        ("--keep 2", "data/sample/built/ckpt", False),
    ],
)
def test_the_sample_goes_on_where_there_is_something_to_go_on_with(tmp_path, start, flags, folder, goes_on):
    (tmp_path / folder).mkdir(parents=True)
    state, tokenizer = tmp_path / folder / "layer_3_epoch_0.resume", tmp_path / "data/sample/built/vae_ckpt"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vae_len4_fsq88865.resume").touch()
    state.touch()
    process = start(flags)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert state.exists() == (goes_on or folder == "mine")
    assert (SAMPLE in said) == (not goes_on) and flags in said
    assert ("--init_deviation 0.3 --resume" in said) == goes_on, "the tokenizer, too"


def test_the_sample_is_fine_tuned_from_the_chosen_weights_and_ends_with_one_table(start):
    """What is typed is for pre-training: fine-tuning has settings of its own."""
    said, errors = start("--max_steps 5").communicate(timeout=60)
    pre_training, fine_tuning = [line for line in said.splitlines() if line.startswith("typed: ")]
    assert "--max_steps 5" in pre_training and "--init_from" not in pre_training
    assert "--max_steps" not in fine_tuning and "--init_from it --data_path data/sample/built/pets_log" in fine_tuning
    _, zero_shot, last = [line for line in said.splitlines() if line.startswith("predict.py")]
    assert "--ckpt_path it --output data/sample/built/zero_shot.jsonl" in zero_shot
    assert "fine_tuned/" in last and last.endswith(
        "--blend --compare RecGPT zero-shot=data/sample/built/zero_shot.jsonl"
    )


@pytest.mark.parametrize(("flags", "goes_on"), [("--resume auto", True), ("--resume=auto --ckpt_dir new", False)])
def test_pre_training_has_its_own_settings_where_it_goes_on(tmp_path, start, flags, goes_on):
    for folder in ("data/pre_train", "ckpt"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ckpt/layer_3_epoch_0.resume").touch()
    said, _ = start(flags).communicate(timeout=60)
    assert (PUBLISHED in said) == (not goes_on) and flags in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_lets_pre_training_save(tmp_path, start, number, code):
    for folder in ("data/pre_train", "wait"):
        (tmp_path / folder).mkdir(parents=True)
    process = start("")
    while "waiting" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert said == "saved\n" and process.returncode == code and f"ended with exit code {code}" in errors
