"""Paired comparisons: the numbers, what they say over sets, the verdict on one set, and the files."""

from __future__ import annotations

import itertools
import json
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inversedmixup.benchmark import statistics
from inversedmixup.benchmark.posterior import SPLITS
from inversedmixup.benchmark.ranks import rank
from inversedmixup.benchmark.report import write_report
from inversedmixup.benchmark.summary import summarise
from inversedmixup.benchmark.verdict import give_verdict, verdicts
from inversedmixup.errors import InputError

SETS = ("cr", "sst2", "trec")
GAINS = {"none": -0.002, "equal-steps": 0.0, "good": 0.04, "bad": -0.04}
differences = st.lists(st.integers(-30, 30).map(lambda rows: rows / 100), min_size=2, max_size=12)


def record(name="trec", method="equal-steps", split=0, accuracy=0.6, **other):
    return {
        "set": name, "shots": "10", "split": split, "protocol": "frozen", "method": method, "accuracy": accuracy,
        "macro_f1": 0.5, "ece": 0.1, "nll": 1.0, "recall": {}, "train": 60, "added": 0, "test": 500,
        "steps": 100, "seed": 0, "seconds": 1.0, **other,
    }  # fmt: skip


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    return [
        record(name, method, split, round(float(0.6 + gain + 0.01 * rng.standard_normal()), 3))
        for name, split, (method, gain) in itertools.product(SETS, range(10), GAINS.items())
    ]


@pytest.fixture(scope="module")
def summary(records):
    return summarise(records)


# --- the numbers


def test_as_many_test_rows_are_the_same_difference_whatever_their_rounding():
    right = {"equal-steps": [200, 210, 221, 233, 240, 251], "good": [203, 207, 224, 236, 243, 254]}  # of 376
    runs = [
        record("cr", method, split, round(rows / 376, 4), test=376)
        for method, all_rows in right.items()
        for split, rows in enumerate(all_rows)
    ]
    differences = np.array(right["good"]) - right["equal-steps"]
    assert set(abs(differences)) == {3}
    cell = summarise(runs)["sets"]["cr"]["10"]["frozen"]["good"]
    assert cell["p"] == statistics.wilcoxon_p(differences)


def test_tables_say_how_many_rows_a_method_added(tmp_path):
    runs = [record(split=split, method=name) for split in range(2) for name in ("equal-steps", "eda")]
    runs += [record(split=split, method="good", added=added) for split, added in enumerate((100, 1900))]
    del runs[1]["added"]  # an early run did not say
    del runs[3]["added"]
    write_report(runs, tmp_path)
    lines = (tmp_path / "tables.md").read_text(encoding="utf-8").splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    at = next(at for at, cells in enumerate(table) if cells[0] == "mean over sets")
    last = {cells[0]: cells[-1] for cells in table[at:]}
    assert last == {"mean over sets": "rows added", "equal-steps": "0", "eda": "–", "good": "1,000"}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=8))
def test_the_wilcoxon_test_is_exact_with_ties_and_zeros(rows):
    changed = np.array([row for row in rows if row])
    size = np.abs(changed)
    ranks = np.array([(size < each).sum() + ((size == each).sum() + 1) / 2 for each in size])
    sums = [np.dot(signs, ranks) for signs in itertools.product((-1, 1), repeat=len(changed))]
    seen = np.dot(np.sign(changed), ranks) if len(changed) else 0
    expected = min(1.0, 2 * min(np.mean(np.array(sums) >= seen), np.mean(np.array(sums) <= seen)))
    assert statistics.wilcoxon_p(np.array(rows) / 10) == pytest.approx(expected)


def test_equal_differences_tie_although_floats_differ():
    assert 0.3 - 0.1 != 0.5 - 0.3
    unequal = np.array([0.3 - 0.1, 0.3 - 0.5, 0.4])
    assert statistics.wilcoxon_p(unequal) == statistics.wilcoxon_p(np.array([0.2, -0.2, 0.4]))


def test_many_splits_take_the_table_or_the_approximation():
    from scipy.stats import wilcoxon

    many = np.random.default_rng(0).normal(0.01, 0.02, 30)
    assert statistics.wilcoxon_p(many) == pytest.approx(wilcoxon(many).pvalue)


@pytest.mark.parametrize("splits", [2, 3, 5, 8, 10])
def test_the_interval_covers_what_it_says_however_few_splits(splits):
    rng = np.random.default_rng(0)
    found = [statistics.interval_on_splits(rng.normal(0.02, 0.03, splits)) for _ in range(300)]
    covered = np.mean([low <= 0.02 <= high for low, high in found])
    assert 0.915 <= covered <= 0.98  # 0.95 ± 2.8 standard errors; plain percentiles cover 0.90


def test_intervals_over_sets_cover_whether_sets_differ_or_not():
    rng = np.random.default_rng(0)
    for between, sets in itertools.product((0.0, 0.03), (3, 7)):
        gains = rng.normal(0.02, np.hypot(between, 0.01), (1000, sets))
        found = np.array([statistics.interval_over_sets(each) for each in gains])
        assert 0.92 <= np.mean((found[:, 0] <= 0.02) & (found[:, 1] >= 0.02)) <= 0.98


def test_intervals_on_these_sets_cover_although_some_sets_spread_more():
    rng = np.random.default_rng(0)
    spreads, covered = np.array([0.005, 0.01, 0.04]), 0
    for _ in range(1000):
        draws = rng.normal([0.05, 0.0, -0.02], spreads, (10, 3)).T  # the sets differ, and stay the same three
        low, high = statistics.interval_on_sets(draws)
        covered += low <= 0.01 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_interval_on_one_set_is_that_of_student():
    from scipy import stats

    values = np.array([0.01, 0.05, 0.02, 0.04])
    low, high = statistics.interval_on_sets([values])
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, values.mean(), stats.sem(values)))


def test_one_split_or_one_set_has_no_interval():
    assert statistics.interval_on_sets([np.array([0.1, 0.2]), np.array([0.1])]) is None
    assert statistics.interval_on_sets([np.array([0.1, 0.1]), np.array([0.2, 0.2])]) is None
    assert statistics.interval_on_splits(np.array([0.1])) is None
    assert statistics.interval_over_sets([0.1, 0.1]) is None
    assert statistics.signed_rank([0.1, 0.2]) is None


def test_holm_adjusts_over_the_sets():
    adjusted = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert statistics.holm({}) == {}


def test_nothing_touches_the_global_generator(records):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (to see that nobody used it)
    first = summarise(records)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.rand()  # noqa: NPY002
    assert summarise(records) == first


# --- by set and over sets


def test_the_summary_says_who_helped_and_who_hurt(summary):
    over = summary["over_sets"]["10"]["frozen"]
    assert [over["good"][word] for word in ("helped", "hurt", "undecided")] == [3, 0, 0]
    assert [over["bad"][word] for word in ("helped", "hurt", "undecided")] == [0, 3, 0]
    assert over["none"]["undecided"] == 3
    gain = over["good"]["measures"]["accuracy"]
    assert gain["difference"] == pytest.approx(0.04, abs=0.01)
    for low, high in (gain["interval_on_these"], gain["interval"]):
        assert 0 < low < gain["difference"] < high
    assert over["good"]["probability"]["better"] > 0.9
    assert over["bad"]["probability"]["worse"] > 0.9
    cell = summary["sets"]["trec"]["10"]["frozen"]["good"]
    low, high = cell["measures"]["accuracy"]["interval"]
    assert low < cell["measures"]["accuracy"]["difference"] < high
    assert cell["p"] == pytest.approx(2 / 2**10)
    assert cell["p_holm"] >= cell["p"]
    assert "difference" not in summary["sets"]["trec"]["10"]["frozen"]["equal-steps"]["measures"]["accuracy"]


def test_only_shared_splits_are_compared():
    rows = [record(split=split) for split in range(4)]
    rows += [record(method="good", split=split, accuracy=0.7) for split in (2, 3, 9)]
    cell = summarise(rows)["sets"]["trec"]["10"]["frozen"]["good"]
    assert (cell["splits"], cell["paired_splits"]) == (3, 2)
    assert cell["measures"]["accuracy"]["difference"] == pytest.approx(0.1)


def test_seeds_of_a_split_count_once():
    rows = [record(split=split, seed=seed) for split in (0, 1) for seed in (0, 1, 2)]
    rows += [record(method="good", split=split, accuracy=0.7 + 0.01 * split) for split in (0, 1)]
    assert summarise(rows)["sets"]["trec"]["10"]["frozen"]["good"]["paired_splits"] == 2


def test_a_set_without_a_baseline_is_not_counted():
    over = summarise([record(method="good"), record(name="cr", method="good"), record(name="cr")])["over_sets"]
    good = over["10"]["frozen"]["good"]
    assert (good["sets"], good["compared_sets"], good["undecided"]) == (2, 1, 1)


def test_recall_of_rare_classes_is_compared_where_it_is_recorded():
    rows = [record(split=split, rare_recall=0.3) for split in range(3)]
    rows += [record(method="good", split=split, rare_recall=0.4) for split in range(3)]
    found = summarise(rows)["over_sets"]["10"]["frozen"]["good"]["measures"]["rare_recall"]
    assert found["difference"] == pytest.approx(0.1)
    assert "rare_recall" not in summarise([record(rare_recall=None)])["over_sets"]["10"]["frozen"]["equal-steps"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ([{"set": "trec"}], "no 'shots'"),
        ([record(nll=float("nan"))], "nll is nan"),
        ([record(accuracy=None)], "accuracy is None"),
        ([record(), record()], "there twice"),
    ],
)
def test_broken_records_are_refused_by_name(broken, said):
    with pytest.raises(InputError, match=said):
        summarise(broken)


def test_a_missing_extra_names_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "baycomp", None)
    with pytest.raises(InputError, match=r"baycomp; pip install baycomp"):
        summarise([record()])


# --- ranks


def test_ranks_put_the_most_accurate_first_and_share_ties():
    table = {m: dict.fromkeys("wxyz", acc) for m, acc in (("a", 0.7), ("b", 0.6), ("c", 0.6), ("d", 0.9))}
    found = rank(table)
    assert found.methods == ["d", "a", "b", "c"]
    assert found.ranks == [1, 2, 3.5, 3.5]
    # Demšar (2006), table 5: q = 2.569 for four methods
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 4)), abs=0.002)


def test_ranks_leave_out_as_little_as_gives_a_whole_table():
    table = {method: dict.fromkeys("wxyz", 0.5) for method in "abcd"}
    del table["a"]["w"], table["a"]["x"], table["a"]["y"], table["b"]["z"]
    found = rank(table)
    assert found.left_out[0] == "a"
    assert found.friedman_p == 1.0
    assert rank({method: {"x": 0.5, "y": 0.6} for method in "abcd"}) is None


# --- the verdict


def verdict(values, *, test=100, overlap=0.1, **other):
    return give_verdict("inversed", values, train=900, test=test, overlap=overlap, **other)


@settings(deadline=None)
@given(differences)
def test_swapping_the_methods_swaps_the_words(values):
    here, there = verdict(values), verdict([-value for value in values])
    swapped = {"helps": "hurts", "hurts": "helps"}
    assert there.word == swapped.get(here.word, here.word)
    assert (there.splits_needed, there.data_needed) == (here.splits_needed, here.data_needed)
    assert there.interval == pytest.approx((-here.interval[1], -here.interval[0]))
    assert sum(here.probability.values()) == pytest.approx(1)


@settings(deadline=None)
@given(differences, st.integers(2, 4))
def test_more_splits_of_the_same_kind_never_widen_the_interval(values, times):
    few, many = verdict(values), verdict(values * times)
    assert np.diff(many.interval) <= np.diff(few.interval)


def test_an_interval_holds_no_impossible_gain():
    assert verdict([0.3, -0.4]).interval == (-1.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(differences)
def test_what_is_said_to_be_needed_would_tell(values):
    found = verdict(values)
    if found.splits_needed:
        assert found.word == "cannot tell"
        spread = max(np.std(values, ddof=1), 1 / np.sqrt(12) / 100)
        count = found.splits_needed
        again = np.resize([-1.0, 1.0], count - count % 2)  # as many values with that mean and spread
        again = found.gain + again / np.std(again, ddof=1) * spread
        assert count < 4 or verdict(again).word != "cannot tell"


def test_the_posterior_is_that_of_the_correlated_t_test():
    import baycomp

    values = np.random.default_rng(0).normal(0.02, 0.02, 10)
    left, rope, right = baycomp.two_on_single(np.zeros(10), values, rope=0.01)
    assert list(verdict(values, overlap=1 / 10).probability.values()) == pytest.approx([left, rope, right])


def test_no_difference_makes_no_difference():
    assert verdict([0.0] * 10).word == "makes no difference"


def test_equal_differences_on_a_few_rows_are_no_certainty():
    assert verdict([0.05, 0.05], test=20, overlap=0.5).word == "cannot tell"
    assert verdict([0.05] * 10, test=200).word == "helps"


def test_the_sentence_says_how_much_and_how_sure():
    values = 0.03 + np.tile([-0.01, 0.01], 5)
    assert verdict(values).sentence() == (
        "inversed helps on your data: +3.0 points of accuracy over the same rows alone, trained as long (95 % interval "
        "+1.9 … +4.1; probability 1.00 that it is better by at least 1 point); 10 splits of 900 training and 100 test "
        "rows."
    )
    assert verdict(-values).sentence().startswith("inversed hurts on your data: −3.0 points")
    assert ": 0.0 points" in verdict([0.0001, -0.0001] * 5, test=10000).sentence()


def test_what_cannot_be_told_says_what_would_tell():
    few = verdict([0.05, 0.0, 0.04, 0.03], overlap=0.01)
    assert few.splits_needed > 4
    assert f"about {few.splits_needed} splits would tell" in few.sentence()
    shared = verdict([0.1, -0.02] * 5, overlap=0.5)
    assert shared.splits_needed is None
    assert "for they share rows" in shared.sentence()
    edge = verdict([0.02, 0.0] * 5)
    assert edge.data_needed is None
    assert "Not even a hundred times" in edge.sentence()
    for found in (few, shared, edge):
        assert "if gain and spread stay as they are" in found.sentence().lower()


def test_what_few_splits_need_is_said_for_as_many_as_anyone_would_run_and_in_round_numbers():
    few = verdict([0.05, -0.01, 0.02], overlap=0.2)
    spread = np.tile([-1.0, 1.0], 5)
    ten = verdict(few.gain + spread / np.std(spread, ddof=1) * 0.03, overlap=0.2)
    assert few.splits_needed is ten.splits_needed is None
    assert few.data_needed == ten.data_needed
    assert f"about {ten.data_needed:g} times the rows would, with 10 splits" in few.sentence()
    assert few.data_needed % 5 == 0
    assert (SPLITS[SPLITS > 20] % 5 == 0).all()


def test_one_split_and_splits_of_the_same_rows_cannot_tell():
    assert verdict([0.3]).word == "cannot tell"
    assert "One split shows no spread" in verdict([0.3]).sentence()
    assert "trained on the same rows" in verdict([0.3] * 10, overlap=1.0).sentence()
    json.dumps(verdict([0.3]).as_dict(), allow_nan=False)


def test_a_difference_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="no number"):
        verdict([0.1, float("nan")])
    with pytest.raises(InputError, match="no split was finished"):
        verdict([])


def test_verdicts_come_from_records_of_one_set(records):
    own = [each for each in records if each["set"] == "trec"]
    found = verdicts(own, overlap=0.1)
    assert [each.method for each in found] == ["good", "none", "bad"]
    assert [found[0].word, found[-1].word] == ["helps", "hurts"]
    assert (found[0].train, found[0].test, found[0].splits) == (60, 500, 10)
    with pytest.raises(InputError, match="one data set"):
        verdicts(records, overlap=0.1)


# --- the files


def test_the_same_records_in_any_order_give_the_same_bytes(records, tmp_path):
    shuffled = random.Random(1).sample(records, len(records))
    first, second = write_report(records, tmp_path / "a"), write_report(shuffled, tmp_path / "b")
    assert [path.name for path in first] == ["summary.json", "tables.md", "ranks-frozen-10.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert json.loads(first[0].read_text(encoding="utf-8"))["ranks"]["10"]["frozen"]["methods"][0] == "good"


def test_a_method_that_was_spared_a_hard_split_does_not_rank_higher(tmp_path):
    accuracies = {"equal-steps": 0.5, "good": 0.52, "spared": 0.51}
    records = [
        record(name, method, split, accuracy - 0.3 * (split == 9))
        for name, split, (method, accuracy) in itertools.product(SETS, range(10), accuracies.items())
        if (method, split) != ("spared", 9)
    ]
    summary = json.loads(write_report(records, tmp_path)[0].read_text(encoding="utf-8"))
    assert summary["sets"]["cr"]["10"]["frozen"]["spared"]["measures"]["accuracy"]["mean"] > 0.5
    assert summary["ranks"]["10"]["frozen"]["methods"] == ["good", "spared", "equal-steps"]


def test_splits_of_all_rows_have_neither_interval_nor_p(records, tmp_path):
    full = [{**each, "shots": "full"} for each in records]
    cell = summarise(full)["sets"]["cr"]["full"]["frozen"]["good"]
    assert cell["measures"]["accuracy"]["difference"] > 0.03
    assert cell["measures"]["accuracy"]["interval"] is None
    assert not {"p", "p_holm", "outcome"} & cell.keys()
    write_report(full, tmp_path)  # tables can do without them


def test_tables_show_losses_beside_gains_and_gaps_as_gaps(records, tmp_path):
    partial = [each for each in records if (each["set"], each["method"]) != ("cr", "bad")]
    partial = [each for each in partial if (each["set"], each["method"], each["split"]) != ("trec", "good", 9)]
    write_report(partial, tmp_path)
    lines = (tmp_path / "tables.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in reversed(lines) if line.startswith("| ")}
    assert [name for name in reversed(rows) if name in GAINS] == ["equal-steps", "good", "none", "bad"]
    assert rows["good"][3].endswith("▲ (n = 9)")
    assert rows["bad"][1] == "–"
    assert rows["bad"][2].startswith("−")
    assert rows["bad"][2].endswith("▼")
    assert "(2 sets)" in rows["bad"][4]
    assert rows["bad"][5].startswith("[−")  # on these two sets; two say nothing of others
    assert rows["bad"][6:8] == ["–", "0 / 2 / 0"]
