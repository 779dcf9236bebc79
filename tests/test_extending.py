"""The diffs of docs/extending.md: each changes one file, all fit the program as it is, and everything follows."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np

from tests.conftest import ROOT, dump

DIFF = re.compile(r"```diff\n--- a/(\S+)\n\+\+\+ b/\1\n(.*?)```", re.DOTALL)
DIFFS = DIFF.findall((ROOT / "docs/extending.md").read_text(encoding="utf-8"))
SCRIPT = """
import sys
from pathlib import Path
from importlib import import_module
from utils.cli import run

for line in Path("commands").read_text().splitlines():
    sys.argv = line.split()
    run(import_module(sys.argv[0]).main)
"""
COMMANDS = """\
ae_trainer --embeddings shop/item_text_embeddings.npy --epoch 1 --device cpu --output vae
data_processing.make_pre_train --datasets shop --vae_ckpt vae/vae_len4_fsq8555_ep0.pt --output pt --device cpu
pre_train --attention window --data_path pt --width 64 --device cpu --epoch 1 --log_file log.jsonl
predict --dataset shop --ckpt_path ckpt/layer_2_epoch_0.pt --vae_ckpt vae/vae_len4_fsq8555_ep0.pt --device cpu
"""
CHECK = """
import torch
from model import load_model
from serving.half import halve
from transformers import DynamicCache
from utils.data import Catalog, Sequences, make_batch, training_batch
from utils.past_key_values import append_item, split_cache
import numpy as np

model, metadata = load_model("ckpt/layer_2_epoch_0.pt", "cpu")
config = model.config
print(config.layers, config.attention, config.levels, "pred_head.inner.weight" in model.state_dict())
rng = np.random.default_rng(0)
catalog = Catalog(
    rng.integers(0, 1000, (90, 4)).astype("int16"), rng.standard_normal((90, 64)).astype("f4"), codebook=config.codebook
)
items = rng.permutation(90)[:30].tolist()
with torch.inference_mode():
    last = make_batch(Sequences.of(items), catalog)
    logits = model.next_item_logits(last)
    rest = make_batch(Sequences.of(items[:-1]), catalog)
    cache = DynamicCache()
    model.hidden(rest, cache)
    new = np.array(items[-1:])
    codes, embeddings = catalog.codes_of(new), torch.from_numpy(catalog.embed(new))
    appended, _ = append_item(model, split_cache(cache, rest.last), codes, embeddings)
    print("cache", torch.allclose(appended, logits, atol=1e-4))
    other = [make_batch(Sequences.of([*items[:at], 5, *items[at + 1 :]]), catalog) for at in (0, 29)]
    far, near = map(model.next_item_logits, other)
    print("window", torch.allclose(far, logits, atol=1e-5), torch.allclose(near, logits, atol=1e-5))
    batch = training_batch(Sequences.of(items), catalog)
    whole = torch.nn.functional.cross_entropy(model.logits(model.hidden(batch)), batch.targets.flatten())
    print("loss", torch.allclose(model(batch).mean, whole, rtol=1e-4))
    halve(model)
    print("half", torch.allclose(model.next_item_logits(last), logits, atol=2e-2))
"""


def applied(text: str, diff: str) -> str:
    """A file with a diff applied, whose lines must stand in it once."""
    lines = diff.splitlines()
    before, after = ("\n".join(line[1:] for line in lines if not line.startswith(sign)) + "\n" for sign in ("+", "-"))
    assert text.count(before) == 1, f"the diff does not fit:\n{diff}"
    return text.replace(before, after)


def test_four_places():
    assert [name for name, _ in DIFFS] == ["model.py", "utils/masks.py", "ae_trainer.py", "utils/training/settings.py"]


def test_each_diff_fits_and_everything_follows(tmp_path):
    for entry in ("utils", "serving", "data_processing"):
        shutil.copytree(ROOT / entry, tmp_path / entry, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    for name, diff in DIFFS:
        path = tmp_path / name
        path.write_text(applied(path.read_text(encoding="utf-8"), diff), encoding="utf-8")
    rng = np.random.default_rng(0)
    lists = {user: rng.integers(0, 90, rng.integers(4, 9)).tolist() for user in range(40)}
    dump(tmp_path / "shop/train.pkl", {user: items[:-1] for user, items in lists.items()})
    dump(tmp_path / "shop/test.pkl", lists)
    np.save(tmp_path / "shop/item_text_embeddings.npy", rng.standard_normal((90, 64), dtype=np.float32))
    (tmp_path / "commands").write_text(COMMANDS)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT + CHECK], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stdout + made.stderr[-3000:]
    told = made.stdout.splitlines()[-5:]
    assert told == ["2 window (8, 5, 5, 5) True", "cache True", "window True False", "loss True", "half True"]
