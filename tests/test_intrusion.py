import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import write_jsonl
from inversedmixup import intrusion
from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.figures import draw_intrusion
from inversedmixup.intrusion import LAMS, IntrusionConfig, Mixes, run_intrusion
from inversedmixup.rates import KINDS, Observer, Parents, effective_size, seen

SMALL = {
    "mixes": 12, "texts": 2, "candidates": 2, "max_tokens": 8, "task_steps": 2, "follow_steps": 1, "refine_steps": 1,
    "tolerance": 1.0,
}  # fmt: skip


def config(pair, **changes):
    return IntrusionConfig(pair=pair, **{**SMALL, **changes})


def apart(n):
    """The parents of n mixes that share no row."""
    return Parents(np.arange(2 * n).reshape(n, 2), np.tile([0, 1], (n, 1)))


# ---- shares ------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0.7, 1), st.integers(2, 10), st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_the_share_behind_an_observers_errors_is_found(share, accuracy, classes, inside):
    if inside == classes:
        return
    slip = (1 - accuracy) / (classes - 1)
    expected = share * (1 - slip * inside) + (1 - share) * slip * (classes - inside)
    n = 100_000
    hits = np.arange(n) < round(expected * n)
    found = seen(hits, np.full(n, inside), classes, Observer("x", accuracy, n), apart(n))
    assert found["corrected"] == pytest.approx(share, abs=0.002)
    assert found["corrected_low"] - 0.01 <= share <= found["corrected_high"] + 0.01
    assert found["low"] <= found["rate"] <= found["high"]


@pytest.mark.parametrize("hit", [False, True])
def test_the_interval_of_a_corrected_share_holds_the_share(hit):
    found = seen(np.full(32, hit), np.ones(32), 2, Observer("perfect", 1.0, 5000), apart(32))
    assert found["corrected_low"] <= found["corrected"] <= found["corrected_high"]
    assert found["corrected"] == hit


def test_an_observer_at_chance_gives_no_corrected_share():
    hits = np.array([True, False])
    assert seen(hits, np.ones(2), 4, Observer("x", 0.25, 9), apart(2))["corrected"] is None
    assert seen(hits, np.ones(2), 4, Observer("x", None, 0), apart(2))["corrected"] is None
    assert seen(hits[:0], np.ones(0), 4, Observer("x", 0.9, 9), apart(0))["rate"] is None


def test_where_every_class_is_allowed_none_can_lie_outside():
    found = seen(np.zeros(40, dtype=bool), np.full(40, 2), 2, Observer("x", 0.8, 99), apart(40))
    assert found.pop("n") == 40
    assert set(found.values()) == {0.0}


def test_intervals_hold_what_other_rows_would_have_given():
    """2,000 mixes of twenty rows: how easily a row's mixes are contradicted is its own."""
    rng, covered, classes = np.random.default_rng(0), 0, np.repeat([0, 1], 10)
    for _ in range(200):
        ease = rng.normal(size=20)
        rows = np.stack([rng.permutation(20)[:2] for _ in range(2000)])
        rows = rows[classes[rows[:, 0]] != classes[rows[:, 1]]]
        hits = ease[rows].sum(1) + rng.normal(size=len(rows)) > 0  # half of them, over all draws
        found = seen(hits, np.ones(len(rows)), 2, Observer("x", None, 0), Parents(rows, classes[rows]))
        covered += found["low"] <= 0.5 <= found["high"]
    assert 180 <= covered <= 199  # of independent mixes they would be a fifth as wide, and hold it in some 60


def test_mixes_of_rows_of_their_own_count_as_many_as_they_are():
    hits = np.arange(400) < 120
    assert effective_size(hits, apart(400)) == pytest.approx(400, rel=0.02)
    again = Parents(*(np.repeat(part, 5, axis=0) for part in (apart(80).rows, apart(80).classes)))
    assert effective_size(np.repeat(hits[:400:5], 5), again) == pytest.approx(80, rel=0.05)


@pytest.mark.parametrize("hit", [False, True])
def test_where_all_mixes_are_alike_they_count_as_many_as_their_rows(hit):
    rows = np.array([[0, 1], [0, 2], [1, 2]] * 50)
    assert effective_size(np.full(150, hit), Parents(rows, np.zeros_like(rows))) == 3


# ---- definitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lam", "kind", "hits", "inside"),
    [
        (0.7, "contradicted", [False, True, True, False], [1, 1, 1, 1]),
        (0.7, "foreign", [False, False, True, False], [2, 2, 2, 1]),
        (0.5, "contradicted", [False, False, True, False], [2, 2, 2, 1]),
    ],
)
def test_contradicted_and_foreign(lam, kind, hits, inside):
    classes = np.array([[0, 1], [0, 1], [0, 1], [2, 2]])
    mixes = Mixes(
        "text", "any", "linear", lam, Parents(np.arange(8).reshape(4, 2), classes), {"x": np.array([0, 1, 2, 2])}
    )
    found, allowed = mixes.outside("x", kind)
    assert found.tolist() == hits
    assert allowed.tolist() == inside


# ---- the study ---------------------------------------------------------------------------------------------------


def test_a_study_has_rates_for_every_cell_and_resumes_to_the_same_bytes(tiny_pair_folder, train_file, tmp_path):
    out = tmp_path / "study"
    report = run_intrusion(str(train_file), str(out), config(tiny_pair_folder, judges="task+llm"))
    names = [observer["name"] for observer in report["observers"]]
    assert names == ["reference", "neighbour", "task", "llm", "agreement", "pool"]
    cells = {(r["space"], r["pairs"], r["interpolation"], r["lam"]) for r in report["rates"]}
    assert len(cells) == 2 * 2 * 3 * (len(LAMS) + 1)
    for rate in report["rates"]:
        wanted = {"embedding": 12, "text": 2}[rate["space"]] * (len(LAMS) - 1 if rate["lam"] is None else 1)
        assert rate["contradicted"]["n"] <= wanted
        if rate["observer"] in ("reference", "neighbour", "task"):
            assert rate["contradicted"]["n"] == wanted
            assert rate["contradicted"]["rate"] >= rate["foreign"]["rate"]
    # a row itself is what the reference was fitted to
    rows = [
        r for r in report["rates"] if r["lam"] == 1.0 and r["space"] == "embedding" and r["observer"] == "reference"
    ]
    assert len({r["contradicted"]["rate"] for r in rows if r["pairs"] == "cross-class"}) == 1
    counted = sum(
        r["contradicted"]["n"]
        for r in report["class_pairs"]
        if (r["space"], r["observer"]) == ("embedding", "reference")
    )
    assert counted == 12 * (len(LAMS) - 1)
    before = (out / "intrusion.json").read_bytes()
    kept = (out / "run" / "texts" / "cross-class-slerp-0.7.json").read_bytes()
    for gone in ("intrusion.json", "run/texts/same-class-linear-0.5.json", "run/judge.json"):
        (out / gone).unlink()
    run_intrusion(str(train_file), str(out), config(tiny_pair_folder, judges="task+llm"))
    assert (out / "intrusion.json").read_bytes() == before
    assert (out / "run" / "texts" / "cross-class-slerp-0.7.json").read_bytes() == kept
    with pytest.raises(InputError, match="other settings"):
        run_intrusion(str(train_file), str(out), config(tiny_pair_folder, mixes=13))


def test_the_command_prints_a_table_and_draws(tiny_pair_folder, train_file, tmp_path, capsys):
    arguments = [
        "intrusion",
        str(train_file),
        "-o",
        str(tmp_path / "study"),
        "--pair",
        tiny_pair_folder,
        "--shots",
        "4",
    ]
    arguments += [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "contradicted, by the reference" in shown
    assert all(f"{kind}: {meaning}" in shown for kind, meaning in KINDS.items())
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [path.rsplit("/", 1)[1] for path in report["pictures"]] == ["intrusion.png", "class_pairs.png"]
    # the reference learns from all rows if those beside the shots do not have every class twice
    assert report["observers"][0]["n"] == 6


def test_any_judge_may_look_and_embeddings_are_still_seen_by_the_task_model(tiny_pair_folder, train_file, tmp_path):
    report = run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, judges="llm", texts=1))
    assert [observer["name"] for observer in report["observers"]] == ["reference", "neighbour", "task", "llm"]
    assert report["observers"][2]["accuracy"] is None


def test_a_file_of_the_users_in_the_folder_stays(tiny_pair_folder, train_file, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "config.json").write_text("{}")
    run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, texts=0))
    assert (tmp_path / "s" / "config.json").read_text() == "{}"


def test_a_study_that_was_thrown_away_leaves_no_result(tiny_pair_folder, train_file, tmp_path, monkeypatch):
    run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, texts=0))
    (tmp_path / "s" / "intrusion.png").write_bytes(b"drawn")
    monkeypatch.setattr(intrusion, "warmed_up", None)
    with pytest.raises(TypeError):
        run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, texts=0, overwrite=True, seed=7))
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["intrusion.json", "intrusion.png", "class_pairs.png"])
def test_somebody_elses_picture_is_not_replaced(tiny_pair_folder, train_file, tmp_path, name):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}: is there already"):
        run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, texts=0))
    assert (tmp_path / "s" / name).read_text() == "mine"


def test_the_reference_does_not_learn_from_the_parents_where_others_are(tiny_pair_folder, tmp_path, examples):
    rows = [{"text": f"{e.text} {word}", "label": e.label} for e in examples for word in ("please", "now")]
    rows += [{"text": e.text, "label": e.label} for e in examples]
    full = write_jsonl(tmp_path / "full.jsonl", rows)
    some = write_jsonl(tmp_path / "some.jsonl", rows[-18:])
    small = config(tiny_pair_folder, texts=0, reference=str(full))
    report = run_intrusion(str(some), str(tmp_path / "a"), small)
    assert (report["observers"][0]["n"], report["reference_knows_the_parents"]) == (36, False)
    report = run_intrusion(str(some), str(tmp_path / "b"), config(tiny_pair_folder, texts=0))
    assert (report["observers"][0]["n"], report["reference_knows_the_parents"]) == (18, True)


@pytest.mark.parametrize("classes", [("delivery", "refund"), ("delivery", "refund", "account")])
def test_a_rare_class_stays_in_the_reference(tiny_pair_folder, tmp_path, examples, monkeypatch, classes):
    monkeypatch.setattr(intrusion, "REFERENCE_ROWS", 12)
    rows = [{"text": e.text, "label": e.label} for e in examples if e.label in classes[1:]]
    rows = [{**row, "text": f"{row['text']} {at}"} for at in range(20) for row in rows]
    rows += [{"text": e.text, "label": e.label} for e in examples if e.label == classes[0]][:3]
    train, seen = write_jsonl(tmp_path / "train.jsonl", rows), []
    real = intrusion.ReferenceLabeller
    monkeypatch.setattr(intrusion, "ReferenceLabeller", lambda h, names: seen.extend(names) or real(h, names))
    report = run_intrusion(str(train), str(tmp_path / "s"), config(tiny_pair_folder, texts=0))
    assert report["observers"][0]["n"] == len(seen) == 12
    assert seen.count(classes[0]) == 3
    assert set(seen) == set(classes)


def test_a_reference_that_lacks_a_class_is_refused(tiny_pair_folder, train_file, tmp_path):
    reference = write_jsonl(tmp_path / "full.jsonl", [{"text": "my parcel", "label": "delivery"}])
    with pytest.raises(InputError, match="no row of class 'account'"):
        run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, reference=str(reference)))


def test_class_names_are_no_formulas(tiny_pair_folder, tmp_path, examples):
    rows = [{"text": e.text, "label": r"a_$x^$" if e.label == "refund" else e.label} for e in examples]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    report = run_intrusion(str(train), str(tmp_path / "s"), config(tiny_pair_folder, texts=1))
    assert len(draw_intrusion(report, tmp_path)) == 2


def test_one_row_a_class_is_refused(tiny_pair_folder, train_file, tmp_path):
    with pytest.raises(InputError, match=r"no class has two rows.*give more rows or shots"):
        run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, shots=1))


def test_a_reference_with_unknown_classes_is_refused(tiny_pair_folder, train_file, tmp_path, capsys):
    reference = write_jsonl(tmp_path / "full.jsonl", [{"text": "hello there", "label": "greeting"}])
    arguments = ["intrusion", str(train_file), "-o", str(tmp_path / "s"), "--pair", tiny_pair_folder]
    assert main([*arguments, "--reference", str(reference)]) == 2
    assert "label 'greeting' does not occur in the training set" in capsys.readouterr().err


def test_no_row_is_the_neighbour_of_its_copy(tiny_pair_folder, tmp_path, examples):
    rows, found = [{"text": e.text, "label": e.label} for e in examples], []
    for times in (1, 2):
        train = write_jsonl(tmp_path / f"{times}.jsonl", rows * times)
        report = run_intrusion(str(train), str(tmp_path / str(times)), config(tiny_pair_folder, texts=0))
        found.append({one["name"]: one["accuracy"] for one in report["observers"]})
    assert found[0]["neighbour"] == found[1]["neighbour"] < 1
    assert found[0]["reference"] == found[1]["reference"]


def test_the_pictures_say_what_contradicted_means(tiny_pair_folder, train_file, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    said = []
    monkeypatch.setattr(Figure, "supxlabel", lambda _, text, **__: said.append(" ".join(text.split())))
    draw_intrusion(run_intrusion(str(train_file), str(tmp_path / "s"), config(tiny_pair_folder, texts=1)), tmp_path)
    assert len(said) == 2
    assert all(text.startswith(f"contradicted: {KINDS['contradicted']}") for text in said)


def class_pairs_figure(classes, counts, tmp_path, monkeypatch):
    """The heat map of these classes, of so many mixes of each pair."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    pairs = [
        {"space": "text", "observer": "reference", "classes": list(pair), "contradicted": {"n": n, "rate": 0.5}}
        for pair, n in counts.items()
    ]
    draw_intrusion({"classes": classes, "interpolation": "linear", "rates": RATES, "class_pairs": pairs}, tmp_path)
    drawn[-1].draw_without_rendering()
    return drawn[-1], drawn[-1].axes[0]


RATES = [
    {"space": "text", "pairs": "cross-class", "interpolation": "linear", "lam": 0.7, "observer": "reference",
     "contradicted": {"n": 9, "rate": 0.3, "low": 0.1, "high": 0.5}},
]  # fmt: skip


def test_a_class_pair_has_its_n_and_is_grey_if_that_is_small_and_hatched_if_it_is_none(tmp_path, monkeypatch):
    counts = {("a", "b"): 12, ("a", "c"): 9, ("b", "c"): 0}
    _, axes = class_pairs_figure(["a", "b", "c"], counts, tmp_path, monkeypatch)
    assert sorted(text.get_text() for text in axes.texts) == ["0.50\n12"] * 2 + ["0.50\n9"] * 2
    grey, diagonal, rates = (~np.ma.getmaskarray(image.get_array()) for image in axes.images)
    assert np.argwhere(grey).tolist() == [[0, 2], [2, 0]]
    assert np.argwhere(rates).tolist() == [[0, 1], [1, 0]]
    assert (diagonal == np.eye(3, dtype=bool)).all()
    assert axes.patch.get_hatch()  # what is left: b and c


def test_long_names_of_classes_and_control_characters_are_shortened_and_replaced(tmp_path, monkeypatch):
    names = ["one\ttwo \x07", "what the customer wants " * 5 + "first", "what the customer wants " * 5 + "second"]
    figure, axes = class_pairs_figure(names, {tuple(names[:2]): 12}, tmp_path, monkeypatch)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[0] == "one two \N{REPLACEMENT CHARACTER}"
    assert len(set(shown)) == 3
    assert max(map(len, shown)) <= 30
    width, height = figure.get_size_inches()
    assert axes.get_window_extent().width > 0.25 * width * figure.dpi
    assert axes.get_window_extent().height > 0.25 * height * figure.dpi


def test_of_many_classes_those_of_the_most_frequent_pairs_are_drawn_and_it_is_said(tmp_path, monkeypatch):
    names = [f"class {at}" for at in range(77)]
    counts = dict.fromkeys(itertools.combinations(names, 2), 1) | {("class 5", "class 70"): 40}
    figure, axes = class_pairs_figure(names, counts, tmp_path, monkeypatch)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert {"class 5", "class 70"} <= set(shown)
    assert len(shown) == 24
    assert "24 of 77 classes, those of the most frequent pairs" in " ".join(figure.get_supxlabel().split())
