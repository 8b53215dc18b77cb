"""The report and the dataset card: right figures, hostile text shown as text, nothing fetched."""

import dataclasses
import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from conftest import write_jsonl
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.cli import _parser, main
from inversedmixup.commands import resolve
from inversedmixup.errors import InputError
from inversedmixup.escapes import CONTROLS, code, code_block, markdown
from inversedmixup.options import build
from inversedmixup.provenance import command_line
from inversedmixup.report.dataset_card import write_dataset_card
from inversedmixup.report.evidence import gather, near_copies
from inversedmixup.report.page import grid, most_intruded, render
from inversedmixup.report.results import RunResults, is_run, read_run
from inversedmixup.row_file import RowFile, iter_rows
from inversedmixup.schema import SOURCES, Example, Row
from test_augment_job import QUICK
from test_cli import refused
from tiny import LABELS, SENTENCES

HOSTILE = [
    "<script>alert('one')</script> and more", "\"quoted\" & 'quoted' <b onclick=x()>bold</b>",
    "مرحبا بالعالم الطرد متأخر",
    "🎉 emoji 👩‍👩‍👧 and ☕", "${1+1} {{7*7}} {% raw %} `tick`", "</td></table><img src=x onerror=alert(2)>",
]  # fmt: skip


def make_row(number, **changes):
    values = {
        "id": f"aug-{number}", "text": f"text number {number}", "label": "a", "label_probs": {"a": 0.7, "b": 0.3},
        "parents": ["0", "1"], "lam": 0.7, "lam_realised": 0.6, "cycle_similarity": 0.8, "fluency": -3.0,
        "labels": {**dict.fromkeys(SOURCES), "soft": "a", "task": "a"}, "intruded": False, "seed": 0,
    }  # fmt: skip
    return Row(**{**values, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_pair_folder):
    folder = tmp_path_factory.mktemp("run")
    train = write_jsonl(
        folder / "train.jsonl",
        [
            {"text": text, "label": label}
            for at in range(3)
            for text, label in zip(HOSTILE, ["a", "b<i>"] * 3, strict=True)
        ],
    )
    run_augment_job(
        str(train),
        str(folder / "out.jsonl"),
        build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder, "pairs": "any"}),
    )
    return folder


class Tags(HTMLParser):
    """The elements, the addresses and the visible text of a page."""

    def __init__(self, page):
        super().__init__()
        self.found, self.addresses, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_augment_writes_report_and_card_beside_its_output(run):
    assert (run / "out.report.html").is_file()
    assert (run / "README.md").is_file()


def test_the_report_needs_no_network_and_shows_hostile_text_as_text(run):
    results = read_run(run / "out.jsonl")
    rows = [make_row(at, text=text, label="b<i>", parents=["0", "1"]) for at, text in enumerate(HOSTILE)]
    rows += [make_row(at + 50, text=text, kept=False, reject_reason="empty") for at, text in enumerate(HOSTILE[:2])]
    page = Tags(render(results, gather(results.examples, rows)))
    assert not {"script", "img", "b", "link", "iframe"} & page.found
    assert page.addresses == []
    for text in HOSTILE:
        assert text in page.text


def test_a_run_is_found_from_within(run, monkeypatch):
    monkeypatch.chdir(run / "out.jsonl.run")
    assert read_run(".").output == run / "out.jsonl"
    assert not is_run("/")


def test_a_name_that_no_file_can_have_is_one_line(capsys, tmp_path):
    line = refused(capsys, "report", "x" * 300, "-o", tmp_path / "r.html")
    assert "File name too long" in line


def test_the_report_counts_what_the_files_hold(run):
    results = read_run(run / "out.jsonl.run")
    evidence = gather(results.examples, results.rows())
    assert evidence.labels["kept"].total() == results.summary["kept"]
    assert evidence.labels["rejected"].total() == results.summary["tried"] - results.summary["kept"]
    assert sum(pair.tried for pair in evidence.pairs.values()) == results.summary["tried"]
    rate = sum(pair.intruded for pair in evidence.pairs.values()) / results.summary["tried"]
    assert rate == pytest.approx(results.summary["intrusion_rate"], abs=1e-3)


def test_report_and_card_say_how_many_rows_were_asked_for(run):
    summary = read_run(run / "out.jsonl").summary
    asked, tried = summary["asked"], summary["tried"]
    assert asked == QUICK["n"]
    page = (run / "out.report.html").read_text(encoding="utf-8")
    assert f"<dt>kept, of {asked} asked for</dt><dd>{summary['kept']}</dd>" in page
    assert f"{asked} were asked for, {tried} tried, " in (run / "README.md").read_text(encoding="utf-8")


def test_the_verdict_of_a_benchmark_is_shown(run, capsys):
    arguments = ["report", str(run / "out.jsonl"), "-o", str(run / "again.html"), "--benchmark", str(run / "bench")]
    assert "no verdict" in (run / "out.report.html").read_text(encoding="utf-8")
    assert main(arguments) == 2
    assert "no finished benchmark there" in capsys.readouterr().err
    (run / "bench").mkdir()
    (run / "bench" / "benchmark.json").write_text(json.dumps({"verdicts": ["helps < by two points"]}), encoding="utf-8")
    assert main(arguments) == 0
    assert "helps &lt; by two points" in (run / "again.html").read_text(encoding="utf-8")


def reported(run, capsys, benchmark):
    """The verdict and the comparison in the report of a run with this ``benchmark.json``, or why it was refused."""
    (run / "bench").mkdir(exist_ok=True)
    (run / "bench" / "benchmark.json").write_text(json.dumps(benchmark), encoding="utf-8")
    page = run / "again.html"
    if main(["report", str(run / "out.jsonl"), "-o", str(page), "--benchmark", str(run / "bench")]):
        return capsys.readouterr().err.strip()
    found = re.search(
        r'<p class="verdict">(.*?)</p>(?:\s*<p class="soft">(For comparison.*?)</p>)?', page.read_text("utf-8")
    )
    return [" ".join(re.sub("<.*?>", "", part or "").split()) for part in found.groups()]


@pytest.fixture
def bench(run):
    """What ``benchmark`` writes on the rows of the run, with the settings of the run."""
    settings, made = read_run(run / "out.jsonl").settings, read_run(run / "out.jsonl").provenance
    methods = {"duplicate": "duplicate helps.", "inversed": "inversed hurts."}
    return {
        "verdicts": list(methods.values()),
        "methods": {name: {"verdict": {"sentence": sentence}} for name, sentence in methods.items()},
        "inputs_sha256": settings["inputs_sha256"], "train_sha256": made["train_sha256"],
        "settings": {name: value for name, value in settings.items() if name not in ("places", "shots")},
    }  # fmt: skip


def test_the_verdict_on_the_runs_own_method_comes_first(run, capsys, bench):
    verdict, others = reported(run, capsys, bench)
    assert verdict == "Verdict of the benchmark: inversed hurts."
    assert others == "For comparison, other methods: duplicate helps."


def test_a_benchmark_without_the_runs_own_method_is_no_verdict_on_it(run, capsys, bench):
    del bench["methods"]["inversed"], bench["verdicts"][1]
    verdict, others = reported(run, capsys, bench)
    assert "did not run inversed" in verdict
    assert "duplicate helps." not in verdict
    assert "duplicate helps." in others


def test_a_benchmark_of_other_rows_is_refused(run, capsys, bench):
    line = reported(run, capsys, {**bench, "inputs_sha256": "another", "train_sha256": "another"})
    assert "is a benchmark of other rows than the run's" in line.splitlines()[-1]
    # of some rows of the same file: with --shots
    assert reported(run, capsys, {**bench, "inputs_sha256": "another"})[0].startswith("Verdict of the benchmark")


def test_settings_of_a_benchmark_that_differ_are_named_where_they_matter(run, capsys, bench):
    files = {**bench["settings"]["files_sha256"], "unlabelled": "another", "adaptor.safetensors": "another"}
    changes = {"n": 100, "seed": 9, "dtype": "bfloat16", "text_column": "body", "files_sha256": files, "correct": 3}
    verdict, _ = reported(run, capsys, {**bench, "settings": {**bench["settings"], **changes}})
    note = "other settings: another pair, another unlabelled, correct 3 (here 0), n 100 (here 40)."
    assert verdict.endswith(note)


def test_a_benchmark_of_an_earlier_version_cannot_tell_whether_it_is_about_the_same_rows(run, capsys, bench):
    verdict, _ = reported(run, capsys, {name: bench[name] for name in ("verdicts", "methods")})
    assert verdict.startswith("Verdict of the benchmark: inversed hurts. ")
    assert "whether it is about the same rows and settings cannot be told" in verdict


@pytest.mark.parametrize(
    "content", ['{"verdicts": 3}', "{", "[]", '{"methods": {"inversed": 3}}', '{"train_sha256": 1}']
)
def test_a_damaged_benchmark_is_told_with_what_mends_it(run, capsys, content):
    (run / "broken").mkdir(exist_ok=True)
    (run / "broken" / "benchmark.json").write_text(content)
    command = ["report", str(run / "out.jsonl"), "-o", str(run / "x.html"), "--benchmark", str(run / "broken")]
    assert main(command) == 2
    assert "benchmark" in (line := capsys.readouterr().err.strip().splitlines()[-1])
    assert "augment" not in line


def test_intrusion_is_counted_by_the_classes_of_the_parents():
    examples = [Example("0", "x", "a"), Example("1", "y", "b")]
    rows = [make_row(0, intruded=True), make_row(1, parents=["1", "0"]), make_row(2, parents=["0", "0"])]
    cells = grid(gather(examples, rows))
    assert cells[0][0]["tried"] == 1
    assert (cells[1][0]["tried"], cells[1][0]["intruded"]) == (2, 1)
    assert cells[1][1] is None


def test_of_many_classes_the_pairs_that_were_tried_are_listed(run):
    results = read_run(run / "out.jsonl")
    examples = [Example(str(at), f"text {at}", f"class {at:02}") for at in range(16)]
    rows = [make_row(at, parents=["3", "5"], intruded=at < 2) for at in range(8)]
    rows += [make_row(at, parents=["1", "0"], intruded=at < 11) for at in range(8, 12)]
    page = render(results, gather(examples, rows))
    assert 'class="heat"' not in page
    assert [(c["first"], c["intruded"]) for c in most_intruded(gather(examples, rows))] == [
        ("class 00", 3), ("class 03", 2),
    ]  # fmt: skip
    assert page.index("3 of 4") < page.index("2 of 8")
    assert 'class="heat"' in render(results, gather(examples[:15], rows))


def test_figures_on_a_fully_intruded_cell_stand_out_in_light_dark_and_print(run):
    results = read_run(run / "out.jsonl")
    page = render(results, gather(results.examples, [make_row(0, parents=["0", "1"], intruded=True)]))
    share = float(re.search(r"--three\) (\d+)%, var\(--page\)", page)[1]) / 100
    assert "color" not in re.search(r"\.heat td span {(.*?)}", page)[1]  # they are of the ink of the cell
    palettes = [dict(re.findall(r"--(\w+): (#\w+)", root)) for root in re.findall(r":root {(.*?)}", page)]
    assert len(palettes) == 3
    for palette in palettes:
        ink, three, back = (rgb(palette[name]) for name in ("ink", "three", "page"))
        assert contrast(ink, share * three + (1 - share) * back) >= 4.5


def rgb(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return np.array([int(digits[at : at + 2], 16) for at in (0, 2, 4)])


def contrast(*colours):
    """Of two colours, by WCAG 2."""
    light = [
        (np.where(c <= 10, c / 255 / 12.92, ((c / 255 + 0.055) / 1.055) ** 2.4) * [0.2126, 0.7152, 0.0722]).sum()
        for c in colours
    ]
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_wide_tables_are_printed_whole_and_long_labels_leave_room_for_their_bars(run):
    page = (run / "out.report.html").read_text(encoding="utf-8")
    assert ".scroll { overflow: visible; }" in page.partition("@media print")[2]
    assert re.search(r"\.bars {.*fit-content\(.*overflow-wrap: anywhere", page)


def test_no_interval_that_takes_rows_with_the_same_parents_for_independent_is_shown(run):
    results = read_run(run / "out.jsonl")
    rows = [make_row(at, parents=["0", "1"], intruded=at % 2 == 0) for at in range(40)]  # forty of one pair
    page = render(results, gather(results.examples, rows))
    assert "20 of 40" in page
    assert "95 %" not in page
    assert not re.search(r"\d+ % to \d+ %", page)


def test_the_headline_is_intrusion_of_the_kept_rows_and_says_who_sees_it(run):
    results = read_run(run / "out.jsonl")
    judge = {"name": "task+tuned", "accuracy": 0.83}
    results = dataclasses.replace(results, summary={**results.summary, "judge": judge})
    rejected = [make_row(at, intruded=True, kept=False, reject_reason="low_fluency") for at in range(30, 39)]
    page = render(results, gather(results.examples, [*map(make_row, range(30)), *rejected]))
    assert "of the kept rows intruded, as judge task+tuned sees it, who errs on 17 % of your rows</dt><dd>0 %<" in page
    assert "of all that were tried 23 %" in page


def test_the_card_says_how_many_rows_are_intruded_and_who_sees_it(run, tmp_path):
    results = read_run(run / "out.jsonl")
    changes = {"intrusion_rate_kept": 0.1, "intrusion_rate": 0.25, "judge": {"name": "llm", "accuracy": 0.6}}
    results = dataclasses.replace(results, summary={**results.summary, **changes}, output=tmp_path / "out.jsonl")
    card = write_dataset_card(results, {}).read_text(encoding="utf-8")
    assert "10% of the new rows are `intruded` (25% of those tried): judge llm, who errs on 40%" in card
    nothing = dataclasses.replace(results, summary={**results.summary, "intrusion_rate_kept": None})
    assert "are `intruded`" not in write_dataset_card(nothing, {}).read_text(encoding="utf-8")


def test_where_only_the_first_rows_are_drawn_or_searched_it_is_said(run, monkeypatch, capsys):
    results = read_run(run / "out.jsonl")
    kept = results.summary["kept"]
    monkeypatch.setattr("inversedmixup.report.evidence.POINTS", 3)
    monkeypatch.setattr("inversedmixup.report.evidence.SEARCHED", 2)
    page = render(results, gather(results.examples, results.rows()))
    assert f"Drawn: the first 3 of {kept} kept rows." in page
    assert f"Compared with all training rows: the first 2 of {kept} kept rows." in page
    assert main(["report", str(run / "out.jsonl"), "-o", str(run / "first.html")]) == 0
    assert f"near-copies of training text among the first 2 of {kept} kept rows" in capsys.readouterr().out
    monkeypatch.undo()
    page = render(results, gather(results.examples, results.rows()))
    assert f"Compared with all training rows: the {kept} kept rows." in page


def test_accuracies_stand_beside_how_likely_chance_parts_them(run):
    results = read_run(run / "out.jsonl")
    measured = {"accuracy_with": 0.742, "accuracy_without": 0.692, "test_rows": 120}
    paired = {"became_right": 12, "became_wrong": 6, "p_value": 0.2379}
    words = "of 120 test rows 12 became right and 6 wrong; p = 0.24 (exact McNemar test)"
    summary = {**results.summary, **measured, **paired}
    evidence = gather(results.examples, [])
    assert words in render(dataclasses.replace(results, summary=summary), evidence)
    assert "p &lt; 0.001" in render(dataclasses.replace(results, summary={**summary, "p_value": 0.0}), evidence)
    before = dataclasses.replace(results, summary={**results.summary, **measured})  # of an earlier version
    assert "became right" not in render(before, evidence)


def test_a_row_is_shown_with_the_labels_of_its_parents(run):
    results = read_run(run / "out.jsonl")
    page = Tags(render(results, gather(results.examples, [make_row(0, parents=["1", "none"])])))
    assert f"between: {HOSTILE[1]} · b<i>" in page.text
    assert "between: (not in the training file) · (unknown)" in page.text


def test_near_copies_are_found_with_the_text_that_they_copy():
    rows = [make_row(0, text="Where IS my parcel?"), make_row(1, text="something else entirely")]
    [copy] = near_copies(rows, ["refund me", "where is my parcel"])
    assert (copy.row.id, copy.original, copy.shared) == ("aug-0", "where is my parcel", 1.0)


def test_near_copies_are_found_among_many_texts_a_few_at_a_time(monkeypatch):
    originals = [f"my parcel number {at} is late again today" for at in range(50)]
    rows = [make_row(at, text=text) for at, text in enumerate([originals[41], "nothing alike", originals[3]])]
    whole = near_copies(rows, originals)
    monkeypatch.setattr("inversedmixup.report.evidence.COMPARED", 4)
    assert near_copies(rows, originals) == whole
    assert [(copy.original, copy.shared) for copy in whole] == [(originals[41], 1.0), (originals[3], 1.0)]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
@settings(deadline=None)
def test_best_and_worst_are_the_extremes_of_cycle_similarity(scores):
    evidence = gather([], [make_row(at, cycle_similarity=score) for at, score in enumerate(scores)])
    assert [row.cycle_similarity for row in evidence.best()] == sorted(scores, reverse=True)[:6]
    assert [row.cycle_similarity for row in evidence.worst()] == sorted(scores)[:6]


@given(
    st.fixed_dictionaries({}, optional={
        "n": st.integers(1, 999), "lam": st.sampled_from(["0.5", "beta:0.4", "grid:0,1"]),
        "min_cycle": st.floats(-1, 1, allow_nan=False), "include_original": st.booleans(),
        # argparse takes no value that is "--" alone; the command line refuses it in one line
        "pair": st.text("a b'\"$-", min_size=1).filter(lambda text: text.strip() and text != "--"),
        "shots": st.integers(1, 9),
    })
)  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_the_command_in_the_report_reads_back_to_the_same_settings(changes):
    config = build(AugmentJobConfig, changes)
    words = shlex.split(command_line("augment", ["my train.csv"], "out.jsonl", config))
    options = vars(_parser("augment").parse_args(words[1:]))
    assert (options.pop("train"), options.pop("output")) == ("my train.csv", "out.jsonl")
    for name in ("command", "json", "verbose"):
        options.pop(name)
    assert resolve(AugmentJobConfig, options) == config


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_read_back_as_they_were_written(tmp_path, suffix):
    rows = [make_row(at, text=text) for at, text in enumerate([*HOSTILE, ""])]
    rows.append(
        make_row(
            99,
            kept=False,
            reject_reason="empty",
            fluency=None,
            labels={**dict.fromkeys(SOURCES), "soft": "a", "llm": "b"},
        )
    )
    with RowFile(tmp_path / f"rows{suffix}", ["a", "b"]) as file:
        for row in rows:
            file.write(dict(vars(row)))
    assert list(iter_rows(tmp_path / f"rows{suffix}")) == rows


def test_a_spreadsheet_writes_its_truths_in_capitals(tmp_path):
    with RowFile(tmp_path / "rows.csv", ["a", "b"]) as file:
        file.write(dict(vars(make_row(0))))
    text = (tmp_path / "rows.csv").read_text(encoding="utf-8")
    assert "True" in text
    (tmp_path / "rows.csv").write_text(text.replace("True", "TRUE"), encoding="utf-8")
    assert next(iter_rows(tmp_path / "rows.csv")).kept


@pytest.mark.parametrize("change", [
    {"lam": "0.5"}, {"lam": None}, {"lam": -3}, {"text": None}, {"parents": "12"}, {"parents": ["1"]}, {"label": None},
    {"cycle_similarity": None}, {"label_probs": None}, {"label_probs": {"a": "much"}},
])  # fmt: skip
def test_rows_that_were_changed_by_hand_are_named(tmp_path, change):
    rows = [dict(vars(make_row(0))), {**vars(make_row(1)), **change}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match="row 2: not a row that `augment` wrote"):
        list(iter_rows(tmp_path / "rows.jsonl"))


def test_the_card_is_one_that_the_hub_reads(run):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(run / "README.md")
    assert card.data.task_categories == ["text-classification"]
    assert card.data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": "out.jsonl"}]
    assert read_run(run / "out.jsonl").provenance["command"] in card.text
    assert "b<i>" not in card.text
    assert "b&lt;i&gt;" in card.text


MARKUP = [
    "![x](http://evil/t.png)", "[link](http://evil) [r]: /u", "__init__ _a_ *a* **b** ~~c~~", "`a` ``b``",
    "<b>i</b> &amp; &#65;", "<http://evil>", "a | b \\| c", "\\", "\\* \\[x](y)", "# head #",
    "a\r| b\n\nc\x1b[31m\u202e", "www.evil.com $a$ $$b$$",
    "How much is it, 3.50 or 4? It's 10% off - \"really\" (see card_arrival); yes!",
]  # fmt: skip


def shown(source):
    """The text of the elements that a Markdown renderer makes of a source, by their tags."""
    tree = SyntaxTreeNode(MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(source))
    assert not {"link", "image", "em", "strong", "s", "html_inline", "html_block"} & {node.type for node in tree.walk()}
    return [
        (
            node.type,
            "".join(part.content for part in node.walk() if part.type in ("text", "text_special", "code_inline")),
        )
        for node in tree.walk()
        if node.type in ("heading", "td", "code_inline", "fence", "paragraph")
    ]


def as_line(text):
    return "".join(" " if letter in "\n\t" or ord(letter) in CONTROLS else letter for letter in text)


@pytest.mark.parametrize("text", MARKUP)
def test_markdown_shows_a_text_as_it_is(text):
    table = f"| a | b |\n|---|---|\n| {markdown(text)} | 1 |"
    assert shown(table) == [("td", as_line(text).strip()), ("td", "1")]
    assert shown(f"# {markdown(text)}") == [("heading", as_line(text).strip())]
    assert ("code_inline", as_line(text)) in shown(f"A file {code(text)}, sha256 `0`.")
    fence = MarkdownIt("commonmark").parse(code_block(text))
    assert [(token.type, token.content) for token in fence] == [("fence", as_line(text) + "\n")]


@given(
    st.text(alphabet="a_ `*[]()!<>&;|\\~$#/:.w\r\n\x1b", min_size=1, max_size=12).filter(
        lambda text: as_line(text).strip()
    )
)
def test_markdown_shows_any_text_as_it_is(text):
    table = f"| a | b |\n|---|---|\n| {markdown(text)} | 1 |"
    assert [[kind, found.strip()] for kind, found in shown(table)] == [["td", as_line(text).strip()], ["td", "1"]]
    assert shown(f"A file {code(text)}.")[1:] == [("code_inline", as_line(text))]


def test_what_needs_no_escape_gets_none():
    for text in (MARKUP[-1], "card_arrival", "train-00000-of-00004.parquet", "What's 2 + 2? (4!) - yes; #1 @home"):
        assert markdown(text) == text


def test_a_card_shows_hostile_classes_and_names_as_text(tmp_path, tiny_pair_folder):
    labels = ["![x](http://evil/t.png)\x1b[31m", "__init__\r| [a](http://evil)"]
    rows = [{"text": text, "label": labels[at % 2]} for at, text in enumerate(SENTENCES)]
    train = write_jsonl(tmp_path / "`tr``ain*a*.jsonl", rows)
    config = build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder, "pairs": "any"})
    run_augment_job(str(train), str(tmp_path / "__o__`.jsonl"), config)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    elements = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    inline = [child for token in elements for child in token.children or []]
    assert "image" not in {token.type for token in inline}
    assert [token.attrs["href"] for token in inline if token.type == "link_open"] == [
        "https://arxiv.org/abs/2601.21543"
    ]
    assert "\x1b" not in card
    assert "\r" not in card
    cells = [token.content for token in elements if token.type == "inline"]
    text = "".join(token.content for token in inline)
    for label in labels:
        assert as_line(label) in text
    assert sum("evil" in cell for cell in cells) == 2
    codes = [token.content for token in inline if token.type == "code_inline"]
    assert train.name in codes
    assert "__o__`.rejected.jsonl" in codes


def test_the_card_says_which_rows_people_wrote(tmp_path, tiny_pair_folder, train_file):
    config = build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder, "include_original": True})
    run_augment_job(str(train_file), str(tmp_path / "o.jsonl"), config)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"The first {len(SENTENCES)} rows of the file are those of `{train_file.name}` itself." in card
    assert "None of these was written by a person." in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["language_creators"] == ["machine-generated", "other"]
    assert "language" not in front


def test_a_judge_that_nobody_could_measure_is_left_out_of_the_report(tmp_path, tiny_pair_folder):
    rows = [{"text": text, "label": label} for text, label in zip(SENTENCES[5:7], LABELS[5:7], strict=True)]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    own = {"pair": tiny_pair_folder, "pairs": "any", "labels": "drop:llm", "n": 4}
    run_augment_job(str(train), str(tmp_path / "o.jsonl"), build(AugmentJobConfig, {**QUICK, **own}))
    assert "judge right on your rows" not in (tmp_path / "o.report.html").read_text(encoding="utf-8")


def test_somebody_elses_readme_is_left_alone(run, tmp_path, tiny_pair_folder, train_file):
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    run_augment_job(
        str(train_file), str(tmp_path / "o.jsonl"), build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder})
    )
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "o.README.md").read_text(encoding="utf-8").startswith("---\n")


def test_a_card_that_was_changed_by_hand_stays_and_one_that_was_not_is_written_anew(
    tmp_path, tiny_pair_folder, train_file
):
    def run(**options):
        config = build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder}, options)
        run_augment_job(str(train_file), str(tmp_path / "o.jsonl"), config)
        return card.read_text(encoding="utf-8")

    card = tmp_path / "README.md"
    first = run()
    assert run() == first
    assert run(n=20, overwrite=True) != first
    card.write_text(first.replace("license: unknown", "license: mit"), encoding="utf-8")
    assert "license: mit" in run(n=30, overwrite=True)


def test_a_report_that_is_another_outputs_is_refused(tmp_path, tiny_pair_folder, train_file):
    config = build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder})
    run_augment_job(str(train_file), str(tmp_path / "o&.jsonl"), config)
    with pytest.raises(InputError, match=r"o&.report.html: is the report of o&.jsonl;"):
        run_augment_job(str(train_file), str(tmp_path / "o&.csv"), config)
    assert not (tmp_path / "o&.csv.run").exists()


def test_report_replaces_reports_and_no_other_page(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments = ["report", str(run / "out.jsonl"), "-o", str(page)]
    page.write_text("<p>mine</p>", encoding="utf-8")
    assert main(arguments) == 2
    assert "no report made here" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "<p>mine</p>"
    page.unlink()
    assert main(arguments) == main(arguments) == 0


def test_what_is_no_finished_run_is_refused_with_the_remedy(tmp_path, run):
    with pytest.raises(InputError, match="no run there; give OUT"):
        read_run(tmp_path / "nothing.jsonl")
    folder = tmp_path / "half.jsonl.run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not finished; run the same"):
        read_run(folder)
    (folder / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="not as `augment` wrote it"):
        read_run(folder)
    assert main(["report", str(run / "out.jsonl"), "-o", str(tmp_path / "report.txt")]) == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("summary.json", {"originals": [1]}), ("summary.json", {"kept": "x"}), ("summary.json", {"judge": 3}),
        ("config.json", {"min_cycle": "x"}), ("config.json", {"pairs": 3}),
        ("provenance.json", {"value": None}), ("provenance.json", {"value": {"command": "x"}}),
    ],
)  # fmt: skip
def test_a_damaged_file_of_a_run_is_named(run, tmp_path, capsys, name, change):
    path = run / "out.jsonl.run" / name
    whole = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({**json.loads(whole), **change}), encoding="utf-8")
    try:
        assert main(["report", str(run / "out.jsonl"), "-o", str(tmp_path / "x.html")]) == 2
    finally:
        path.write_text(whole, encoding="utf-8")
    assert f"{name}: not as `augment` wrote it; run the same command again" in capsys.readouterr().err


def test_a_summary_of_an_earlier_version_has_no_seal_and_is_read(run):
    path = run / "out.jsonl.run" / "summary.json"
    whole = path.read_text(encoding="utf-8")
    record = json.loads(whole)
    del record["sha256"]
    try:
        path.write_text(json.dumps(record), encoding="utf-8")
        assert read_run(run / "out.jsonl").summary == record
        path.write_text(json.dumps({**record, "originals": [1]}), encoding="utf-8")
        with pytest.raises(InputError, match=r"summary\.json: not as `augment` wrote it"):
            read_run(run / "out.jsonl")
    finally:
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize("content", ["{}", '{"value": null}', '{"value": ["a"]}', '{"value": []}', "[", "[]"])
def test_damaged_fluencies_are_as_good_as_none(run, content):
    path = run / "out.jsonl.run" / "fluencies.json"
    whole = path.read_text(encoding="utf-8")
    assert read_run(run / "out.jsonl").fluencies
    path.write_text(content, encoding="utf-8")
    try:
        assert read_run(run / "out.jsonl").fluencies is None
    finally:
        path.write_text(whole, encoding="utf-8")


def test_a_run_moved_elsewhere_is_still_read(run, tmp_path):
    for path in run.iterdir():
        path.rename(tmp_path / path.name)
    try:
        assert isinstance(read_run(tmp_path / "out.jsonl"), RunResults)
        assert list(read_run(tmp_path / "out.jsonl").rows())
    finally:
        for path in tmp_path.iterdir():
            path.rename(run / path.name)


def test_dates_are_absent_so_that_the_same_run_gives_the_same_report(run):
    first = (run / "out.report.html").read_bytes()
    assert main(["report", str(run / "out.jsonl"), "-o", str(run / "again.html")]) == 0
    assert (run / "again.html").read_bytes() == first
    assert not re.search(rb"20\d\d-\d\d-\d\d", first)
