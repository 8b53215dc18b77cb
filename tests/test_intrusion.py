import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import write_jsonl
from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.intrusion import LAMS, IntrusionConfig, Mixes, run_intrusion
from inversedmixup.rates import Observer, seen

SMALL = {
    "mixes": 12, "texts": 2, "candidates": 2, "max_tokens": 8, "task_steps": 2, "follow_steps": 1, "refine_steps": 1,
    "tolerance": 1.0,
}  # fmt: skip


def config(pair, **changes):
    return IntrusionConfig(pair=pair, **{**SMALL, **changes})


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
    found = seen(hits, np.full(n, inside), classes, Observer("x", accuracy, n))
    assert found["corrected"] == pytest.approx(share, abs=0.002)
    assert found["corrected_low"] - 0.01 <= share <= found["corrected_high"] + 0.01
    assert found["low"] <= found["rate"] <= found["high"]


def test_an_observer_at_chance_gives_no_corrected_share():
    hits = np.array([True, False])
    assert seen(hits, np.ones(2), 4, Observer("x", 0.25, 9))["corrected"] is None
    assert seen(hits, np.ones(2), 4, Observer("x", None, 0))["corrected"] is None
    assert seen(hits[:0], np.ones(0), 4, Observer("x", 0.9, 9))["rate"] is None


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
    parents = np.array([[0, 1], [0, 1], [0, 1], [2, 2]])
    mixes = Mixes("text", "any", "linear", lam, parents, {"x": np.array([0, 1, 2, 2])})
    found, allowed = mixes.outside("x", kind)
    assert found.tolist() == hits
    assert allowed.tolist() == inside


# ---- the study ---------------------------------------------------------------------------------------------------


def test_a_study_has_rates_for_every_cell_and_resumes_to_the_same_bytes(tiny_pair_folder, train_file, tmp_path):
    out = tmp_path / "study"
    report = run_intrusion(str(train_file), str(out), config(tiny_pair_folder, judges="task+llm"))
    names = [observer["name"] for observer in report["observers"]]
    assert names == ["reference", "neighbour", "task", "llm", "agreement"]
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
    kept = (out / "texts" / "cross-class-slerp-0.7.json").read_bytes()
    for gone in ("intrusion.json", "texts/same-class-linear-0.5.json", "judge.json"):
        (out / gone).unlink()
    run_intrusion(str(train_file), str(out), config(tiny_pair_folder, judges="task+llm"))
    assert (out / "intrusion.json").read_bytes() == before
    assert (out / "texts" / "cross-class-slerp-0.7.json").read_bytes() == kept
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
    assert "contradicted, by the reference" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [path.rsplit("/", 1)[1] for path in report["pictures"]] == ["intrusion.png", "class_pairs.png"]
    assert report["observers"][0]["n"] == 18  # the reference sees all rows, not only the shots


def test_a_reference_with_unknown_classes_is_refused(tiny_pair_folder, train_file, tmp_path, capsys):
    reference = write_jsonl(tmp_path / "full.jsonl", [{"text": "hello there", "label": "greeting"}])
    arguments = ["intrusion", str(train_file), "-o", str(tmp_path / "s"), "--pair", tiny_pair_folder]
    assert main([*arguments, "--reference", str(reference)]) == 2
    assert "label 'greeting' does not occur in the training set" in capsys.readouterr().err
