"""Directories of weights: from_pretrained, save_pretrained, push_to_hub, and the scripts that read and write them."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, close_session, constants
from safetensors.torch import load_file, save_file

import export
from ae_trainer import AutoEncoder, load_tokenizer
from model import RecGPT, RecGPTConfig, load_model
from serving.scoring import load_parts
from tests.hub import COMMIT, serving
from utils.checkpoint import find_checkpoints, save_state
from utils.errors import DiskError, InputError
from utils.files import fingerprint
from utils.model_card import NOT_GIVEN, Card
from utils.pretrained import WEIGHTS
from utils.training.origins import weights_content

CPU = torch.device("cpu")
SMALL = RecGPTConfig(layers=2, width=32, heads=4, embedding_width=32, window=8, dropout=0.3)
ITEMS = RecGPTConfig(layers=1, width=32, heads=4, embedding_width=32, window=8, predicts="items")
CARD = Card("six invented catalogs", {"ndcg@5 of pets": 0.3518, "hit@5": 1}, "Only English texts.", "cc-by-4.0")


@pytest.fixture
def model() -> RecGPT:
    torch.manual_seed(0)
    return RecGPT(SMALL).eval()


@pytest.fixture
def tokenizer() -> AutoEncoder:
    torch.manual_seed(1)
    return AutoEncoder(32, whitens=True).eval()


@pytest.fixture
def saved(tmp_path, model, tokenizer) -> Path:
    model.save_pretrained(tmp_path / "saved", tokenizer, CARD)
    return tmp_path / "saved"


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def change(folder: Path, **others) -> None:
    """Put values into config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | others
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


# On disk


@pytest.mark.parametrize("config", [SMALL, ITEMS, RecGPTConfig(layers=1, width=128, embedding_width=96, window=4)])
def test_round_trip(tmp_path, config, tokenizer):
    model = RecGPT(config)
    model.save_pretrained(tmp_path / "a")
    loaded = RecGPT.from_pretrained(tmp_path / "a")
    assert equal(model, loaded) and not loaded.training
    assert loaded.config == RecGPTConfig(**{**vars(config), "heads": config.attention_heads})
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_tied_tables_are_written_as_two_and_counted_once(tmp_path, model):
    model.tie_embeddings()
    model.save_pretrained(tmp_path / "m")
    loaded = RecGPT.from_pretrained(tmp_path / "m")
    assert equal(model, loaded)
    numbers = sum(value.numel() for value in model.parameters())
    assert f"| parameters | {numbers} |" in (tmp_path / "m/README.md").read_text()
    loaded.save_pretrained(tmp_path / "m")
    assert f"| parameters | {numbers} |" in (tmp_path / "m/README.md").read_text()


@pytest.mark.parametrize("whitens", [False, True])
def test_tokenizers(tmp_path, model, whitens):
    tokenizer = AutoEncoder(32, whitens).eval()
    tokenizer.save_pretrained(tmp_path / "t")
    model.save_pretrained(tmp_path / "m", tokenizer)
    rows = np.random.default_rng(0).normal(size=(9, 32)).astype(np.float32)
    for folder in ("t", "m", "m/tokenizer"):
        loaded = AutoEncoder.from_pretrained(tmp_path / folder)
        assert equal(tokenizer, loaded) and loaded.fingerprint() == tokenizer.fingerprint() and not loaded.training
        assert loaded.whitens == whitens and np.array_equal(loaded.tokenize(rows), tokenizer.tokenize(rows))


def test_weights_of_another_tokenizer_do_not_travel_with_a_model(saved, model, tokenizer):
    assert RecGPT.from_pretrained(saved).origin == {"tokenizer": tokenizer.fingerprint()}
    loaded = RecGPT.from_pretrained(saved)
    with pytest.raises(InputError, match="was trained on codes of tokenizer"):
        loaded.save_pretrained(saved, AutoEncoder(32))
    with pytest.raises(InputError, match="the tokenizer is 96 wide"):
        model.save_pretrained(saved, AutoEncoder(96))
    assert equal(AutoEncoder.from_pretrained(saved), tokenizer)  # nothing was changed
    loaded.save_pretrained(saved)
    assert files_in(saved) == {"config.json", "model.safetensors", "README.md"}
    assert "Tokenizer: not here, " + tokenizer.fingerprint() in (saved / "README.md").read_text()


def test_directories_of_others_are_not_written_to(tmp_path, model, tokenizer):
    for name, text in (("notes.txt", ""), ("README.md", "mine"), ("config.json", '{"model_type": "gpt2"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(text)
        with pytest.raises(InputError, match=f"holds {name}"):
            model.save_pretrained(tmp_path / name)
        assert (tmp_path / name / name).read_text() == text and files_in(tmp_path / name) == {name}
    (tmp_path / "file").touch()
    with pytest.raises((InputError, DiskError)):
        tokenizer.save_pretrained(tmp_path / "file")


def test_weights_that_are_not_finite_are_not_written(tmp_path, model):
    model.norm_seq.weight.data[3] = float("nan")
    with pytest.raises(InputError, match=r"norm_seq\.weight' holds NaN"):
        model.save_pretrained(tmp_path / "m")
    assert not list(tmp_path.iterdir())


# Strictness


def hurt_weights():
    wpe, wte = "gpt2model.wpe.weight", "gpt2model.wte.weight"
    yield lambda state: state.pop("gpt2model.h.1.ln_1.bias"), "missing gpt2model.h.1.ln_1.bias"
    yield lambda state: state.pop(wte), "does not hold the weights of a RecGPT model"
    yield lambda state: state.update(extra=torch.ones(3)), "unknown 'extra'"
    yield lambda state: state.update({"gpt2model.h.0.attn.bias": torch.ones(3)}), "unknown 'gpt2model.h.0.attn.bias'"
    yield lambda state: state.update({"norm_aux.bias": torch.ones(31)}), r"norm_aux.bias is \(31,\), expected \(32,\)"
    yield lambda state: state.update({wte: torch.ones(50257, 32)}), r"is \(50257, 32\), expected \(15361, 32\)"
    yield lambda state: state.update({wpe: state[wpe][:28].clone()}), "window is 7 by the weights, 8 by the JSON"
    yield lambda state: state.update({"norm_aux.bias": torch.full((32,), torch.inf)}), "norm_aux.bias' holds NaN"
    yield (
        lambda state: state.update({"norm_aux.bias": torch.full((32,), 1e300, dtype=torch.float64)}),
        "norm_aux.bias' holds NaN",
    )
    yield lambda state: state.update({"norm_aux.bias": torch.ones(32).long()}), "is torch.int64, expected floating"
    yield lambda state: state.clear(), "does not hold the weights of a RecGPT model"


@pytest.mark.parametrize(("hurt", "said"), list(hurt_weights()))
def test_weights_are_loaded_whole_or_not_at_all(saved, hurt, said):
    path = saved / "model.safetensors"
    state = load_file(path)
    hurt(state)
    save_file(state, path)
    with pytest.raises(InputError, match="is not the file that .* was written with"):
        RecGPT.from_pretrained(saved)
    change(saved, weights=None)
    with pytest.raises(InputError, match=said):
        RecGPT.from_pretrained(saved)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: content + b"x",
        lambda content: b"\xff" * 8 + content[8:],  # a header of 2**64 bytes
        lambda content: content.replace(b"[32]", b"[33]", 1),
        lambda content: content.replace(b"F32", b"F99", 1),
        lambda content: b"\x80\x04." + content,
    ],
)
def test_damaged_weights(saved, damage, known):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    if not known:
        change(saved, weights=None)
    with pytest.raises(InputError, match="cut or changed" if known else "is no whole file of weights"):
        RecGPT.from_pretrained(saved)
    shutil.copy(path, saved / "tokenizer/tokenizer.safetensors")
    with pytest.raises(InputError, match="cut or changed"):
        AutoEncoder.from_pretrained(saved)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"heads": 3}, "names 3 heads for a width of 32"),
        ({"heads": 10**400}, "heads for a width of 32"),
        ({"heads": "4"}, "names '4' heads"),
        ({"heads": True}, "names True heads"),
        ({"heads": None}, 'does not say "heads"'),
        ({"predicts": None}, 'does not say "predicts"'),
        ({"predicts": "items"}, "unknown 'pred_head.weight'"),
        ({"predicts": ["codes"]}, "is none of"),
        ({"layers": 10**9}, "layers is 2 by the weights, 1000000000 by the JSON"),
        ({"width": 10**300}, "width is 32 by the weights, a whole number of 997 bits"),
        ({"window": [8]}, r"window is 8 by the weights, \[8\]"),
        ({"embedding_width": {}}, "embedding_width is 32"),
        ({"dropout": "x"}, "dropout 'x' is no number in"),
        ({"dropout": 2}, "dropout 2 is no number in"),
        ({"dropout": True}, "dropout True is no number in"),
        ({"model": "GPT2"}, '"model" is \'GPT2\', expected "RecGPT"'),
        ({"model": None}, '"model" is None'),
        ({"origin": ["x"]}, "\"origin\" is \\['x'\\]"),
        ({"weights": 5}, "cut or changed"),
    ],
)
def test_hostile_sizes(saved, others, said):
    """Of what is noted with the weights, too, the note is held against them first; earlier versions noted nothing."""
    change(saved, **others)
    for noted in (True, False):
        (name,) = others
        contradicted = noted and others[name] is not None and name in ("heads", "predicts", "embedding_width")
        with pytest.raises(InputError, match=f"{name} is .* by the weights, " if contradicted else said):
            RecGPT.from_pretrained(saved)
        save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
        if name != "weights":
            change(saved, weights=fingerprint(saved / "model.safetensors"))


@pytest.mark.parametrize("text", [None, "", "[]", "null", "[" * 100_000, '{"heads": NaN', "\x00"])
def test_config_that_is_no_object(saved, text):
    path = saved / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match="config.json"):
        RecGPT.from_pretrained(saved)


def test_hostile_tokenizers(saved):
    for others, said in (
        ({"embedding_width": 128}, "embedding_width is 32 by the weights, 128 by the JSON"),
        ({"embedding_width": 32, "whitens": False}, "whitens is False in config.json, and True of the weights"),
        ({"whitens": None}, 'does not say "whitens"'),
        ({"whitens": True, "model": "RecGPT"}, 'expected "RecGPT tokenizer"'),
    ):
        change(saved / "tokenizer", **others)
        with pytest.raises(InputError, match=said):
            AutoEncoder.from_pretrained(saved)


def test_one_is_not_the_other(tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no tokenizer"):
        AutoEncoder.from_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="does not hold the weights of a RecGPT model"):
        RecGPT.from_pretrained(tmp_path / "t")
    with pytest.raises(InputError, match="is a directory without model.safetensors"):
        RecGPT.from_pretrained(tmp_path / "empty")
    (tmp_path / "m/tokenizer").mkdir()
    (tmp_path / "m/model.safetensors").unlink()
    with pytest.raises(InputError, match="is a directory without model.safetensors"):
        RecGPT.from_pretrained(tmp_path / "m")


# The card


def test_the_card_says_what_the_model_is(saved, model, tokenizer):
    text = (saved / "README.md").read_text()
    about = ModelCard(text).data.to_dict()
    assert about.pop("tags")[0] == "recgpt"
    assert about == {"library_name": "recgpt", "license": "cc-by-4.0", "pipeline_tag": "other"}
    table = dict(re.findall(r"^\| (\S+) \| (\S+) \|$", text.split("## Trained on")[0], re.M))
    sizes = {"layers": 2, "width": 32, "heads": 4, "embedding_width": 32, "window": 8, "dropout": 0.3}
    sizes |= {"predicts": "codes", "attention": "item_block", "auxiliary": True, "codes_per_item": 4}
    sizes |= {"parameters": sum(value.numel() for value in model.parameters())}
    assert table == {name: str(value) for name, value in sizes.items()}
    assert "reads the last 7 items" in text and f"`tokenizer/`, {tokenizer.fingerprint()}" in text
    for said in (CARD.data, CARD.limits, "| ndcg@5 of pets | 0.3518 |", "| hit@5 | 1 |"):
        assert said in text
    assert text.count(NOT_GIVEN) == 1  # the sentence encoder


def test_what_is_not_given_is_said_to_be_not_given(tmp_path, model):
    model.origin = {"encoder": "all-mpnet-base-v2"}
    model.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m/README.md").read_text()
    assert text.count(NOT_GIVEN) == 2 and "encoder of the item texts: all-mpnet-base-v2" in text
    assert "behind rules" in text and "of no use" in text


def test_cards_from_json(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(vars(CARD)))
    assert Card.read(path) == CARD
    for text, said in (
        ('{"date": 1}', "'date' is no part of a card"),
        ('{"data": 1}', "'data' is 1"),
        ('{"metrics": [1]}', "'metrics' is"),
        ('{"metrics": {"a": "1"}}', "metric 'a' is '1'"),
        ('{"metrics": {"a": NaN}}', "metric 'a' is None"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            Card.read(path)


# Scripts


def call_export(monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, flags)])
    export.main()


def test_from_the_release_form_and_back(tmp_path, monkeypatch, model):
    tokenizer = AutoEncoder(32)
    full = {"m": export.full_model(model.state_dict()), "t": export.full_tokenizer(tokenizer.state_dict())}
    noted = {"config": vars(SMALL), "encoder": "some-encoder", "refit_of": {"name": "a.pt"}, "data": "/home/anna"}
    save_state(tmp_path / "m.pt", full["m"], noted)
    save_state(tmp_path / "t.pt", full["t"], {})
    folder = tmp_path / "folder"
    call_export(monkeypatch, "--input", tmp_path / "m.pt", "--vae_ckpt", tmp_path / "t.pt", "--pretrained", folder)
    assert files_in(folder) == {"README.md"} | set(WEIGHTS) - {"tokenizer.safetensors"}
    assert "anna" not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    loaded = RecGPT.from_pretrained(folder)
    known = {"encoder": "some-encoder", "refit_of": {"name": "a.pt"}}
    assert loaded.origin == {**known, "tokenizer": tokenizer.fingerprint()}
    assert equal(model, loaded) and equal(tokenizer, AutoEncoder.from_pretrained(folder))

    for source, name in ((folder, "m"), (folder / "tokenizer", "t")):
        call_export(monkeypatch, "--input", source, "--output", tmp_path / "back.pt")
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert back.keys() == full[name].keys() and all(torch.equal(back[key], full[name][key]) for key in back)
        assert name == "t" or load_model(tmp_path / "back.pt", CPU)[1]["encoder"] == "some-encoder"


def test_export_refuses(tmp_path, monkeypatch, saved):
    call_export(monkeypatch, "--input", saved / "tokenizer", "--pretrained", tmp_path / "t")
    assert files_in(tmp_path / "t") == {"config.json", "tokenizer.safetensors"}
    for flags in (
        ("--input", saved, "--output", tmp_path / "x.pt", "--vae_ckpt", saved),
        ("--input", saved / "tokenizer", "--pretrained", tmp_path / "x", "--card", "x.json"),
    ):
        with pytest.raises(InputError, match="goes with a model's weights"):
            call_export(monkeypatch, *flags)
    with pytest.raises(SystemExit):
        call_export(monkeypatch, "--input", saved)
    assert not list(tmp_path.glob("x*"))


def test_scripts_read_directories_as_checkpoints(saved, model, tokenizer, tmp_path):
    loaded, metadata = load_model(saved, CPU, layers=2)
    assert equal(model, loaded) and metadata["tokenizer"] == load_tokenizer(saved).fingerprint()
    assert metadata["config"] == SMALL.noted()
    assert find_checkpoints([str(saved)]) == [saved]
    assert len(weights_content(str(saved))) == 1
    with pytest.raises(InputError, match="--tf_layer 3 contradicts"):
        load_model(saved, CPU, layers=3)


def test_a_catalog_is_read_by_a_directory_as_by_its_checkpoint(saved, model, tokenizer, tmp_path):
    """What predict.py and serving.bundle do first; tokenizers that are not the model's are refused."""
    embeddings = np.random.default_rng(0).normal(size=(90, 32)).astype(np.float32)
    save_state(tmp_path / "m.pt", model.state_dict(), {"config": vars(SMALL)})
    save_state(tmp_path / "t.pt", tokenizer.state_dict(), {})
    files, folder = (
        load_parts(*map(str, paths), tmp_path / "e.npy", embeddings, CPU)
        for paths in ((tmp_path / "m.pt", tmp_path / "t.pt"), (saved, saved))
    )
    assert np.array_equal(files.catalog.codes, folder.catalog.codes)
    assert files.model.fingerprint() == folder.model.fingerprint()
    AutoEncoder(32).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was trained on codes of tokenizer"):
        load_parts(str(saved), str(tmp_path / "other"), tmp_path / "e.npy", embeddings, CPU)


# The Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, and no way to any other host."""
    with serving({}) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        close_session()  # which has read the environment of before
        yield server
    close_session()


def test_to_the_hub_and_back(hub, model, tokenizer):
    address = model.push_to_hub("anna/shop", tokenizer, CARD, message="first")
    assert address == f"{hub.address}/anna/shop/commit/{COMMIT}"
    assert hub.commits == [{"revision": "main", "message": "first", "token": "Bearer secret"}]
    assert hub.private == {"anna/shop"}
    sent = hub.contents["model", "anna/shop"]
    assert set(sent) == {"README.md"} | set(WEIGHTS) - {"tokenizer.safetensors"}
    assert 'RecGPT.from_pretrained("anna/shop")' in sent["README.md"].decode()
    sent["evil.py"] = sent["evil.pkl"] = b"no file of ours"
    assert equal(model, RecGPT.from_pretrained("anna/shop")) and equal(
        tokenizer, AutoEncoder.from_pretrained("anna/shop")
    )
    assert {asked.path for asked in hub.asked} <= set(WEIGHTS)

    model.push_to_hub("anna/shop", revision="next", token="other")
    assert hub.commits[-1] == {
        "revision": "next",
        "message": "RecGPT: weights, sizes and model card",
        "token": "Bearer other",
    }
    assert set(sent) == {"README.md", "config.json", "model.safetensors", "evil.py", "evil.pkl"}  # no other's tokenizer
    hub.revisions.clear()
    RecGPT.from_pretrained("anna/shop", revision="v1")
    assert "v1" in hub.revisions


def test_private_weights_do_not_go_where_everyone_reads(hub, model):
    hub.contents["model", "anna/open"] = {}
    with pytest.raises(InputError, match="everyone can read it: nothing was sent. Give private=False"):
        model.push_to_hub("anna/open")
    assert not hub.contents["model", "anna/open"]
    model.push_to_hub("anna/open", private=False)
    assert hub.contents["model", "anna/open"]


def test_what_the_hub_does_not_have(hub, model, tmp_path):
    for name, said in (
        ("anna/nothing", "anna/nothing is no directory, and cannot be fetched"),
        ("no_directory", "neither a directory nor the name of a model"),
        ("a/b/c", "neither a directory nor the name of a model"),
        ("../x", "cannot be fetched"),
        (tmp_path / "nothing", "neither a directory nor the name of a model"),
    ):
        with pytest.raises(InputError, match=said):
            RecGPT.from_pretrained(name)
    hub.contents["model", "anna/else"] = {"pytorch_model.bin": b"x" * 2000}
    with pytest.raises(InputError, match="anna/else of the Hub has neither model.safetensors nor tokenizer"):
        RecGPT.from_pretrained("anna/else")
    with pytest.raises(InputError, match="is not the name of a model of the Hub"):
        model.push_to_hub("shop")


def test_a_transfer_that_is_cut_or_lied_about(hub, model):
    model.push_to_hub("anna/shop")
    hub.lies["model.safetensors"] = hub.contents["model", "anna/shop"]["model.safetensors"][:-4]
    with pytest.raises(InputError, match=r"cannot be fetched|cut or changed"):
        RecGPT.from_pretrained("anna/shop")
    hub.lies.clear()
    assert equal(model, RecGPT.from_pretrained("anna/shop"))


def test_offline_and_without_a_token(hub, model, monkeypatch):
    model.push_to_hub("anna/shop")
    RecGPT.from_pretrained("anna/shop")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="while HF_HUB_OFFLINE is set. Unset it"):
        model.push_to_hub("anna/shop")
    assert equal(model, RecGPT.from_pretrained("anna/shop"))  # from the cache
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        RecGPT.from_pretrained("anna/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="without a token. Set HF_TOKEN"):
        model.push_to_hub("anna/shop")
    assert len(hub.commits) == 1


def test_the_hub_is_out_of_reach(hub, model):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(InputError, match="cannot be sent to the Hub"):
        model.push_to_hub("anna/shop")
    with pytest.raises(InputError, match="cannot be fetched from the Hub either"):
        RecGPT.from_pretrained("anna/shop")
