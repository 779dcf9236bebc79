"""Ctrl-C at any moment: exit code 130, one line, nothing half-written, and nothing lost that was finished."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import ae_trainer
from data_processing.parts.encoding import process_pool
from tests import runs
from tests.conftest import ROOT
from utils.cli import run
from utils.packed import pack
from utils.training.processes import StopSignal
from utils.training.state import find_state

FOLDERS = (".", "data_processing", "data_processing/sample", "benchmarks", "utils")
BEGINNING = r"""if __name__ == "__main__":
(?:    sys\.path\.insert\(.*\n)?    from utils\.cli import end_at_ctrl_c

    end_at_ctrl_c\(\)
"""
RUN = "--data_path ../pt --width 64 --tf_layer 1 --lr 2e-3 --device cpu --log_file log.jsonl --ckpt_dir ckpt "
RUN += "--batch_size 8 --epoch 2 --save_every 4 "


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctrl_c")
    runs.make_data(folder, 161)
    pack(folder / "pt")  # so that every file that is written later is one of a checkpoint
    return folder


def press_twice():
    for _ in range(2):
        runs.press_ctrl_c()
        time.sleep(1.2)


# During imports


@pytest.mark.parametrize("script", ["pre_train.py", "ae_trainer.py", "data_processing/make_dataset.py"])
def test_during_imports(script):
    command = [sys.executable, "-X", "importtime", str(ROOT / script)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = next(line for line in process.stderr if "numpy" in line)  # at work on what takes seconds
    process.send_signal(signal.SIGINT)
    said += process.stderr.read()
    assert process.wait() == 130
    assert [line for line in said.splitlines() if not line.startswith("import time:")] == ["interrupted"]


def test_every_script_begins_with_it():
    """Before all that takes time to import, and only where the script is the program: who imports it keeps Ctrl-C."""
    scripts = [
        path for folder in FOLDERS for path in (ROOT / folder).glob("*.py") if "\n    run(main)" in path.read_text()
    ]
    assert len(scripts) > 20
    for path in scripts:
        before, *after = re.split(BEGINNING, path.read_text())
        imported = re.findall(r"^(?:import|from) (\w+)", before, re.MULTILINE)
        assert after and set(imported) <= sys.stdlib_module_names, path


# In pre-training


def test_pre_training_saves_and_goes_on(place):
    process = runs.start(place, RUN + "--save_every 1000")
    runs.wait_for_step(place / "log.jsonl", 12, process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    said = (place / "said").read_text()
    assert process.exitcode == 130 and "told to stop (Ctrl-C) after step" in said and "Traceback" not in said, said
    step = int(said.split("after step ")[1].split()[0])
    assert find_state(place / "ckpt", "latest").progress.step == step
    runs.finish(place, f"--ckpt_dir ckpt --resume --max_steps {step + 1}")


def test_pre_training_finishes_the_checkpoint_it_is_writing(place):
    said = runs.finish(place, RUN, expect=130, hurt=runs.AtWrite(2, runs.press_ctrl_c))
    assert said.splitlines()[-1].startswith("told to stop (Ctrl-C) after step 4 of 42: go on with --resume")
    assert {path.name for path in (place / "ckpt").glob("*.resume")} == {
        "layer_1_epoch_0_model_01.resume",
        "layer_1_epoch_0_step_4.resume",
    }
    assert not list((place / "ckpt").glob(".*"))


def test_pressed_twice_it_ends_at_once(place):
    said = runs.finish(place, RUN, expect=130, hurt=runs.AtWrite(5, press_twice))
    assert said.splitlines()[-1] == "interrupted" and "Traceback" not in said
    assert not list((place / "ckpt").glob(".*")) and find_state(place / "ckpt", "latest")


def test_what_a_launcher_passes_on_again_is_not_pressed_again():
    with StopSignal() as signals:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.interrupted and not signals.terminated


def test_where_it_is_ignored_it_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# In the tokenizer's training


@pytest.fixture
def rows(place):
    np.save(place / "rows.npy", np.random.default_rng(0).standard_normal((600, 32), dtype=np.float32))
    return "--embeddings rows.npy --output vae --device cpu "


def test_the_tokenizer_tells_what_is_kept(place, rows):
    said = runs.finish(
        place, rows + "--epoch 1000", expect=130, hurt=runs.AtWrite(3, runs.press_ctrl_c), script="ae_trainer"
    )
    assert said.splitlines()[-1] == "interrupted in epoch 0: 1 of 1000 epochs are kept in vae; go on with --resume"
    names = {"vae_len4_fsq88865_ep0.pt", "vae_len4_fsq88865_ep0.json", "vae_len4_fsq88865.resume"}
    assert {path.name for path in (place / "vae").iterdir()} == names, "weights and state, or neither"
    assert "1 of 2 epochs" in runs.finish(place, rows + "--epoch 2 --resume", script="ae_trainer")
    assert (place / "vae/vae_len4_fsq88865_ep1.pt").exists()


def test_the_tokenizer_tells_that_nothing_is_kept(place, rows):
    said = runs.finish(place, rows, expect=130, hurt=CtrlCInTheFirstEpoch(), script="ae_trainer")
    assert said.splitlines()[-1] == "interrupted in epoch 0: nothing is kept"


class CtrlCInTheFirstEpoch:
    def __call__(self):
        ae_trainer.train_epoch = lambda *_: os.kill(os.getpid(), signal.SIGINT)


# Elsewhere


def test_a_database_makes_another_error_of_it(monkeypatch, capsys):
    """As DuckDB does, when it is pressed during a query."""

    def main():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", [1, 4])
def test_a_data_set_is_whole_or_not_there(place, number):
    raw = ROOT / "data/sample/pets"
    flags = f"--input {raw} --embeddings {raw}/embeddings.npy --output made"
    script = "data_processing.make_dataset"
    said = runs.finish(place, flags, expect=130, hurt=runs.AtWrite(number, runs.press_ctrl_c), script=script)
    assert said.splitlines()[-1] == "interrupted" and "Traceback" not in said
    kept = [path.name for path in place.rglob("*") if path.is_file()]
    assert all(name == "said" or name.startswith(".item_text_embeddings.npy.partial") for name in kept), kept
    runs.finish(place, flags, script=script)
    assert not list(place.rglob(".*"))


def test_encoding_processes_leave_it_to_the_first():
    class Encoder:
        def start_multi_process_pool(self, devices):
            return signal.getsignal(signal.SIGINT)

        def stop_multi_process_pool(self, pool):
            pass

    with process_pool(Encoder(), ["cpu"]) as seen_by_its_processes:
        assert seen_by_its_processes is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
