"""Models and pairs on the Hugging Face hub, for which a filled cache stands in, offline."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.models import pair as pair_module
from inversedmixup.models import sources
from inversedmixup.models.pair import Pair, read_config
from inversedmixup.models.task_model import TaskModel
from test_cli import QUICK, refused

FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Puts a folder on the hub under a name, as a commit of its main branch."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def publish(name: str, folder: str | Path, commit: str) -> None:
        repository = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        sources.commit_of.cache_clear()  # as in a new process
        pair_module._snapshot.cache_clear()

    return publish


@pytest.fixture
def other_encoder(tiny_encoder, tmp_path) -> Path:
    """Of the same shape, with other weights."""
    model = TaskModel.from_pretrained(tiny_encoder)
    for weight in model.transformer.parameters():
        weight.data.copy_(weight.data.flip(0))
    model.encoder.save(str(tmp_path / "other"), create_model_card=False)
    return tmp_path / "other"


def test_a_pair_keeps_to_the_commits_that_it_was_made_with(publish, tiny_encoder, tiny_llm, other_encoder, tmp_path):
    publish("org/encoder", tiny_encoder, FIRST)
    publish("org/llm", tiny_llm, FIRST)
    pair = Pair.fresh("org/encoder", "org/llm", soft_tokens=2, hidden=8, lora=2)
    assert (pair.config.encoder, pair.config.llm) == (f"org/encoder@{FIRST}", f"org/llm@{FIRST}")
    pair.save(tmp_path / "pair", encoder=False)
    # other libraries know no such names
    assert json.loads((tmp_path / "pair/lora/adapter_config.json").read_text())["base_model_name_or_path"] == "org/llm"
    publish("org/encoder", other_encoder, SECOND)
    assert Pair.load(tmp_path / "pair").task_model.name == f"org/encoder@{FIRST}"
    with pytest.raises(InputError, match=f"encoder 'org/encoder@{SECOND}' is not the one"):
        Pair.load(tmp_path / "pair", encoder="org/encoder")


def test_a_run_with_another_commit_is_another_run(
    publish, tiny_encoder, tiny_pair_folder, train_file, tmp_path, capsys
):
    publish("org/encoder", tiny_encoder, FIRST)
    command = ["augment", train_file, "-o", tmp_path / "out.jsonl", "--pair", tiny_pair_folder]
    command += ["--encoder", "org/encoder", *QUICK]
    assert main([str(a) for a in command]) == 0
    assert main([str(a) for a in command]) == 0
    capsys.readouterr()
    publish("org/encoder", tiny_encoder, SECOND)
    assert "its models" in refused(capsys, *command)


def test_a_pair_may_lie_on_the_hub(publish, tiny_pair_folder, train_file, tmp_path, capsys):
    publish("org/pair", tiny_pair_folder, FIRST)
    for name in ("org/pair", f"org/pair@{FIRST}"):
        assert main(["mix", "a b", "c d", "--steps", "3", "--pair", name, "--json"]) == 0
    out = tmp_path / "out.jsonl"
    assert main(["augment", str(train_file), "-o", str(out), "--pair", "org/pair", *QUICK]) == 0
    assert f"encoder `{read_config(Path(tiny_pair_folder)).encoder}`" in (tmp_path / "README.md").read_text()


def test_a_run_of_another_commit_of_the_pair_is_another_run(publish, tiny_pair_folder, train_file, tmp_path, capsys):
    publish("org/pair", tiny_pair_folder, FIRST)
    command = ["augment", train_file, "-o", tmp_path / "out.jsonl", *QUICK]
    assert main([str(a) for a in [*command, "--pair", "org/pair"]]) == 0
    assert main([str(a) for a in [*command, "--pair", f"org/pair@{FIRST}"]]) == 0  # it says the same
    capsys.readouterr()
    publish("org/pair", tiny_pair_folder, SECOND)
    assert "holds a run with other settings (pair: " in refused(capsys, *command, "--pair", "org/pair")


def test_training_goes_on_with_the_commit_that_it_began_with(
    publish, tiny_encoder, other_encoder, tiny_llm, corpus_file, tmp_path, capsys
):
    publish("org/encoder", tiny_encoder, FIRST)
    command = ["align", corpus_file, "-o", tmp_path / "pair", "--llm", tiny_llm, "--soft-tokens", "2", "--hidden", "8"]
    command += ["--sentences", "16", "--batch-size", "16", "--validation-rows", "4"]
    assert main([str(a) for a in [*command, "--encoder", "org/encoder"]]) == 0
    capsys.readouterr()
    publish("org/encoder", other_encoder, SECOND)
    assert "other settings (encoder: " in refused(capsys, *command, "--encoder", "org/encoder")
    assert main([str(a) for a in [*command, "--encoder", f"org/encoder@{FIRST}"]]) == 0


def test_a_pair_that_records_no_commit_can_be_trained_on(publish, tiny_encoder, tiny_llm, tmp_path):
    publish("org/encoder", tiny_encoder, FIRST)
    shape = {"soft_tokens": 2, "hidden": 8}
    pair = Pair.fresh("org/encoder", tiny_llm, **shape)
    pair.config.encoder = "org/encoder"  # as earlier versions wrote it
    pair.save(tmp_path / "pair", encoder=False)
    Pair.fresh("org/encoder", tiny_llm, **shape).start_from(tmp_path / "pair")


def test_encoders_may_be_called_as_sentence_transformers_calls_them(publish, tiny_encoder):
    publish("sentence-transformers/tiny", tiny_encoder, FIRST)
    assert TaskModel.from_pretrained("tiny").name == f"sentence-transformers/tiny@{FIRST}"
    assert sources.recorded_name("encoder", "tiny") == f"sentence-transformers/tiny@{FIRST}"


@pytest.mark.parametrize("name", ["org/none", "org/pair@none"])
def test_what_the_hub_does_not_have_is_one_line(publish, tiny_pair_folder, capsys, name):
    publish("org/pair", tiny_pair_folder, FIRST)
    line = refused(capsys, "mix", "a b", "c d", "--pair", name)
    assert f"pair {name!r}: no such folder, and not on the hub: " in line


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_model_that_the_hub_does_not_have_is_one_line(publish, tiny_pair_folder, train_file, tmp_path, capsys, part):
    out = tmp_path / "out.jsonl"
    own = ["--pair", tiny_pair_folder, f"--{part}", "org/none"]
    assert f"{part} 'org/none' cannot be found: " in refused(capsys, "augment", train_file, "-o", out, *own)
    assert "'org/none' cannot be loaded: " in refused(capsys, "mix", "a b", "c d", *own)
