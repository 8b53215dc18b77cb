import dataclasses
import pickle

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from inversedmixup import InputError, InversedMixup
from inversedmixup.judges.tuned import TunedJudge
from inversedmixup.mixer import _dataset, _like, as_examples
from inversedmixup.models.pair import Pair
from inversedmixup.models.word_head import WordHead
from inversedmixup.row_file import RowFile
from inversedmixup.schema import Row
from tiny import LABELS, SENTENCES

QUICK = {"task_steps": 3, "follow_steps": 2, "refine_steps": 1, "tolerance": 1.0}
LOOSE = {
    "min_cycle": -1.0, "fluency_margin": 99.0, "accept_labels": "any", "candidates": 1, "max_tokens": 6,
    "labels": "soft", "pairs": "same-class",
}  # fmt: skip


@pytest.fixture
def mixer(tiny_pair_folder):
    return InversedMixup.from_pretrained(tiny_pair_folder)


def test_fit_and_augment_give_a_data_set(mixer):
    rows = mixer.fit(SENTENCES, LABELS, **QUICK).augment(n=12, lam="beta:0.4", **LOOSE)
    assert isinstance(rows, datasets.Dataset)
    assert len(rows) == 12
    assert mixer.classes_ == sorted(set(LABELS))
    assert mixer.result_.summary["kept"] == 12


def test_augment_accepts_lambda_as_a_number_and_refuses_an_unknown_option(mixer):
    mixer.fit(SENTENCES, LABELS, **QUICK)
    assert set(mixer.augment(n=4, lam=0.5, **LOOSE)["lam"]) == {0.5}
    with pytest.raises(InputError, match="unknown option 'lambda_'"):
        mixer.augment(n=4, lambda_=0.5)


def test_the_default_mixes_across_classes_and_asks_the_tuned_judge(mixer):
    mixer.fit(SENTENCES, LABELS, **QUICK)
    loose = {name: value for name, value in LOOSE.items() if name not in ("labels", "pairs")}
    rows = mixer.augment(n=12, force_judge=True, judge_steps=2, **loose)
    label_of = {str(at): label for at, label in enumerate(LABELS)}
    assert all(label_of[first] != label_of[second] for first, second in rows["parents"])
    assert all(0.5 <= lam <= 0.8 for lam in rows["lam"])
    assert rows["label"] == [labels["pool"] for labels in rows["labels"]]
    assert mixer.result_.summary["judge"]["name"] == "task+tuned"


def test_the_callers_random_state_is_left_alone(tiny_encoder, tiny_llm, tmp_path):
    pair = Pair.fresh(tiny_encoder, tiny_llm, soft_tokens=2, hidden=16, layers=1, lora=2, encoder_lora=2)
    words = [pair.llm.ids(text) for text in SENTENCES]
    pair.word_head = WordHead.for_texts(words, embedding_dim=24, vocabulary=pair.llm.vocabulary, seed=0)
    pair.save(tmp_path, encoder=False)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    mixer = InversedMixup.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    mixer.fit(SENTENCES, LABELS, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    mixer.augment(n=4, **LOOSE | {"labels": "pool:task+tuned"}, judge_steps=2, force_judge=True)
    mixer.label(SENTENCES[:4], judge_steps=2, force_judge=True)
    mixer.save_pretrained(tmp_path / "fitted")
    InversedMixup.from_pretrained(tmp_path / "fitted")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_strip_has_a_seed_of_its_own(mixer, tiny_pair_folder):
    given = {"temperature": 1.5, "candidates": 1, "max_tokens": 6}
    strips = [mixer.mix(*SENTENCES[:2], seed=seed, **given)["text"] for seed in (0, 5)]
    other = InversedMixup.from_pretrained(tiny_pair_folder, seed=5)
    assert strips[0] != strips[1] == other.mix(*SENTENCES[:2], **given)["text"]


def test_augment_before_fit_says_what_to_do(mixer):
    with pytest.raises(InputError, match="call fit"):
        mixer.augment(n=3)


def test_setting_no_parameter_keeps_the_fit(mixer):
    mixer.fit(SENTENCES, LABELS, **QUICK)
    fitted = mixer.models_
    assert mixer.set_params() is mixer
    assert mixer.models_ is fitted
    assert len(mixer.augment(n=2, **LOOSE)) == 2


def test_fitting_twice_equals_fitting_once(mixer):
    once = mixer.fit(SENTENCES, LABELS, **QUICK).augment(n=8, **LOOSE)["text"]
    twice = mixer.fit(SENTENCES, LABELS, **QUICK).augment(n=8, **LOOSE)["text"]
    assert list(once) == list(twice)


def test_mix_walks_from_the_first_sentence_to_the_second(mixer):
    strip = mixer.mix(SENTENCES[0], SENTENCES[6], steps=5)
    assert strip["lam"][:] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert "label_probs" not in strip.column_names
    mixer.fit(SENTENCES, LABELS, **QUICK)
    row = mixer.mix(SENTENCES[0], SENTENCES[6], lams=[0.3])[0]
    assert sum(row["label_probs"].values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("bad", [{"steps": 1}, {"lams": [1.5]}, {"lams": []}])
def test_a_bad_strip_is_refused(mixer, bad):
    with pytest.raises(InputError):
        mixer.mix("a b", "c d", **bad)


IMBALANCED = SENTENCES[:6] + SENTENCES[6:9] + SENTENCES[12:14]
TAGS = ["delivery"] * 6 + ["refund"] * 3 + ["account"] * 2


@pytest.mark.parametrize("kind", ["list", "tuple", "array", "column", "series", "frame"])
def test_fit_resample_adds_to_the_rare_classes_and_keeps_the_types(tiny_pair_folder, kind):
    X = {
        "list": IMBALANCED, "array": np.array(IMBALANCED), "column": np.array(IMBALANCED)[:, None],
        "series": pd.Series(IMBALANCED), "frame": pd.DataFrame({"t": IMBALANCED}), "tuple": tuple(IMBALANCED),
    }[kind]  # fmt: skip
    y = pd.Series(TAGS) if kind in ("series", "frame") else np.array(TAGS) if kind in ("array", "column") else TAGS
    mixer = InversedMixup(tiny_pair_folder, options={**QUICK, **LOOSE})
    new_X, new_y = mixer.fit_resample(X, y)
    assert type(new_X) is type(X)
    assert type(new_y) is type(y)
    assert len(new_X) == len(new_y) > len(IMBALANCED)
    counts = pd.Series(list(new_y)).value_counts()
    assert counts.max() == 6
    assert (np.asarray(new_X).ravel()[: len(IMBALANCED)] == np.array(IMBALANCED)).all()


def test_classes_that_stay_short_of_rows_are_named(tiny_pair_folder, caplog):
    InversedMixup(tiny_pair_folder, options={**QUICK, **LOOSE, "min_words": 99}).fit_resample(IMBALANCED, TAGS)
    assert "classes are left without as many rows as others: refund: 3, account: 4" in caplog.text


def test_a_judge_refused_in_a_later_round_costs_no_row_of_an_earlier_one(tiny_pair_folder, monkeypatch, caplog):
    mixer = InversedMixup(tiny_pair_folder, options={**QUICK, **LOOSE, "tries": 1.0})
    augment, rounds = InversedMixup._augment, []

    def once(self, n, options, attempt=0):
        rounds.append(n)
        if len(rounds) > 1:
            raise InputError("the judge is not to be trusted")
        return augment(self, 1, options, attempt)

    monkeypatch.setattr(InversedMixup, "_augment", once)
    _, new_y = mixer.fit_resample(IMBALANCED, TAGS)
    assert len(rounds) == 2
    assert len(new_y) == len(TAGS) + 1
    assert "round 2: the judge is not to be trusted; what earlier rounds made stays" in caplog.text


def test_integer_labels_come_back_as_integers(tiny_pair_folder):
    mixer = InversedMixup(tiny_pair_folder, options={**QUICK, **LOOSE})
    numbers = np.array([0] * 6 + [1] * 3 + [2] * 2)
    _, new_y = mixer.fit_resample(IMBALANCED, numbers)
    assert new_y.dtype == numbers.dtype


@pytest.mark.parametrize("kind", ["category", "int8", "string"])
def test_a_series_of_labels_comes_back_as_one_of_its_kind(kind):
    template = pd.Series(["1", "2", "2"]).astype(kind)
    assert _like(template, [*template, template[0]]).dtype == template.dtype


def test_it_works_in_an_imbalanced_learn_pipeline(tiny_pair_folder):
    from imblearn.pipeline import make_pipeline
    from sklearn.base import clone
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    mixer = InversedMixup(tiny_pair_folder, options={**QUICK, **LOOSE})
    model = make_pipeline(mixer, CountVectorizer(), LogisticRegression())
    model.fit(IMBALANCED, TAGS)
    assert set(model.predict(IMBALANCED)) <= set(TAGS)
    assert clone(mixer).get_params() == mixer.get_params()


def test_a_saved_mixer_loads_with_its_head(mixer, tmp_path):
    mixer.fit(SENTENCES, LABELS, **QUICK)
    mixer.save_pretrained(tmp_path / "mine")
    again = InversedMixup.from_pretrained(tmp_path / "mine")
    ours, theirs = (m.models_.task_model for m in (mixer, again))
    assert torch.allclose(ours.encode(SENTENCES), theirs.encode(SENTENCES), atol=1e-6)
    assert np.allclose(
        ours.predict_proba(ours.encode(SENTENCES)), theirs.predict_proba(theirs.encode(SENTENCES)), atol=1e-5
    )
    files = {path.suffix for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".txt", ".jinja"}


def test_head_only_warm_up_leaves_the_encoder_alone(mixer):
    before = mixer.models_.task_model.encode(SENTENCES)
    mixer.fit(SENTENCES, LABELS, **QUICK, train_encoder="head")
    assert torch.equal(before, mixer.models_.task_model.encode(SENTENCES))


def test_fitting_learns_the_labels(mixer):
    mixer.fit(
        SENTENCES, LABELS, **{**QUICK, "task_steps": 80, "head_learning_rate": 0.05, "encoder_learning_rate": 1e-3}
    )
    assert mixer.warmup_["train_accuracy"] > 0.9


def test_a_failed_fit_leaves_no_half_trained_models_behind(mixer):
    before = mixer.models_.task_model.encode(SENTENCES)
    with pytest.raises(InputError, match="spoilt reconstruction"):
        mixer.fit(SENTENCES, LABELS, **{**QUICK, "tolerance": -2.0})
    assert torch.equal(mixer.models_.task_model.encode(SENTENCES), before)
    with pytest.raises(InputError, match="call fit"):
        mixer.augment(n=3)


def test_a_pair_with_a_trained_encoder_survives_saving_before_any_fit(tiny_encoder, tiny_llm, tmp_path):
    from inversedmixup.models.pair import Pair

    fresh = Pair.fresh(tiny_encoder, tiny_llm, soft_tokens=2, hidden=8, layers=1, encoder_lora=2)
    fresh.save(tmp_path / "trained", encoder=False)
    InversedMixup.from_pretrained(tmp_path / "trained").save_pretrained(tmp_path / "copy")
    copied = InversedMixup.from_pretrained(tmp_path / "copy")
    assert torch.allclose(copied.models_.task_model.encode(SENTENCES), fresh.task_model.encode(SENTENCES), atol=1e-6)


def test_a_fit_makes_and_measures_a_judge_once(mixer, examples, monkeypatch):
    made = []
    tuned = TunedJudge._tuned
    monkeypatch.setattr(TunedJudge, "_tuned", lambda self, *how: made.append(0) or tuned(self, *how))
    options = {"judge_steps": 2, "force_judge": True, "labels": "pool:task+tuned"}
    texts, labels = [e.text for e in examples], [e.label for e in examples]
    mixer.fit(texts, labels, task_steps=2, follow_steps=0, refine_steps=0)
    first = mixer.augment(4, **options)["text"]
    copies = len(made)
    assert copies > 1  # one to ask, and others to measure it by
    assert mixer.augment(4, **options)["text"] == first
    mixer.label(["where is my parcel now"], judge_steps=2, force_judge=True, api_concurrency=5)
    assert len(made) == copies
    pickle.loads(pickle.dumps(mixer))
    mixer.augment(4, **{**options, "judge_steps": 3})
    assert len(made) == 2 * copies


def test_to_fit_a_fitted_pair_is_worth_a_warning(mixer, examples, tmp_path, caplog):
    texts, labels = [e.text for e in examples], [e.label for e in examples]
    mixer.fit(texts, labels, task_steps=2, follow_steps=0, refine_steps=0).save_pretrained(tmp_path / "fitted")
    assert "fitted to labelled rows" not in caplog.text
    again = InversedMixup.from_pretrained(tmp_path / "fitted")
    with pytest.raises(InputError, match="which a saved pair does not hold: call fit"):
        again.augment(4)
    again.fit(texts, labels, task_steps=2, follow_steps=0, refine_steps=0, tolerance=1.0)
    assert "has been fitted to labelled rows: whatever is measured on those rows flatters, judges too" in caplog.text


def test_an_unknown_parameter_changes_none(mixer, tiny_pair_folder):
    models = mixer.models_
    with pytest.raises(InputError, match="InversedMixup has no parameter 'bogus'"):
        mixer.set_params(pair="/nowhere", bogus=1)
    assert (mixer.pair, mixer.models_) == (tiny_pair_folder, models)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lamm": "0.5"}, "unknown option 'lamm'"),
        ({"lam": "much"}, "much"),
        ({"max_tokens": "x"}, "max_tokens: "),
        ({"n": 300}, "options: n is not to be chosen"),
    ],
)
def test_options_of_a_resampler_are_refused_before_the_fit(tiny_pair_folder, monkeypatch, options, said):
    monkeypatch.setattr(InversedMixup, "fit", None)
    with pytest.raises(InputError, match=said):
        InversedMixup(tiny_pair_folder, options={**QUICK, **options}).fit_resample(IMBALANCED, TAGS)


@pytest.mark.parametrize("form", ["numpy", "torch", None])
def test_a_data_set_of_any_format_is_read_as_it_is(form):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["one", "two", "three"], "label": [0, 1, 1]}, features=features)
    assert [row.label for row in as_examples(rows.with_format(form))] == ["no", "yes", "yes"]


@pytest.mark.parametrize("y", [pd.DataFrame({"y": [1, 0, 1]}), np.array([[1], [0], [1]]), pd.Series([1, 0, 1])])
def test_labels_may_be_a_column(y):
    assert [row.label for row in as_examples(["one", "two", "three"], y)] == ["1", "0", "1"]


def test_the_types_of_columns_do_not_depend_on_what_the_rows_hold(mixer, tmp_path):
    mixer.fit(SENTENCES, LABELS, **QUICK)
    quick = {"judge_steps": 2, "force_judge": True}
    soft, pool, none = (
        mixer.augment(n=4, **{**LOOSE, "tries": 1.0, **more})
        for more in ({}, {"labels": "pool:task+tuned", **quick}, {"min_words": 99})
    )
    assert (len(soft), len(pool), len(none)) == (4, 4, 0)
    assert soft.features == pool.features == none.features
    assert soft.features["labels"]["probe"] == soft.features["reject_reason"] == datasets.Value("string")
    with RowFile(tmp_path / "rows.parquet", mixer.classes_) as file:
        file.write(dataclasses.asdict(mixer.result_.rejected[0]))
    soft.to_parquet(tmp_path / "soft.parquet")
    pool.to_parquet(tmp_path / "pool.parquet")
    files = [str(tmp_path / f"{name}.parquet") for name in ("soft", "pool", "rows")]
    assert len(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))) == 9
    labelled = mixer.label(["where is my box", "refund me today"], labels="pool:task+tuned", **quick)
    assert labelled.features == mixer.label(SENTENCES[:1], labels="pool:task", **quick).features


def test_no_rows_are_a_data_set_with_columns():
    rows = _dataset([], ["a", "b"], Row)
    assert rows.column_names == [field.name for field in dataclasses.fields(Row)]
    assert list(rows["text"]) == []
