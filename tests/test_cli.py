"""The command line's contracts: exit codes, one clear line, --json, --config, no torch for --help."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from conftest import write_jsonl
from inversedmixup.cli import main
from inversedmixup.commands import augment as augment_command
from inversedmixup.commands import invert as invert_command
from inversedmixup.commands import models as models_command
from inversedmixup.errors import InputError

QUICK = [
    "--n", "20", "--tries", "1", "--candidates", "1", "--max-tokens", "6", "--task-steps", "3", "--follow-steps", "2",
    "--refine-steps", "1", "--min-cycle", "-1", "--fluency-margin", "99", "--accept-labels", "any", "--tolerance", "1",
    "--downstream-steps", "2", "--labels", "soft", "--pairs", "same-class",
]  # fmt: skip


def refused(capsys, *arguments):
    """Run a command that must be refused; its one line on stderr."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("inversedmixup: ")]
    assert len(lines) == 1
    return lines[0]


def test_help_shows_what_must_be_given_then_what_matters_most(capsys):
    with pytest.raises(SystemExit):
        main(["augment", "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: inversedmixup augment TRAIN -o OUT [options]\n")
    groups = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups[2:6] == ["new rows", "writing", "labels", "judges"]
    assert groups[-1] == "cluster"
    flags = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    assert len(set(flags)) == len(flags)
    assert flags.index("--n") < flags.index("--workers")


def test_help_does_not_import_torch():
    code = "import sys; from inversedmixup.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_augment_prints_one_json_object_as_its_last_line(train_file, tmp_path, capsys, tiny_pair_folder):
    out = tmp_path / "out.jsonl"
    arguments = ["augment", train_file, "-o", out, "--pair", tiny_pair_folder, "--test", train_file, "--json", *QUICK]
    assert main([str(a) for a in arguments]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["asked"] == 20
    assert {"kept", "rejected", "accuracy_without", "accuracy_with", "seconds_by_stage"} <= set(summary)
    assert summary["kept"] == len(out.read_text(encoding="utf-8").splitlines())
    assert json.loads((tmp_path / "out.jsonl.run" / "config.json").read_text())["n"] == 20


def test_a_person_sees_rows_counts_and_accuracies(train_file, tmp_path, capsys, tiny_pair_folder):
    arguments = [
        "augment",
        train_file,
        "-o",
        tmp_path / "o.csv",
        "--pair",
        tiny_pair_folder,
        "--test",
        train_file,
        *QUICK,
    ]
    assert main([str(a) for a in arguments]) == 0
    shown = capsys.readouterr().out
    for expected in ("new sentence", "kept", "accuracy on 18 test rows", "as the task model sees it: ", "time:"):
        assert expected in shown
    assert re.search(r"of 18 test rows \d+ became right and \d+ wrong; p [=<] [\d.]+ \(exact McNemar test\)", shown)
    assert re.search(r"near-copies of training text \(.*\): \d+ of the \d+ kept rows", shown)


def test_where_no_row_is_kept_no_empty_table_and_no_none_is_shown(train_file, tmp_path, capsys, tiny_pair_folder):
    arguments = ["augment", train_file, "-o", tmp_path / "o.csv", "--pair", tiny_pair_folder, *QUICK, "--min-words", 99]
    assert main([str(a) for a in arguments]) == 0
    shown = capsys.readouterr().out
    assert "kept 0 of 20 asked for, 32 tried; rejected " in shown
    assert "too_short: fewer words" in shown
    for absent in ("new sentence", "None", "cycle similarity", "intruded"):
        assert absent not in shown


def test_config_file_and_flags_share_names_and_flags_win(train_file, tmp_path, tiny_pair_folder, capsys):
    names = [flag.removeprefix("--") for flag in QUICK[::2]]
    settings = dict(zip(names, map(yaml.safe_load, QUICK[1::2]), strict=True)) | {"pair": tiny_pair_folder, "lam": 0.5}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings) + "encoder-learning-rate: 5e-5\n")
    out = tmp_path / "o.jsonl"
    assert main(["augment", str(train_file), "-o", str(out), "--config", str(tmp_path / "c.yaml"), "--n", "5"]) == 0
    resolved = json.loads((tmp_path / "o.jsonl.run" / "config.json").read_text())
    assert (resolved["n"], resolved["lam"], resolved["candidates"]) == (5, "0.5", 1)
    assert resolved["encoder_learning_rate"] == 5e-5


@pytest.mark.parametrize(("line", "test"), [("n: 3", "example/test.jsonl"), ("test: mine.jsonl", "mine.jsonl")])
def test_the_example_is_measured_on_its_own_test_file_unless_another_is_set(tmp_path, monkeypatch, line, test):
    def run(*given):
        raise InputError(f"measured on {given[-1].test}")

    monkeypatch.setattr("inversedmixup.commands.augment.run_augment_job", run)
    (tmp_path / "c.yaml").write_text(line)
    options = {"train": "example", "output": "o.jsonl", "config": str(tmp_path / "c.yaml")}
    with pytest.raises(InputError, match=f"measured on (.*/)?{test}$"):
        augment_command.run(options)


@pytest.mark.parametrize(
    ("content", "message"),
    [("lamb: 3", "unknown option 'lamb'"), ("n: many", "n: expected int, found 'many'"), ("[1", "not valid YAML"),
     ("pairs: odd", "pairs: 'odd' is not one of"), ("- 1", "expected `name: value` lines"),
     ("tries: 1" + "0" * 400, "tries: 1000"), ("tries: odd", "tries: expected float"),
     ("tries: 1e99", "tries: 1e+99 is out"),
     ("n: 5\nseed: 1\nn: 6", "'n' is there twice"), ("min-cycle: 0\nmin_cycle: 1", "'min_cycle' is there twice")],
)  # fmt: skip
def test_a_bad_config_file_is_refused_by_name(tmp_path, train_file, capsys, content, message):
    (tmp_path / "c.yaml").write_text(content)
    line = refused(capsys, "augment", train_file, "-o", tmp_path / "o.jsonl", "--config", tmp_path / "c.yaml")
    assert message in line


def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, train_file, capsys, tiny_pair_folder):
    out = tmp_path / "o.jsonl"
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a b", "label": "x"}] * 3)
    assert "no such file" in refused(capsys, "augment", tmp_path / "none.jsonl", "-o", out)
    assert "every row has the label 'x'" in refused(capsys, "augment", one, "-o", out)
    assert "no column 'topic'" in refused(capsys, "augment", train_file, "-o", out, "--label-column", "topic")
    assert "end it in" in refused(capsys, "augment", train_file, "-o", tmp_path / "o.txt")
    assert "no pair.json" in refused(capsys, "augment", train_file, "-o", out, "--pair", tmp_path)
    assert "no such folder" in refused(
        capsys, "augment", train_file, "-o", tmp_path / "p.jsonl", "--pair", tiny_pair_folder, "--encoder", "./nowhere"
    )
    assert "lam '7'" in refused(
        capsys, "augment", train_file, "-o", tmp_path / "q.jsonl", "--pair", tiny_pair_folder, "--lam", "7", *QUICK
    )
    assert "standard input is not read" in refused(capsys, "augment", "-", "-o", out)
    long = write_jsonl(tmp_path / "long.jsonl", [{"text": "x" * 3000}])
    assert "no usable row" in refused(
        capsys, "augment", train_file, "-o", out, "--pair", tiny_pair_folder, "--unlabelled", long
    )
    assert not (tmp_path / "o.jsonl.run").exists()
    assert "no such file" in refused(capsys, "align", tmp_path / "none.txt", "-o", tmp_path / "run")
    assert "no sentence" in refused(capsys, "invert", write_jsonl(tmp_path / "e.jsonl", []), "--pair", tiny_pair_folder)
    assert "characters" in refused(capsys, "mix", "a" * 100_000, "b", "--pair", tiny_pair_folder)
    with pytest.raises(SystemExit, match="2"):
        main(["augment", "--no-such-flag"])


def test_another_encoder_than_the_adaptors_is_refused(tmp_path, train_file, capsys, tiny_pair_folder, tiny_encoder):
    from inversedmixup.models.task_model import TaskModel

    other = TaskModel.from_pretrained(tiny_encoder)
    for weight in other.encoder.parameters():
        weight.data.copy_(weight.data.flip(0))
    other.encoder.save(str(tmp_path / "other"), create_model_card=False)
    line = refused(capsys, "mix", "a b", "c d", "--pair", tiny_pair_folder, "--encoder", tmp_path / "other")
    assert "is not the one this adaptor was trained on" in line


def test_mix_prints_the_strip(capsys, tiny_pair_folder):
    assert main(["mix", "where is my parcel", "reset my password", "--steps", "3", "--pair", tiny_pair_folder]) == 0
    assert "cycle" in capsys.readouterr().out
    assert main(["mix", "a b", "c d", "--steps", "3", "--pair", tiny_pair_folder, "--json"]) == 0
    strip = json.loads(capsys.readouterr().out)["strip"]
    assert [row["lam"] for row in strip] == [1.0, 0.5, 0.0]


def test_mix_shows_label_probabilities_of_a_warmed_up_pair(tmp_path, train_file, capsys, tiny_pair_folder):
    out = tmp_path / "o.jsonl"
    assert main(["augment", str(train_file), "-o", str(out), "--pair", tiny_pair_folder, *QUICK]) == 0
    capsys.readouterr()
    assert main(["mix", "a b", "c d", "--pair", f"{out}.run/model", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["strip"][0]["label_probs"]) == {"delivery", "refund", "account"}


def test_invert_scores_and_writes(corpus_file, tmp_path, capsys, tiny_pair_folder):
    out = tmp_path / "rec.jsonl"
    arguments = [
        "invert",
        corpus_file,
        "--rows",
        "5",
        "--evaluate",
        "--json",
        "--output",
        out,
        "--pair",
        tiny_pair_folder,
    ]
    assert main([str(a) for a in arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    for way in ("greedy", "reranked"):
        assert {"token_f1", "bleu", "exact", "cosine", "n"} <= set(result[way])
    assert result["reranked"]["cosine"] >= result["greedy"]["cosine"] - 0.2
    assert len(out.read_text().splitlines()) == 5
    arguments[3] = "7"
    assert "holds a run with other settings (rows: 5 there, 7 now)" in refused(capsys, *arguments)


def test_invert_replaces_neither_the_reference_nor_what_it_did_not_write(
    corpus_file, train_file, tmp_path, capsys, tiny_pair_folder
):
    before = train_file.read_bytes()
    arguments = ["invert", corpus_file, "--rows", "5", "--pair", tiny_pair_folder, "--reference", train_file]
    assert "would replace the input" in refused(capsys, *arguments, "--output", train_file)
    out = tmp_path / "mine.jsonl"
    out.write_bytes(before)
    assert "is there already" in refused(capsys, *arguments, "--output", out)
    assert train_file.read_bytes() == out.read_bytes() == before
    assert main([str(a) for a in [*arguments, "--output", out, "--overwrite"]]) == 0
    assert main([str(a) for a in [*arguments, "--output", out]]) == 0


def test_an_interrupted_invert_goes_on_where_there_is_an_output_and_promises_nothing_where_there_is_none(
    corpus_file, tmp_path, capsys, tiny_pair_folder, monkeypatch
):
    def invert(*options):
        return main([str(a) for a in ["invert", corpus_file, "--rows", "9", "--pair", tiny_pair_folder, *options]])

    blocks, write = [], invert_command.write_texts

    def write_two(*given):
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(given)
        return write(*given)

    assert invert("--output", tmp_path / "whole.jsonl") == 0
    monkeypatch.setattr(invert_command, "BLOCK", 4)
    monkeypatch.setattr(invert_command, "write_texts", write_two)
    out = tmp_path / "o.jsonl"
    capsys.readouterr()
    assert invert("--output", out) == 130
    assert "what was finished is kept" in capsys.readouterr().err
    assert invert() == 130
    assert "nothing is kept without --output" in capsys.readouterr().err
    blocks.pop()
    assert invert("--output", out) == 0
    assert len(blocks) == 2
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("name", "words"), [
    ("control.json", ["mix", "--evaluate", "TRAIN", "--pairs", "2", "--output"]),
    ("benchmark.json", ["benchmark", "TRAIN", "-o"]), ("intrusion.json", ["intrusion", "TRAIN", "-o"]),
])  # fmt: skip
def test_results_in_a_folder_that_no_run_wrote_are_not_replaced(
    train_file, tmp_path, capsys, tiny_pair_folder, name, words
):
    (tmp_path / name).write_text("mine", encoding="utf-8")
    arguments = [str(train_file) if word == "TRAIN" else word for word in words]
    assert f"{name}: is there already" in refused(capsys, *arguments, tmp_path, "--pair", tiny_pair_folder)
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("words", [
    ["mix", "--evaluate", "TRAIN", "--pairs", "2", "--output"], ["benchmark", "TRAIN", "-o"],
    ["intrusion", "TRAIN", "-o"],
])  # fmt: skip
def test_settings_of_another_program_are_not_replaced_and_show_nothing(
    train_file, tmp_path, capsys, tiny_pair_folder, words, overwrite
):
    theirs = [tmp_path / "run" / "config.json", tmp_path / "control.json", tmp_path / "benchmark.json"]
    (tmp_path / "run").mkdir()
    for path in theirs:
        path.write_text('{"model": "mine"}', encoding="utf-8")
    arguments = [str(train_file) if word == "TRAIN" else word for word in words]
    line = refused(capsys, *arguments, tmp_path, "--pair", tiny_pair_folder, *overwrite)
    assert "config.json: is not of a run of ours; choose another folder" in line
    assert all(path.read_text(encoding="utf-8") == '{"model": "mine"}' for path in theirs)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("words", [
    "report FILE -o URL", "report URL", "benchmark FILE -o URL", "benchmark URL -o DIR", "intrusion FILE -o URL",
    "align FILE -o URL", "align URL -o DIR", "invert FILE --output URL", "invert URL",
    "mix --evaluate FILE --output URL", "mix --evaluate URL", "explore URL", "augment FILE -o DIR/o.csv --test URL",
    "label FILE FILE -o DIR/o.csv --test URL",
])  # fmt: skip
def test_urls_are_refused_where_files_are_not_fetched_or_put(train_file, tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    for url in ("s3://user:s3cret@bucket/r.html", "file:///there.jsonl", "http://[bad/x.jsonl"):
        arguments = words.replace("FILE", str(train_file)).replace("DIR", "there").replace("URL", url).split()
        line = refused(capsys, *arguments)
        assert "is a URL; only TRAIN, TEXTS and -o of augment and label may be" in line or "is no URL" in line
        assert "s3cret" not in line
    assert {path.name for path in tmp_path.iterdir()} <= {"train.jsonl", "there"}


def test_align_writes_a_pair_that_mix_uses(corpus_file, tmp_path, capsys, tiny_encoder, tiny_llm):
    arguments = [
        "align", corpus_file, "-o", tmp_path / "pair", "--encoder", tiny_encoder, "--llm", tiny_llm, "--sentences",
        "32",
        "--soft-tokens", "2", "--hidden", "8", "--validation-rows", "4", "--chunk", "16", "--json",
    ]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0
    assert json.loads(capsys.readouterr().out)["sentences"] == 32
    assert main(["mix", "a b", "c d", "--pair", str(tmp_path / "pair")]) == 0


def test_ctrl_c_stops_soon_exits_130_and_says_how_to_resume(train_file, tmp_path, tiny_pair_folder):
    out = tmp_path / "o.jsonl"
    settings = [*QUICK, "--n", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "inversedmixup", "augment", str(train_file), "-o", str(out), "--pair", tiny_pair_folder,
         *settings], stderr=subprocess.PIPE, text=True,
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    shard = tmp_path / "o.jsonl.run" / "shards" / "000000.json"
    deadline = time.monotonic() + 120
    while not shard.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    assert shard.exists()


@pytest.mark.parametrize("flag", [
    "--task-steps", "--follow-steps", "--refine-steps", "--encoder-learning-rate", "--head-learning-rate",
    "--refine-learning-rate",
])  # fmt: skip
def test_numbers_below_nothing_are_refused_before_any_work(train_file, tmp_path, capsys, tiny_pair_folder, flag):
    line = refused(capsys, "augment", train_file, "-o", tmp_path / "o.jsonl", "--pair", tiny_pair_folder, flag, "-1")
    assert flag.removeprefix("--").replace("-", "_") in line.replace("-", "_")
    assert not (tmp_path / "o.jsonl.run").exists()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_device_that_torch_does_not_know_is_refused_before_any_work(
    train_file, tmp_path, capsys, tiny_pair_folder, dtype
):
    arguments = ["augment", train_file, "-o", tmp_path / "o.jsonl", "--pair", tiny_pair_folder]
    assert "device 'gpu'" in refused(capsys, *arguments, "--device", "gpu", "--dtype", dtype)
    assert not (tmp_path / "o.jsonl.run").exists()


@pytest.mark.parametrize("name", ["\udce9.jsonl", "http://[bad/x.jsonl"])
def test_input_names_that_cannot_be_are_refused(tmp_path, capsys, tiny_pair_folder, name):
    refused(capsys, "augment", name, "-o", tmp_path / "o.jsonl", "--pair", tiny_pair_folder)


def test_an_output_that_is_a_folder_is_refused(train_file, tmp_path, capsys):
    (tmp_path / "o.jsonl").mkdir()
    assert "is a folder" in refused(capsys, "augment", train_file, "-o", tmp_path / "o.jsonl")


@pytest.mark.parametrize("name", ["o.jsonl", "o.rejected.jsonl", "o.report.html", "o.README.md"])
def test_a_file_that_no_run_wrote_is_not_replaced_unless_asked_for(
    train_file, tmp_path, capsys, tiny_pair_folder, name, monkeypatch
):
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    (tmp_path / name).write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # where an output for a URL is made
    monkeypatch.setattr(MemoryFileSystem, "store", {})  # what the last test put there is gone
    for output in (tmp_path / "o.jsonl", "memory://bucket/o.jsonl"):
        arguments = ["augment", train_file, "-o", output, "--pair", tiny_pair_folder, *QUICK]
        line = refused(capsys, *arguments)
        assert f"{name}: is there already" in line
        assert "--overwrite" in line
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "o.jsonl.run").exists()
    assert main([str(a) for a in [*arguments, "--overwrite"]]) == 0
    assert main([str(a) for a in arguments]) == 0


def test_help_is_written_to_streams_of_few_letters():
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "inversedmixup", "mix", "--help"]
    assert b"\\u03bb" in subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout


def test_models_shows_what_the_card_of_the_default_pair_reports(capsys):
    assert main(["models", "--json"]) == 0
    pair = json.loads(capsys.readouterr().out)["default_pair"]
    name, report = next(iter(pair["reports"].items()))
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    for way in ("greedy", "corrected"):
        scores = report[way]
        line = f"{name}, {way}: n {scores['n']:.4g}, token_f1 {scores['token_f1']:.4g}, bleu {scores['bleu']:.4g}"
        assert line in shown
    assert (
        f"{pair['sentences']:,} sentences seen; its word head, in all its passes, {pair['words']['sentences']:,}"
        in shown
    )


def test_models_shows_the_last_validation_of_a_pair_without_reports(capsys):
    models_command.show({"cache": "", "models": [], "default_pair": {"sentences": 9, "metrics": {"n": 8.0}}})
    assert "9 sentences seen\nvalidation, greedy: n 8\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--json >/dev/full", "standard output: cannot be written (No space left on device)"),
        (">&-", "standard output is closed"),
        ("--json | true", ""),
    ],
)
def test_a_result_that_cannot_be_printed_is_one_clear_line(command, message):
    shell = ["bash", "-c", f"{sys.executable} -m inversedmixup models {command}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert done.returncode == (2 if message else 0)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == bool(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["augment"], "inversedmixup augment: the following arguments are required: TRAIN, -o/--output; see --help\n"),
        (["report", "x", "--tries", "2"], "inversedmixup: unrecognized arguments: --tries 2; see --help\n"),
    ],
)
def test_arguments_are_refused_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err == message


def test_json_is_json_on_streams_of_few_letters(monkeypatch, tiny_pair_folder):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["mix", "λ 🎉 one", "two", "--steps", "2", "--pair", tiny_pair_folder, "--json"]) == 0
    assert json.loads(stream.buffer.getvalue().decode("cp1252").splitlines()[-1])["first"] == "λ 🎉 one"


def test_overwriting_deletes_nothing_before_it_is_known_to_be_possible(train_file, tmp_path, capsys, tiny_pair_folder):
    out, summary = tmp_path / "o.jsonl", tmp_path / "o.jsonl.run" / "summary.json"
    arguments = ["augment", train_file, "-o", out, "--pair", tiny_pair_folder, *QUICK]
    assert main([str(a) for a in arguments]) == 0
    capsys.readouterr()
    refused(capsys, *arguments, "--overwrite", "--unlabelled", tmp_path / "typo.jsonl")
    assert summary.exists()
    arguments[1] = tmp_path / "o.jsonl.run" / "examples.jsonl"
    assert main([str(a) for a in [*arguments, "--overwrite", "--lam", "0.5"]]) == 0


def test_ids_are_not_given_twice(train_file, tmp_path, capsys, tiny_pair_folder):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    options = ["--pair", tiny_pair_folder, "--include-original", *QUICK]
    assert main([str(a) for a in ["augment", train_file, "-o", first, *options]]) == 0
    capsys.readouterr()
    assert "give them twice" in refused(capsys, "augment", first, "-o", second, *options)


@pytest.mark.parametrize("words", ["augment FILE -o OUT", "benchmark FILE -o OUT --methods inversed"])
def test_ids_that_are_there_twice_are_told_with_their_file(train_file, tmp_path, capsys, tiny_pair_folder, words):
    rows = [{**json.loads(line), "id": at % 17} for at, line in enumerate(train_file.read_text().splitlines())]
    path = write_jsonl(tmp_path / "twice.jsonl", rows)
    places = {"FILE": path, "OUT": tmp_path / "o.jsonl"}
    line = refused(capsys, *(places.get(word, word) for word in words.split()), "--pair", tiny_pair_folder)
    assert f"{path}: the id column holds '0' twice" in line


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x.jsonl", "a\0b.jsonl"])
def test_paths_that_cannot_be_are_one_line_wherever_they_stand(train_file, tmp_path, capsys, tiny_pair_folder, path):
    out, pair = tmp_path / "o.jsonl", ["--pair", tiny_pair_folder]
    for arguments in (
        ["augment", path, "-o", out, *pair], ["augment", train_file, "-o", path, *pair],
        ["augment", train_file, "-o", out, "--test", path, *pair], ["label", train_file, path, "-o", out, *pair],
        ["augment", train_file, "-o", out, "--pair", path], ["augment", train_file, "-o", out, "--config", path],
        ["augment", train_file, "-o", out, "--unlabelled", path, *pair], ["report", path, "-o", tmp_path / "o.html"],
        ["benchmark", train_file, "-o", path, *pair], ["intrusion", train_file, "-o", path, *pair],
        ["invert", path, *pair], ["mix", "--evaluate", path, *pair],
    ):  # fmt: skip
        assert "path holds no NUL" in (line := refused(capsys, *arguments)) or "no user of that name" in line


def test_an_unknown_setting_is_told_with_its_file_and_what_is_like_it(train_file, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("candidate: 2\n")
    line = refused(capsys, "augment", train_file, "-o", tmp_path / "o.jsonl", "--config", tmp_path / "own.yaml")
    assert f"--config {tmp_path / 'own.yaml'}: unknown option 'candidate'; did you mean candidates" in line
    (tmp_path / "own.yaml").write_text("engine: vllm\n", encoding="utf-8")  # of `augment`: `label` writes nothing
    arguments = ["label", train_file, train_file, "-o", tmp_path / "o.jsonl", "--config", tmp_path / "own.yaml"]
    assert "unknown option 'engine'" in refused(capsys, *arguments)


@pytest.mark.parametrize("flag", ["--test", "--unlabelled", "--descriptions", "--pair"])
def test_empty_options_are_refused(train_file, tmp_path, capsys, flag):
    assert "is empty; give a value" in refused(capsys, "augment", train_file, "-o", tmp_path / "o.jsonl", flag, "")


def test_shots_of_nothing_are_refused(capsys):
    assert "--shots needs --train" in refused(capsys, "mix", "a", "b", "--shots", "3")


def test_output_that_somebody_changed_is_not_replaced_unless_asked_for(train_file, tmp_path, capsys, tiny_pair_folder):
    out = tmp_path / "o.jsonl"
    arguments = [str(a) for a in ("augment", train_file, "-o", out, "--pair", tiny_pair_folder, *QUICK)]
    assert main(arguments) == 0
    assert main([*arguments, "--n", "3"]) == 0
    few = out.read_bytes()
    assert main(arguments) == 0
    out.write_bytes(few)  # any state of it that was written here is known
    assert main(arguments) == 0
    out.write_text("mine")
    capsys.readouterr()
    assert "has been changed since it was written here" in refused(capsys, *arguments, "--n", "3")
    assert out.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0


def test_a_picture_for_a_folder_that_is_closed_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    line = refused(capsys, "mix", "--evaluate", tmp_path / "texts.txt", "--plot", tmp_path / "x.png")
    assert "cannot be written to; choose another" in line


def test_texts_longer_than_any_sentence_are_refused(train_file, tmp_path, capsys):
    line = refused(capsys, "augment", train_file, "-o", tmp_path / "o.jsonl", "--max-tokens", "100000")
    assert "max_tokens 100000: at most 512" in line
