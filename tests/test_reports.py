"""Reports: reconstruction by length and source, label retention, λ control, the model card."""

import dataclasses
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt

from conftest import write_jsonl
from inversedmixup import control, reconstruction
from inversedmixup.card import CARD, WORST, write_card
from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.mixing import INTERPOLATIONS, interpolate
from inversedmixup.models.pair import read_config
from inversedmixup.options import build
from inversedmixup.reference import ReferenceLabeller
from inversedmixup.stages.writer import DecodeConfig
from tiny import LABELS, SENTENCES

SCORES = {"token_f1", "bleu", "exact", "cosine", "n", "fluency"}


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "bucket"), [(1, "1-8"), (8, "1-8"), (9, "9-16"), (24, "17-24"), (40, "25-40"), (41, "41+"), (999, "41+")]
)
def test_length_buckets(words, bucket):
    assert reconstruction.length_bucket("a " * words) == bucket


def test_parts_of_a_report_add_up_to_the_whole():
    rng = torch.Generator().manual_seed(0)
    references = [" ".join(f"w{i}" for i in range(1 + 7 * (row % 4))) for row in range(20)]
    candidates = [text if row % 3 else "nothing alike" for row, text in enumerate(references)]
    found, wanted = torch.randn(20, 4, generator=rng), torch.randn(20, 4, generator=rng)
    fluency = np.linspace(-4, -2, 20)
    report = reconstruction.report(candidates, references, found, wanted, fluency, ["x", "y"] * 10)
    assert set(report) == {*SCORES, "by_length", "by_source"}
    for way in ("by_length", "by_source"):
        parts = report[way].values()
        assert sum(part["n"] for part in parts) == 20
        for name in ("token_f1", "exact", "cosine", "fluency"):
            assert sum(part["n"] * part[name] for part in parts) / 20 == pytest.approx(report[name], abs=1e-6)
    assert list(report["by_length"]) == ["1-8", "9-16", "17-24"]
    assert "by_source" not in reconstruction.report(candidates, references, found, wanted, fluency, [None] * 20)


def test_a_reference_labeller_knows_its_own_error_and_measures_retention():
    rng = np.random.default_rng(0)
    labels = ["a", "b"] * 60
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(60, 1)
    points = centres + 0.2 * torch.from_numpy(rng.standard_normal((120, 2))).float()
    labeller = ReferenceLabeller(points, labels)
    assert labeller.accuracy > 0.95
    assert labeller.retention(centres, centres) == 1.0
    assert labeller.retention(centres, centres.flip(1)) == 0.0
    noise = ReferenceLabeller(torch.from_numpy(rng.standard_normal((120, 2))).float(), labels)
    assert noise.accuracy < 0.7


def test_invert_reports_by_length_and_source_and_writes_the_card(tmp_path, capsys, tiny_pair, monkeypatch):
    monkeypatch.setitem(tiny_pair.config.training, "reports", {"old.jsonl": {"greedy": {"n": 3.0, "by_length": {}}}})
    tiny_pair.save(tmp_path / "pair", encoder=False)
    rows = [{"text": text, "source": "ab"[at % 2]} for at, text in enumerate(SENTENCES)]
    file = write_jsonl(tmp_path / "texts.jsonl", rows)
    train = write_jsonl(
        tmp_path / "t.jsonl", [{"text": t, "label": one} for t, one in zip(SENTENCES, LABELS, strict=True)]
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["invert", str(file), "--pair", "~/pair", "--evaluate", "--candidates", "2", "--record"]
    assert main([*command, "--max-tokens", "6", "--reference", str(train), "--json"]) == 0
    result = last_json(capsys)
    for way in ("greedy", "reranked"):
        assert set(result[way]) == {*SCORES, "decodes", "by_length", "by_source", "label_retention"}
        assert set(result[way]["by_source"]) == {"a", "b"}
    assert result["reference"]["n"] == len(SENTENCES)
    card, record = (tmp_path / "pair" / CARD, tmp_path / "pair" / "pair.json")
    shown = card.read_text(encoding="utf-8")
    assert f"| {tmp_path.name}/texts.jsonl | reranked |" in shown
    assert "| old.jsonl | greedy |" in shown  # a report of a version that kept no failures with it
    assert "came back as" not in shown
    assert not [text for text in SENTENCES if text in shown or text in record.read_text(encoding="utf-8")]
    assert main([*command, "--max-tokens", "6", "--record-worst"]) == 0
    shown = card.read_text(encoding="utf-8")
    assert f"The worst of {tmp_path.name}/texts.jsonl" in shown
    assert sum(text in shown for text in SENTENCES) == WORST
    assert main([*command[:4], "--max-tokens", "6", "--rows", "3"]) == 0  # the pair still loads


def test_the_shipped_card_is_what_its_record_gives(tmp_path):
    folder = files("inversedmixup") / "default_pair"
    write_card(tmp_path, read_config(folder))
    assert (tmp_path / CARD).read_bytes() == (folder / CARD).read_bytes()


def test_a_model_card_shows_names_and_sources_as_text(tmp_path, tiny_pair_folder):
    config = read_config(Path(tiny_pair_folder))
    scores = {"n": 1, "by_length": {}}
    config.training |= {
        "corpus": ["![x](http://evil/c.txt)"], "licences": {"[a](http://evil)": "**mine**\r| x"},
        "reports": {"__a__|`b`.jsonl": {"greedy": scores, "reference": {"n": 1, "accuracy": None}}},
    }  # fmt: skip
    write_card(tmp_path, dataclasses.replace(config, encoder="`enc`oder", llm="![l](http://evil)"))
    elements = MarkdownIt("commonmark").enable("table").parse((tmp_path / CARD).read_text(encoding="utf-8"))
    inline = [child for token in elements for child in token.children or []]
    assert not {"image", "strong", "em"} & {token.type for token in inline}
    assert [token.attrs["href"] for token in inline if token.type == "link_open"] == [
        "https://arxiv.org/abs/2601.21543"
    ]
    assert {"`enc`oder", "![l](http://evil)"} <= {token.content for token in inline if token.type == "code_inline"}
    shown = "".join(token.content for token in inline)
    for text in (
        "![x](http://evil/c.txt)",
        "[a](http://evil)",
        "**mine** | x",
        "Reference labeller of __a__|`b`.jsonl",
    ):
        assert text in shown


def test_a_reference_with_a_class_of_one_row_still_knows_its_error(tmp_path, capsys, tiny_pair_folder, corpus_file):
    points = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.5, 0.5]])
    assert ReferenceLabeller(points, ["a", "a", "b", "b", "c"]).accuracy == 1.0
    assert ReferenceLabeller(points[[0, 2]], ["a", "b"]).accuracy is None
    one_class = write_jsonl(tmp_path / "one.jsonl", [{"text": text, "label": "a"} for text in SENTENCES])
    command = ["invert", str(corpus_file), "--pair", tiny_pair_folder, "--evaluate", "--rows", "3", "--candidates", "1"]
    assert main([*command, "--reference", str(one_class)]) == 2
    assert "at least two classes" in capsys.readouterr().err
    rows = [{"text": text, "class": label} for text, label in zip(SENTENCES, LABELS, strict=True)]
    command += ["--reference", str(write_jsonl(tmp_path / "two.jsonl", rows)), "--label-column", "class"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "its own accuracy" in shown
    assert "came back as (greedy)" in shown
    assert "bleu: 0 to 100" in shown
    assert "1-8" in shown


def test_record_needs_a_pair_to_write_to(corpus_file, capsys):
    assert main(["invert", str(corpus_file), "--evaluate", "--record"]) == 2
    assert "--pair" in capsys.readouterr().err
    assert main(["invert", str(corpus_file), "--evaluate", "--record-worst"]) == 2
    assert "--record-worst needs --record" in capsys.readouterr().err


def test_lambda_control_counts_every_ratio_of_every_pair(tiny_pair):
    config = build(DecodeConfig, {"temperature": 0.0, "max_tokens": 6})
    report = control.lam_control(tiny_pair, SENTENCES, LABELS, config, 6)
    assert report["n"] == 66
    assert set(report["interpolations"]) == {"linear", "renormalised", "slerp"}
    linear = report["interpolations"]["linear"]
    assert [row["lam"] for row in linear["by_lam"]] == list(control.LAMS)
    assert report["spearman"] == linear["spearman"]
    assert {"spearman", "mean_abs_error", "snap_rate"} == set(linear["same-class"]) == set(linear["cross-class"])
    # both ends are the same point for every interpolation
    for end in (0, 10):
        ends = [figures["by_lam"][end]["lam_realised"] for figures in report["interpolations"].values()]
        assert max(ends) - min(ends) < 1e-3


@pytest.mark.parametrize(
    ("realised", "spearman", "error", "snaps"),
    [
        (lambda lam: lam, 1.0, 0.0, 0.0),
        (lambda lam: np.round(lam), 0.866, 0.227, 1.0),
        (lambda lam: 1 - lam, -1, 0.545, 0),
    ],
)
def test_headline_figures_of_known_strips(realised, spearman, error, snaps):
    lams = np.tile(control.LAMS, (5, 1))
    table = np.stack([lams, realised(lams), lams, lams], axis=-1)
    figures = control._headline(table)
    assert figures["spearman"] == pytest.approx(spearman, abs=0.01)
    assert figures["mean_abs_error"] == pytest.approx(error, abs=0.01)
    assert figures["snap_rate"] == snaps


def test_pairs_are_half_of_one_class_and_half_of_two():
    drawn, kinds = control._draw(LABELS, len(LABELS), 40, np.random.default_rng(0))
    same = np.array([LABELS[first] == LABELS[second] for first, second in drawn])
    assert (same == (kinds == "same-class")).all()
    assert same.sum() == 20
    assert (drawn[:, 0] != drawn[:, 1]).all()
    with pytest.raises(InputError, match="two classes"):
        control._draw(["a", "a"], 2, 1, np.random.default_rng(0))


def test_pairs_of_two_classes_are_found_among_many_rows_of_one():
    labels = ["a"] * 199_999 + ["b"]  # drawing until a pair fits would take some 200,000 attempts a pair
    drawn, kinds = control._draw(labels, len(labels), 400, np.random.default_rng(0))
    assert (np.sort(drawn[kinds == "cross-class"])[:, 1] == 199_999).all()
    assert (drawn[kinds == "same-class"] < 199_999).all()


def test_mix_evaluates_labelled_and_unlabelled_files(train_file, corpus_file, tmp_path, capsys, tiny_pair_folder):
    common = ["--pair", tiny_pair_folder, "--pairs", "3", "--temperature", "0", "--max-tokens", "5"]
    picture = tmp_path / "control.svg"
    assert main(["mix", "--evaluate", str(train_file), "--plot", str(picture), "--json", *common]) == 0
    result = last_json(capsys)
    assert {"spearman", "mean_abs_error", "snap_rate"} <= set(result)
    assert "cross-class" in result["interpolations"]["slerp"]
    assert picture.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert main(["mix", "--evaluate", str(corpus_file), *common]) == 0
    assert "Spearman" in capsys.readouterr().out
    assert main(["mix", "--evaluate", str(train_file), "--plot", str(picture), *common]) == 2
    assert "control.svg: is there already" in capsys.readouterr().err
    assert main(["mix", "--evaluate", str(train_file), "--plot", str(picture), "--overwrite", *common]) == 0
    capsys.readouterr()
    for wrong in (["mix", "a"], ["mix"], ["mix", "a", "b", "--evaluate", str(corpus_file)]):
        assert main([*wrong, "--pair", tiny_pair_folder]) == 2
        assert "two sentences" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [[None, ""], ["a", "b"], ["a", None]])
def test_mix_evaluates_a_file_whose_labels_are_empty_as_one_of_texts(tmp_path, monkeypatch, labels, capsys):
    given = []
    monkeypatch.setattr("inversedmixup.models.pair.PairOptions.load_pair", lambda _: None)
    monkeypatch.setattr("inversedmixup.commands.mix.lam_control", lambda _, *rows: given.append(rows[:2]) or {})
    monkeypatch.setattr("inversedmixup.commands.mix.show", lambda _: None)
    rows = [{"text": text, "label": labels[at % 2]} for at, text in enumerate(SENTENCES)]
    assert main(["mix", "--evaluate", str(write_jsonl(tmp_path / "t.jsonl", rows))]) == 0
    known = [(row["text"], row["label"]) for row in rows if row["label"]]
    assert given == [([text for text, _ in known], [label for _, label in known]) if known else (SENTENCES, None)]
    said = " ".join(capsys.readouterr().err.split())
    assert ("9 row(s) left out, no label" in said) == (labels == ["a", None])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a", "b", "--plot", "x.svg"], "--plot needs --evaluate"),
        (["a", "b", "--pairs", "9"], "--pairs needs --evaluate"),
        (["--evaluate", "FILE", "--train", "t.csv"], "--train does not go with --evaluate"),
        (["--evaluate", "FILE", "--pairs", "1"], "at least 2"),
        (["--evaluate", "FILE", "--plot", "x.xyz"], "end it in .png"),
        (["--evaluate", "FILE", "--plot", "/no/such/x.svg"], "there is no folder"),
    ],
)
def test_what_mix_cannot_do_is_refused_before_any_work(corpus_file, capsys, flags, message, monkeypatch):
    monkeypatch.setattr("inversedmixup.models.pair.Pair.load", None)
    assert main(["mix", *(str(corpus_file) if flag == "FILE" else flag for flag in flags)]) == 2
    assert message in capsys.readouterr().err


def test_every_interpolation_ends_at_the_parents_which_are_written_once(tiny_pair, monkeypatch):
    ends = torch.nn.functional.normalize(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    for how in INTERPOLATIONS:
        mixed = interpolate(ends[0], ends[1], torch.tensor([0.0, 1.0, 0.0]), how)
        assert torch.allclose(mixed, torch.stack([ends[1][0], ends[0][1], ends[1][2]]), atol=1e-5)
    real, asked = control.write_mixes, []

    def counted(pair, first, second, lam, *rest):
        asked.append(lam.tolist())
        return real(pair, first, second, lam, *rest)

    monkeypatch.setattr(control, "write_mixes", counted)
    control.lam_control(tiny_pair, SENTENCES, None, build(DecodeConfig, {"temperature": 0.0, "max_tokens": 6}), 2)
    inner = list(control.LAMS[1:-1])
    assert asked == [[*control.LAMS] * 2, inner * 2, inner * 2]


def test_a_report_replaces_its_own_picture_and_no_other(corpus_file, tiny_pair_folder, tmp_path, capsys):
    command = ["mix", "--evaluate", str(corpus_file), "--pairs", "2", "--max-tokens", "4", "--temperature", "0"]
    command += ["--pair", tiny_pair_folder, "--output", str(tmp_path / "control"), "--plot"]
    assert main([*command, str(tmp_path / "a.svg")]) == 0
    assert main([*command, str(tmp_path / "a.svg")]) == 0
    (tmp_path / "mine.svg").write_text("mine")
    assert main([*command, str(tmp_path / "mine.svg")]) == 2
    assert "mine.svg: is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.svg").read_text() == "mine"


def test_a_killed_lambda_report_goes_on_where_it_was(corpus_file, tiny_pair_folder, tmp_path, capsys, monkeypatch):
    command = ["mix", "--evaluate", str(corpus_file), "--pairs", "5", "--max-tokens", "6", "--candidates", "2"]
    command += ["--pair", tiny_pair_folder, "--json"]
    assert main(command) == 0
    whole = last_json(capsys)
    monkeypatch.setattr(control, "BLOCK", 2)
    real, written = control.write_mixes, []

    def killed(*arguments):
        written.append(1)
        if len(written) == 5:  # in the second interpolation
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(control, "write_mixes", killed)
    resumed = [*command, "--output", str(tmp_path / "report")]
    assert main(resumed) == 130
    assert main(resumed) == 0
    assert last_json(capsys) == whole
    assert len(written) == 5 + 5  # nine blocks, of which four were there
    assert json.loads((tmp_path / "report" / "control.json").read_text()) == whole
    assert main([*resumed, "--interpolation", "slerp"]) == 0  # written already
    assert last_json(capsys)["interpolation"] == "slerp"
    assert len(written) == 10
    assert main([*resumed, "--candidates", "1"]) == 2
    assert "other settings" in capsys.readouterr().err
