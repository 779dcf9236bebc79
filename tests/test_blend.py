"""The blend: equal to plain sums, fitted to nothing but what precedes the targets, read from files as data."""

import json
import shlex
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import predict
from ae_trainer import AutoEncoder, load_tokenizer
from benchmarks import default_blend
from benchmarks.blend import brute_force
from model import Items, RecGPT, RecGPTConfig
from tests.conftest import dump
from utils import compare
from utils.blend import FEATURES, NETWORK, NO_LOG, Blend, Blender, Domain, fit, fit_to_log, neighbours, prepare
from utils.blend_files import SHIPPED, load_blends, obtain_blends, save_blends
from utils.checkpoint import save_state
from utils.data import Catalog, Sequences, make_batch
from utils.errors import InputError
from utils.files import content
from utils.fsq import PUBLISHED
from utils.scores import LogStatistics, Statistics, rank_by
from utils.search import places_of
from utils.whitening import whiten

ITEMS, WIDTH = 3000, 32
WEIGHTS = dict(zip(FEATURES, (5.0, 2.0, 0.6, 0.3, 0.7, -1.5, 2.5, 0.4, 3.0, 1.5), strict=True))
SCALES = dict.fromkeys(FEATURES, 2.0)


@pytest.fixture(scope="module")
def catalog():
    """A domain of 3,000 items, two of them without text, with a log; codes, histories with repeats, and logits."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((ITEMS, WIDTH)).astype(np.float32)
    embeddings[[3, 2999]] = 0
    log = Sequences.of(*((ITEMS * rng.random(rng.integers(0, 30)) ** 3).astype(int).tolist() for _ in range(900)))
    near = neighbours(rng.standard_normal((ITEMS, ITEMS)).astype(np.float32))
    domain = Domain(whiten(embeddings), LogStatistics.of(log, ITEMS), near)
    codes = rng.integers(0, PUBLISHED.vocabulary - 1, (ITEMS, PUBLISHED.per_item)).astype(np.int16)
    histories = Sequences.of([1, 2, 1, 5], [3], [7] * 20, list(range(40)), *log.lists()[:70])
    log_probs = torch.randn(len(histories), PUBLISHED.per_item, PUBLISHED.vocabulary).log_softmax(-1)
    return domain, codes, histories, log_probs, log


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("every", [False, True])
def test_scores_and_lists_are_those_of_full_arrays(catalog, exclude, every):
    domain, codes, histories, log_probs, _ = catalog
    candidates = np.arange(ITEMS) if every else np.setdiff1d(np.arange(ITEMS), [3, 500, 2999])
    blender = Blender(Blend(WEIGHTS, SCALES), domain, candidates, codes, exclude)
    plain = brute_force(blender, histories, log_probs, codes)
    if exclude:
        for user, items in enumerate(histories.lists()):
            plain[user, items] = -np.inf
    plain = plain[:, candidates]
    scores = blender.scores(histories, log_probs).numpy()
    assert np.array_equal(np.isfinite(scores), np.isfinite(plain))
    np.testing.assert_allclose(scores, plain, rtol=1e-5, atol=1e-4)
    top = blender.search(histories, 25, log_probs)
    places = places_of(top.items.flatten(), blender.items).view(top.items.shape)
    np.testing.assert_allclose(np.take_along_axis(plain, places.numpy(), 1), -np.sort(-plain, 1)[:, :25], atol=1e-4)
    same, also = blender.scores_and_top(histories, 25, log_probs)
    assert torch.equal(top.items, also.items) and np.array_equal(same.numpy(), scores)


def test_of_items_that_the_domain_does_not_have_only_texts_count(catalog):
    """As if they were in the domain for texts, and as if they were not in the history for the log."""
    domain, *_ = catalog
    cut, row = Domain(domain.rows[:-1]), domain.rows[None, 42]
    texts = Blend({"text_mean": 5.0, "text_last": 2.0}, {"text_mean": 1.0, "text_last": 1.0})
    of_log = Blend({name: value for name, value in WEIGHTS.items() if name not in (*texts.weights, NETWORK)}, SCALES)
    with_it = Sequences.of([4, 9, ITEMS - 1], [ITEMS - 1], [ITEMS - 1, 9])
    scores = Blender(texts, cut, np.arange(ITEMS - 1)).scores(with_it, extra=row)
    same = Domain(np.concatenate([cut.rows, row]))
    torch.testing.assert_close(scores, Blender(texts, same, np.arange(ITEMS)).scores(with_it)[:, :-1])
    with_it, without = Sequences.of([4, ITEMS, 9], [ITEMS, 9, 9]), Sequences.of([4, 9], [9, 9])
    blender = Blender(of_log, domain, np.arange(ITEMS))
    torch.testing.assert_close(blender.scores(with_it, extra=row), blender.scores(without))


def test_a_network_that_scores_items_is_blended_by_its_scores(catalog):
    """The scores of the candidates, in place of log-probabilities of codes: the same blend of the same numbers."""
    domain, codes, histories, log_probs, _ = catalog
    candidates = np.setdiff1d(np.arange(ITEMS), [3, 500, 2999])
    blender = Blender(Blend(WEIGHTS, SCALES), domain, candidates, codes)
    scores = sum(log_probs[:, slot, codes[candidates, slot].astype(np.int64)] for slot in range(PUBLISHED.per_item))
    torch.testing.assert_close(blender.scores(histories, scores), blender.scores(histories, log_probs))
    assert torch.equal(blender.search(histories, 9, scores).items, blender.search(histories, 9, log_probs).items)
    of_all, one_nan = torch.randn(len(histories), ITEMS), scores.clone()
    one_nan[3, 5] = torch.nan
    for odd in (None, of_all, scores[:, :1], scores[:-1], log_probs[:-1], log_probs[:, :3], one_nan):
        with pytest.raises(ValueError, match="the blend reads RecGPT's log_probs"):
            blender.search(histories, 9, odd)


def test_lists_are_short_and_in_order_of_ids(catalog):
    domain, *_ = catalog
    blend = Blend({"in_history": 1.0}, {"in_history": 1.0})
    blender = Blender(blend, domain, np.array([5, 8, 9]), exclude_history=True)
    top = blender.search(Sequences.of([5, 7], [], [8, 9, 5]), 4)
    assert top.items.tolist() == [[8, 9, -1, -1], [5, 8, 9, -1], [-1] * 4]
    assert Blender(blend, Domain(domain.rows[:1]), np.array([0])).search(Sequences.of([0]), 2).items.tolist() == [
        [0, -1]
    ]


def test_equal_items_tie(catalog):
    domain, *_ = catalog
    rows = np.tile(domain.rows[:1], (ITEMS, 1))
    top = Blender(Blend({"text_mean": 3.0}, {"text_mean": 0.7}), Domain(rows), np.arange(ITEMS)).search(
        Sequences.of([0], [1, 2]), 50
    )
    assert top.items.tolist() == [list(range(50))] * 2


def test_gradient(catalog):
    domain, _, histories, _, _ = catalog
    network = torch.randn(len(histories), ITEMS)
    targets = np.arange(len(histories)) + 100
    for exclude in (False, True):
        (chunk,) = prepare(domain, histories, targets, np.arange(5, ITEMS), exclude, network)
        factors = np.array([2, 1, 0.6, 0.3, 0.5, -1, 0.5, 0.2, 2.0, 0.4])
        _, gradient = chunk.loss(factors)
        for number, step in enumerate(1e-2 * np.eye(len(factors))):
            slope = (chunk.loss(factors + step)[0] - chunk.loss(factors - step)[0]) / 2e-2
            assert slope == pytest.approx(gradient[number], rel=2e-2, abs=0.1), number


def test_fit_finds_the_weights_that_made_the_targets(catalog):
    domain, codes, _, _, log = catalog
    histories = log.select(np.flatnonzero(log.lengths))
    network = torch.randn(len(histories), ITEMS)
    true = {"text_mean": 4.0, "in_history": -2.0, "popularity": 0.8, NETWORK: 0.9}
    without = {name: weight for name, weight in true.items() if name != NETWORK}
    plain = Blender(Blend(without, dict.fromkeys(without, 1.0)), domain, np.arange(ITEMS)).scores(histories)
    drawn = torch.distributions.Categorical(logits=plain + true[NETWORK] * network)
    torch.manual_seed(0)
    chunks = list(prepare(domain, histories, drawn.sample().numpy(), np.arange(ITEMS), False, network))
    fitted = fit([chunks], domain.features(network=True))
    assert fitted.after > fitted.before == pytest.approx(-np.log(ITEMS), rel=1e-4)
    for name, weight in true.items():
        assert fitted.blend.factor(name) == pytest.approx(weight, abs=0.35 + 0.4 * (name == "in_history")), name
    assert all(weight >= 0 for name, weight in fitted.blend.weights.items() if name != "in_history")


def planted(last: int) -> Sequences:
    """300 histories of items below 50, which all end with one that is nowhere else."""
    rng = np.random.default_rng(0)
    return Sequences.of(*([*rng.integers(0, 50, 6).tolist(), last] for _ in range(300)))


def test_the_fit_sees_no_target_in_its_statistics():
    """If it did, item 60 would be the most popular one, and follow every other."""
    rows = whiten(np.random.default_rng(1).standard_normal((64, WIDTH)))
    fitted = fit_to_log(planted(60), rows, np.arange(64), exclude_history=False)["log"]
    assert {"popularity", "transitions", "item_cosine", "ease"}.isdisjoint(fitted.blend.weights)
    (chunk,) = prepare(Domain.of(Statistics.of(rows, planted(60))), *planted(60).split_targets(), np.arange(64), False)
    leaking = fit([[chunk]], Domain.of(Statistics.of(rows, planted(60))).features())
    assert leaking.after > fitted.after + 1 and not {"popularity", "item_cosine", "ease"}.isdisjoint(
        leaking.blend.weights
    )


def test_short_lists_and_networks():
    rows, every = whiten(np.random.default_rng(1).standard_normal((64, WIDTH))), np.arange(64)
    short = Sequences.of([], [1], *planted(5).lists()[:20])
    seen = []
    blends = fit_to_log(short, rows, every, True, lambda part: seen.append(part) or torch.zeros(len(part), 64))
    assert set(blends) == {"log", "log and RecGPT"} and blends["log"].users <= 20
    assert all(len(items) == 6 and 0 not in items[6:] for items in seen[0].lists())
    for log in (Sequences.of([1], []), Sequences.of([1, 1]), Sequences.of([1, 63])):
        with pytest.raises(InputError, match="nothing to fit"):
            fit_to_log(log, rows, np.arange(63), exclude_history=True)
    alone = fit_to_log(Sequences.of([0, 0], [0, 0, 0]), rows[:1], np.array([0]), exclude_history=False)["log"]
    assert alone.after == alone.before == 0 and not alone.blend.weights


def test_shipped_weights_rank(catalog):
    domain, *_ = catalog
    blend = load_blends(SHIPPED)[NO_LOG]
    assert blend.factor("text_mean") > 0 > blend.factor("in_history")
    targets = np.array([1, 4])
    blender = Blender(blend, Domain(domain.rows), np.arange(ITEMS))
    ranks = rank_by(blender.scorer, Sequences.of([1, 2], [4]), targets, np.ones(ITEMS, dtype=bool))
    assert (ranks.tied == 1).all()


@pytest.fixture
def saved(tmp_path):
    fitted = fit_to_log(
        planted(20), whiten(np.random.default_rng(1).standard_normal((64, WIDTH))), np.arange(64), False
    )
    save_blends(tmp_path / "blend.json", fitted, {"train.pkl": "abc", "exclude_history": False})
    return tmp_path / "blend.json", fitted


def test_files_round_trip_and_stale_ones_are_fitted_again(saved, capsys):
    path, fitted = saved
    at_hand = {"train.pkl": "abc", "exclude_history": False}
    assert load_blends(path, at_hand) == {"log": fitted["log"].blend}
    never = lambda: pytest.fail("fitted")  # noqa: E731
    assert obtain_blends(path, "auto", at_hand, never) == obtain_blends(path, "read", at_hand, never)
    assert not capsys.readouterr().out
    other = at_hand | {"train.pkl": "xyz"}
    with pytest.raises(InputError, match="another 'train.pkl'"):
        obtain_blends(path, "read", other, never)
    assert obtain_blends(path, "auto", other, lambda: fitted) == {"log": fitted["log"].blend}
    assert "users of train.pkl" in capsys.readouterr().out and load_blends(path, other)
    assert obtain_blends(path, "fit", other, lambda: fitted)


def test_blends_that_are_asked_for_must_be_there(saved):
    path, fitted = saved
    at_hand = {"train.pkl": "abc", "exclude_history": False}
    with pytest.raises(InputError, match="no blend 'log and RecGPT'. predict.py --blend fits it again"):
        load_blends(path, at_hand, ("log", "log and RecGPT"))
    assert obtain_blends(path, "auto", at_hand, lambda: fitted, ("log and RecGPT",)) == {"log": fitted["log"].blend}
    with pytest.raises(InputError, match="elsewhere.json does not exist"):
        load_blends(path.with_name("elsewhere.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "version 1"),
        ({"blends": {}}, "expected"),
        ({"blends": {"other": {}}}, "expected"),
        ({"blends": {"log": 3}}, "weights and scales"),
        ({"blends": {"log": {"weights": {}, "scales": {}}}}, "weights and scales"),
        ({"blends": {"log": {"weights": {"popularity": 1}, "scales": {"recency": 1}}}}, "the same features"),
        ({"blends": {"log": {"weights": {"spam": 1}, "scales": {"spam": 1}}}}, "spam"),
        ({"blends": {"log": {"weights": {"recgpt": 1}, "scales": {"recgpt": 1}}}}, "recgpt"),
        ({"blends": {"log": {"weights": {"recency": True}, "scales": {"recency": 1}}}}, "True"),
        ({"blends": {"log": {"weights": {"recency": "1"}, "scales": {"recency": 1}}}}, "numbers"),
        ({"blends": {"log": {"weights": {"recency": float("nan")}, "scales": {"recency": 1}}}}, "None"),
        ({"blends": {"log": {"weights": {"recency": 10**400}, "scales": {"recency": 1}}}}, "numbers"),
        ({"blends": {"log": {"weights": {"recency": 1}, "scales": {"recency": 0}}}}, "above"),
        ({"made_from": []}, "expected"),
        ({"blends": {"no log": {"weights": {"era": 1}, "scales": {"era": 1}}}}, "found 'era'"),
    ],
)
def test_hostile_files_are_refused(saved, change, said):
    path, _ = saved
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=said):
        load_blends(path)


USERS, CATALOG = 40, 60


@pytest.fixture
def shop(tmp_path, monkeypatch, capsys):
    """Run predict.py on a small shop: what it prints, and the lists of --output by user."""
    torch.manual_seed(0)
    torch.save(AutoEncoder(WIDTH).state_dict(), tmp_path / "vae.pt")
    torch.save(RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH)).state_dict(), tmp_path / "model.pt")
    folder, rng = tmp_path / "shop", np.random.default_rng(1)
    lists = {user: rng.integers(0, CATALOG, 8).tolist() for user in range(USERS)}
    dump(folder / "test.pkl", lists)
    dump(folder / "train.pkl", {user: items[:-1] for user, items in lists.items()})
    embeddings = rng.standard_normal((CATALOG, WIDTH)).astype(np.float32)
    embeddings[9] = 0  # an item without text
    np.save(folder / "item_text_embeddings.npy", embeddings)

    def predict_with(flags: str) -> tuple[str, dict]:
        command = f"predict.py --dataset {folder} --ckpt_path {tmp_path}/model.pt --vae_ckpt {tmp_path}/vae.pt"
        command += f" --device cpu --output {tmp_path}/lists.jsonl {flags}"
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        predict.main()
        listed = map(json.loads, (tmp_path / "lists.jsonl").read_text().splitlines())
        return capsys.readouterr().out, {one["user"]: one["items"] for one in listed}

    return folder, lists, predict_with


def test_predict_fits_once_and_again_when_the_log_changes(shop):
    folder, lists, predict_with = shop
    said, listed = predict_with("--blend")
    assert "blend.json written" in said and all(name in said for name in compare.BLENDS)
    before = (folder / "blend.json").read_text()
    said, again = predict_with("--blend")
    assert "written" not in said and again == listed and (folder / "blend.json").read_text() == before
    assert predict_with(f"--blend {folder}/blend.json")[1] == listed != predict_with("")[1]
    assert all(9 not in items for items in listed.values())
    dump(folder / "train.pkl", {user: items[:-1] for user, items in lists.items() if user})
    with pytest.raises(InputError, match="another 'train.pkl'"):
        predict_with(f"--blend {folder}/blend.json")
    assert "written" in predict_with("--blend")[0] and "written" in predict_with("--blend fit")[0]
    said, excluded = predict_with("--blend --exclude_history")
    assert "another 'exclude_history'" in said
    assert all(set(items).isdisjoint(lists[user][:-1]) for user, items in excluded.items())
    with pytest.raises(InputError, match="--blend needs exact search"):
        predict_with("--blend --protocol released")


def test_a_model_that_predicts_items_recommends_and_is_blended(shop, tmp_path):
    """Lists as of its scores by hand, with and without a user's own items; what is of codes is refused."""
    folder, lists, predict_with = shop
    model = RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH, predicts="items")).eval()
    save_state(tmp_path / "model.pt", model.state_dict(), {"config": {"heads": 1, "predicts": "items"}})
    embeddings = np.load(folder / "item_text_embeddings.npy")
    catalog = Catalog(load_tokenizer(tmp_path / "vae.pt").tokenize(embeddings), embeddings)
    histories = Sequences.of(*(items[:-1] for items in lists.values()))
    with torch.no_grad():
        queries = model.next_item_queries(make_batch(histories, catalog))
        scores = queries @ model.item_vectors(Items(catalog)).T
    scores[:, 9] = -torch.inf
    for flags, own in (("", []), ("--exclude_history", histories.lists())):
        for user, items in enumerate(own):
            scores[user, items] = -torch.inf
        said, listed = predict_with(flags)
        assert listed == dict(enumerate(scores.topk(5).indices.tolist()))
        hits = [items[-1] in listed[user] for user, items in lists.items() if not own or items[-1] not in items[:-1]]
        assert f"hit@5 = {np.mean(hits):.4f}" in said.splitlines()[-1]
    said, blended = predict_with("--blend --exclude_history")
    assert "recgpt" in said and blended != listed and set(blended) == set(listed)
    assert "written" not in predict_with("--blend --exclude_history")[0]
    for flag in ("--search beam", "--protocol released"):
        with pytest.raises(InputError, match="model.pt predicts items and not codes"):
            predict_with(flag)


def test_a_repeated_training_is_blended_by_the_weights_that_it_repeats(shop, tmp_path):
    """It has seen the targets of the fit, on which it is better than it will be on others."""
    folder, _, predict_with = shop
    torch.manual_seed(5)
    torch.save(RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH)).state_dict(), tmp_path / "earlier.pt")
    fitted = {}
    for name in ("model.pt", "earlier.pt"):
        predict_with(f"--blend fit --ckpt_path {tmp_path}/{name}")
        fitted[name] = json.loads((folder / "blend.json").read_text())["blends"]
    assert fitted["model.pt"] != fitted["earlier.pt"]

    noted = {"refit_of": {"name": str(tmp_path / "earlier.pt"), "content": [content(tmp_path / "earlier.pt")]}}
    save_state(tmp_path / "model.pt", torch.load(tmp_path / "model.pt", weights_only=True), noted)
    predict_with("--blend")
    found = json.loads((folder / "blend.json").read_text())
    assert found["blends"] == fitted["earlier.pt"]
    assert "written" not in predict_with("--blend")[0]
    torch.save(torch.load(tmp_path / "model.pt", weights_only=True), tmp_path / "earlier.pt")
    for _ in range(2):
        with pytest.raises(InputError, match="was trained on the last items of train.pkl.*earlier.pt, as they were"):
            predict_with("--blend")
        (tmp_path / "earlier.pt").unlink(missing_ok=True)
    predict_with("")  # the model by itself needs them not


def test_weights_that_have_seen_the_targets_of_the_fit_are_not_blended(shop, tmp_path):
    """Neither those of the checkpoint nor, for a repeated training, those that it repeats."""
    folder, _, predict_with = shop
    seen = {"whole_lists_of": ["others", content(folder / "train.pkl")]}
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    save_state(tmp_path / "model.pt", weights, seen)
    with pytest.raises(InputError, match="model.pt was trained on the last items of .*train.pkl, to which a blend"):
        predict_with("--blend")
    predict_with("")
    for noted, expected in ((seen, pytest.raises(InputError, match="first.pt was trained")), ({}, nullcontext())):
        save_state(tmp_path / "first.pt", weights, noted)
        repeats = {"name": str(tmp_path / "first.pt"), "content": [content(tmp_path / "first.pt")]}
        save_state(tmp_path / "model.pt", weights, {**seen, "refit_of": repeats})
        with expected:
            predict_with("--blend")
    for odd in (3, [3], {"a": 1}, ["others"]):
        save_state(tmp_path / "model.pt", weights, {"whole_lists_of": odd})
        predict_with("--blend")


def test_a_blend_belongs_to_the_weights_it_was_fitted_with(shop, tmp_path):
    """What the JSON says of the same checkpoint decides whether others than its own weights are used for the fit."""
    folder, _, predict_with = shop
    predict_with("--blend")
    torch.manual_seed(1)
    torch.save(RecGPT(RecGPTConfig(layers=1, width=64, embedding_width=WIDTH)).state_dict(), tmp_path / "first.pt")
    note = {"refit_of": {"name": str(tmp_path / "first.pt"), "content": [content(tmp_path / "first.pt")]}}
    (tmp_path / "model.json").write_text(json.dumps(note))
    assert "was fitted with another 'fitted with'" in predict_with("--blend")[0]
    assert "anew" not in predict_with("--blend")[0]


def test_a_log_with_the_targets_is_told(shop):
    folder, lists, predict_with = shop
    assert "Warning" not in predict_with("")[0]
    dump(folder / "train.pkl", {user: [*items, 1] if user < 3 else items[:-1] for user, items in lists.items()})
    assert "the whole list of 3 of 40 users" in predict_with("")[0]
    dump(folder / "train.pkl", {user + USERS: items for user, items in lists.items()})
    assert "Warning" not in predict_with("")[0]


def test_a_single_item(shop):
    folder, lists, predict_with = shop
    embeddings = np.load(folder / "item_text_embeddings.npy")
    embeddings[1:] = 0
    np.save(folder / "item_text_embeddings.npy", embeddings)
    dump(folder / "test.pkl", {user: [0, *items] for user, items in lists.items()})
    dump(folder / "train.pkl", dict.fromkeys(lists, [1, 0]))
    assert set(map(tuple, predict_with("--blend")[1].values())) == {(0,)}


def test_names_of_blends_are_taken(shop, tmp_path):
    _, _, predict_with = shop
    predict_with("")
    (tmp_path / "lists.jsonl").rename(tmp_path / "other.jsonl")
    assert " blend " in predict_with(f"--blend --compare blend={tmp_path}/other.jsonl")[0]
    with pytest.raises(InputError, match="there is a row blend with RecGPT already"):
        predict_with(f"--blend --compare 'blend with RecGPT={tmp_path}/other.jsonl'")


def test_predict_uses_the_shipped_weights_without_a_log(shop):
    folder, _, predict_with = shop
    (folder / "train.pkl").unlink()
    said, listed = predict_with("--blend --cold False")
    assert "weights of the program" in said and "blend (no log)" in said and "blend (its log)" not in said
    assert not (folder / "blend.json").exists() and all(len(items) == 5 for items in listed.values())


def test_lists_do_not_know_the_targets(shop):
    """The fit and the use: item 33 follows in every test list, and nothing but these lists says so."""
    folder, lists, predict_with = shop
    train = {user: [item if item != 33 else 34 for item in items[:-1]] for user, items in lists.items()}
    dump(folder / "train.pkl", train)
    found = []
    for target in (33, 35):
        dump(folder / "test.pkl", {user: [*items, target] for user, items in train.items()})
        said, listed = predict_with("--blend fit --topk 1 20")
        found.append((json.loads((folder / "blend.json").read_text()), listed))
    assert found[0] == found[1]


def test_weights_for_domains_without_a_log_are_chosen_on_others(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name in ("baby", "office"):
        lists = {user: rng.integers(0, CATALOG, 8).tolist() for user in range(USERS)}
        dump(tmp_path / name / "test.pkl", lists)
        embeddings = rng.standard_normal((CATALOG, WIDTH)).astype(np.float32)
        embeddings[9] = 0
        np.save(tmp_path / name / "item_text_embeddings.npy", embeddings)
    command = f"default_blend.py {tmp_path}/baby {tmp_path}/office --output {tmp_path}/default.json".split()
    monkeypatch.setattr(sys, "argv", [*command, "--leave_out", "baby"])
    default_blend.main()
    assert "target in history" in capsys.readouterr().out and not (tmp_path / "default.json").exists()
    monkeypatch.setattr(sys, "argv", command)
    default_blend.main()
    blend = load_blends(tmp_path / "default.json")[NO_LOG]
    assert (blend.factor("text_last") / 10, blend.factor("in_history") / 10) in default_blend.GRID
