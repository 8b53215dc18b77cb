import dataclasses
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inversedmixup.card import record_report
from inversedmixup.errors import InputError
from inversedmixup.models.pair import Pair, default_pair_folder, read_config
from inversedmixup.options import build, read_settings
from inversedmixup.stages import align
from inversedmixup.stages.align import AlignConfig, run_align
from inversedmixup.stages.lessons import Inverting, evaluate_pair
from inversedmixup.stages.stream import ahead, chunks
from inversedmixup.stages.warmup import WarmupConfig, fit_task_model
from tiny import SENTENCES, make_encoder


@pytest.fixture
def config(tiny_encoder, tiny_llm):
    def make(**options):
        defaults = {
            "encoder": tiny_encoder, "llm": tiny_llm, "soft_tokens": 2, "hidden": 16, "layers": 1, "batch_size": 8,
            "chunk": 32, "validation_rows": 6, "validate_every": 40, "warmup_steps": 2, "learning_rate": 3e-3,
        }  # fmt: skip
        return build(AlignConfig, defaults, options)

    return make


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def interrupt_after(monkeypatch, steps):
    """Ctrl-C in the middle of step number ``steps`` + 1."""
    real, calls = align._Run._step, []

    def step(self, *args):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(align._Run, "_step", step)


@pytest.mark.parametrize("extra", [{}, {"lora": 2, "encoder_lora": 2}], ids=["frozen", "lora"])
def test_an_interrupted_run_resumes_to_the_same_weights_and_metrics(corpus_file, tmp_path, config, monkeypatch, extra):
    options = config(sentences=96, **extra)
    run_align([corpus_file], tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run_align([corpus_file], tmp_path / "cut", options)
    run_align([corpus_file], tmp_path / "cut", options)
    whole, cut = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    scores = [[(m["step"], m.get("loss"), m.get("token_f1")) for m in metrics(tmp_path / d)] for d in ("whole", "cut")]
    assert scores[0] == scores[1]


def test_the_folder_may_be_a_name(corpus_file, tmp_path, config):
    run_align([str(corpus_file)], str(tmp_path / "run"), config(sentences=16))
    assert (tmp_path / "run" / "pair.json").is_file()


def test_a_folder_of_something_else_is_refused_as_it_is(corpus_file, tmp_path, config, tiny_llm):
    (tmp_path / "config.json").write_text('{"mine": 1}', encoding="utf-8")
    for folder in (tmp_path, Path(tiny_llm)):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(InputError, match=r"config.json: is not of an `align` run; choose another folder"):
            run_align([corpus_file], folder, config(sentences=16))
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["pair.json", "MODEL_CARD.md", "metrics.jsonl", "checkpoint.safetensors", "encoder"])
@pytest.mark.parametrize("words", [0, 8])
def test_a_pair_or_files_that_no_run_wrote_are_not_replaced(corpus_file, tmp_path, config, name, words):
    (tmp_path / name).write_text('{"step": 0}\n', encoding="utf-8")
    with pytest.raises(InputError, match=rf"{name}: is there already, and no .*config.json shows that `align` wrote"):
        run_align([corpus_file], tmp_path, config(sentences=16, words=words))
    assert [path.name for path in tmp_path.iterdir() if path != corpus_file] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == '{"step": 0}\n'


def test_a_run_whose_damaged_settings_were_deleted_goes_on(corpus_file, tmp_path, config, monkeypatch):
    run_align([corpus_file], tmp_path / "run", config(sentences=16))
    (tmp_path / "run" / "config.json").write_text("{ damaged")
    with pytest.raises(InputError, match=r"config.json: damaged; delete it, and the run goes on"):
        run_align([corpus_file], tmp_path / "run", config(sentences=16))
    (tmp_path / "run" / "config.json").unlink()
    monkeypatch.setattr(align._Run, "_step", lambda *_: pytest.fail("trained again"))
    assert run_align([corpus_file], tmp_path / "run", config(sentences=16))["sentences"] == 16


def test_settings_are_recorded_when_the_corpus_is_known_to_be_usable(corpus_file, tmp_path, config):
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"text": "one"}\n' * 9 + "{", encoding="utf-8")
    with pytest.raises(InputError, match="row 10"):
        run_align([torn], tmp_path / "run", config())
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_goes_on_over_its_own_corpus_and_one_of_an_earlier_version_too(corpus_file, tmp_path, config):
    run_align([corpus_file], tmp_path / "run", config(sentences=16))
    corpus_file.write_text("\n".join(reversed(SENTENCES * 6)) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"other settings \(corpus_sha256: "):
        run_align([corpus_file], tmp_path / "run", config(sentences=32))
    path = tmp_path / "run" / "config.json"
    earlier = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("sha256", "corpus_sha256")}
    path.write_text(json.dumps(earlier))
    assert run_align([corpus_file], tmp_path / "run", config(sentences=32))["sentences"] == 32


def test_a_corpus_that_lies_elsewhere_now_is_that_of_the_run(corpus_file, tmp_path, config, monkeypatch):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    run_align([corpus_file], tmp_path / "run", config(sentences=16, validation=str(held_out)))
    monkeypatch.chdir(tmp_path)
    moved = config(sentences=32, validation=held_out.name)
    assert run_align([corpus_file.name], tmp_path / "run", moved)["sentences"] == 32
    with pytest.raises(InputError, match=r"other settings .corpus: "):  # the same bytes one after the other
        run_align([corpus_file.name, held_out.name], tmp_path / "run", config(sentences=32))


def test_only_the_adaptor_learns_unless_lora_is_asked_for(corpus_file, tmp_path, config):
    before = Pair.fresh(config().encoder, config().llm, soft_tokens=2, hidden=16, layers=1)
    run_align([corpus_file], tmp_path / "run", config(sentences=64))
    after = Pair.load(tmp_path / "run")
    for name in ("task_model", "llm"):
        ours, theirs = (getattr(pair, name) for pair in (before, after))
        ours, theirs = (m.model if name == "llm" else m.encoder for m in (ours, theirs))
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not torch.allclose(before.adaptor.net[0].weight, after.adaptor.net[0].weight, atol=1e-4)


def test_training_halves_the_loss(corpus_file, tmp_path, config):
    options = config(sentences=1600, learning_rate=1e-2, lora=8, hidden=128, batch_size=16, lower=0.0)
    start = Pair.fresh(options.encoder, options.llm, soft_tokens=2, hidden=128, layers=1)
    before = evaluate_pair(start, SENTENCES[:6])["loss"]
    assert run_align([corpus_file], tmp_path / "run", options)["loss"] < before / 2


@pytest.mark.parametrize("extra", [{}, {"lora": 2, "encoder_lora": 2}], ids=["frozen", "lora"])
def test_a_run_can_start_from_a_trained_pair(corpus_file, tmp_path, config, extra):
    first = run_align([corpus_file], tmp_path / "first", config(sentences=96, **extra))
    options = config(sentences=16, start=str(tmp_path / "first"), learning_rate=1e-6, **extra)
    second = run_align([corpus_file], tmp_path / "second", options)
    assert second["loss"] == pytest.approx(first["loss"], abs=1e-2)
    assert Pair.load(tmp_path / "second").config.training["sentences"] == 112
    with pytest.raises(InputError, match=r"cannot start from .* its adaptor is"):
        run_align([corpus_file], tmp_path / "third", config(start=str(tmp_path / "first"), hidden=8, **extra))


def test_one_command_teaches_the_adaptor_and_then_the_words_and_goes_on_after_a_stop(
    corpus_file, tmp_path, config, monkeypatch
):
    options = config(sentences=64, words=512, lora=2, encoder_lora=2, anchor=0.3)
    run_align([corpus_file], tmp_path / "whole", options)
    for steps in (3, 8):  # the first stops among the adaptor's eight, the second three steps into the word head's
        with monkeypatch.context() as patch:
            interrupt_after(patch, steps)
            with pytest.raises(KeyboardInterrupt):
                run_align([corpus_file], tmp_path / "cut", options)
    finished = (tmp_path / "cut" / "adaptor" / "metrics.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path)  # the folder by another name, and a larger budget for what is finished already
    run_align([corpus_file], Path("cut"), dataclasses.replace(options, sentences=128))
    assert (tmp_path / "cut" / "adaptor" / "metrics.jsonl").read_bytes() == finished
    for name in ("adaptor.safetensors", "lora/adapter_model.safetensors", "words.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    pair = Pair.load(tmp_path / "cut")
    assert pair.word_head is not None
    assert pair.config.training["sentences"] == 64
    assert 512 <= pair.config.training["words"]["sentences"] < 512 + 32  # whole batches; a chunk here holds 32
    with pytest.raises(InputError, match="words does not go with teach correct"):
        config(words=8, teach="correct")


def test_words_for_a_finished_adaptor_are_refused_before_another_one_is_trained(corpus_file, tmp_path, config):
    run_align([corpus_file], tmp_path, config(sentences=16))
    with pytest.raises(InputError, match=r"other settings .*teach"):
        run_align([corpus_file], tmp_path, config(sentences=16, words=64))
    assert not (tmp_path / "adaptor").exists()


def test_the_recipe_of_the_default_pair_makes_a_pair_of_its_shape(corpus_file, tmp_path, config):
    recipe = read_settings(default_pair_folder() / "align.yaml")
    shipped = read_config(default_pair_folder())
    built = build(AlignConfig, recipe)
    assert (built.soft_tokens, built.hidden, built.layers) == (
        shipped.adaptor.soft_tokens, shipped.adaptor.hidden, shipped.adaptor.layers
    )  # fmt: skip
    assert (built.lora, built.encoder_lora, built.prompt) == (
        shipped.lora_rank, shipped.encoder_lora_rank, shipped.prompt
    )  # fmt: skip
    assert (built.encoder, built.llm) == (shipped.encoder, shipped.llm)
    assert built.sentences == shipped.training["sentences"]
    small = {"sentences": 32, "words": 64, "hidden": 16, "chunk": 32, "validation_rows": 6}
    run_align([corpus_file], tmp_path, build(AlignConfig, dataclasses.asdict(config()), recipe, small))
    made = Pair.load(tmp_path)
    assert made.word_head is not None
    assert made.config.adaptor.soft_tokens == shipped.adaptor.soft_tokens


def test_budgets_stop_the_run(corpus_file, tmp_path, config):
    record = run_align([corpus_file], tmp_path / "tokens", config(tokens=100))
    assert 100 <= record["tokens"] < 200
    record = run_align([corpus_file], tmp_path / "minutes", config(minutes=0.002))
    assert record["sentences"] < 2**20


def test_the_stream_is_endless_and_shuffled():
    def read(start, lower=0.0):
        count = lambda texts: [[0] * len(text) for text in texts]  # noqa: E731
        return chunks(lambda: iter(SENTENCES * 6), start=start, size=32, lower=lower, seed=0, targets=count)

    stream = read(0)
    first_pass = [next(stream) for _ in range(4)]
    assert sorted(text for chunk in first_pass for text in chunk.texts) == sorted(SENTENCES * 6)
    second_pass = [next(stream) for _ in range(4)]
    for one, two in zip(first_pass, second_pass, strict=True):
        assert one.texts == two.texts
        assert sorted(one.order) == sorted(two.order) == list(range(len(one.texts)))
    assert any(not np.array_equal(a.order, b.order) for a, b in zip(first_pass, second_pass, strict=True))
    assert np.array_equal(next(read(5)).order, second_pass[1].order)
    assert [chunk.texts for chunk in islice(ahead(read(0)), 5)] == [chunk.texts for chunk in islice(read(0), 5)]


def test_an_empty_stream_is_bad_input():
    with pytest.raises(InputError, match="no usable text"):
        next(chunks(lambda: iter([]), start=0, size=4, lower=0.0, seed=0, targets=lambda texts: []))


@pytest.mark.parametrize("option", [{"micro_batch": 3}, {"compile": "always"}])
def test_ways_to_make_the_step_cheaper_do_not_change_it(corpus_file, tmp_path, config, option, monkeypatch):
    real = torch.nn.Module.compile  # the graphs are captured, but no code is generated: that takes a minute
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: real(module, backend="eager"))
    whole = run_align([corpus_file], tmp_path / "whole", config(sentences=32))
    parts = run_align([corpus_file], tmp_path / "parts", config(sentences=32, **option))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert weights(tmp_path / "parts") == pytest.approx(weights(tmp_path / "whole"), abs=1e-3)


def test_a_run_may_go_on_on_another_device(corpus_file, tmp_path, config, monkeypatch):
    monkeypatch.setattr(align, "precision_of", lambda *_: "float32")  # there is no GPU here
    options = config(sentences=16)
    run_align([corpus_file], tmp_path, options)
    align._check_same_run(tmp_path, align._settings([corpus_file], dataclasses.replace(options, device="cuda:1")))


@pytest.mark.parametrize("budget", [{"minutes": -1}, {"tokens": 0}, {"sentences": 0}])
def test_a_budget_that_never_ends_is_refused(config, budget):
    with pytest.raises(InputError, match="must be at least"):
        config(**budget)


def test_bfloat16_training_stays_near_float32(corpus_file, tmp_path, config):
    exact = run_align([corpus_file], tmp_path / "exact", config(sentences=64, lora=2, dtype="float32"))
    rough = run_align([corpus_file], tmp_path / "rough", config(sentences=64, lora=2, dtype="bfloat16"))
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.03)


def test_only_the_process_that_reports_keeps_losses(corpus_file, tmp_path, config):
    team = align.Team("cpu")
    team.rank = 1
    run = align._Run([corpus_file], tmp_path, config(sentences=32), SENTENCES[:6], team)
    run.train()
    assert run.state.step == 4
    assert run.losses == []


def test_two_processes_train_as_one(corpus_file, tmp_path, config, tiny_encoder, tiny_llm):
    options = config(sentences=40, batch_size=7, dtype="float32")
    run_align([corpus_file], tmp_path / "one", options)
    flags = []
    for name, value in dataclasses.asdict(options).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "inversedmixup", "align", str(corpus_file), "-o", str(tmp_path / "two"), *flags,
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120)
    assert weights(tmp_path / "two") == pytest.approx(weights(tmp_path / "one"), abs=1e-3)
    assert metrics(tmp_path / "two")[-1]["sentences"] == metrics(tmp_path / "one")[-1]["sentences"]


def weights(folder):
    return np.concatenate([w.float().numpy().ravel() for w in load_file(folder / "adaptor.safetensors").values()])


def test_what_auto_came_to_is_a_setting_of_the_run(corpus_file, tmp_path, config, monkeypatch):
    options = config(sentences=24, dtype="auto")
    monkeypatch.setattr(align, "precision_of", lambda *_: "float32")
    run_align([corpus_file], tmp_path / "run", options)
    monkeypatch.setattr(align, "precision_of", lambda *_: "bfloat16")
    with pytest.raises(InputError, match="dtype: 'float32' there, 'bfloat16' now"):
        run_align([corpus_file], tmp_path / "run", options)


def test_other_settings_in_the_same_folder_are_refused(corpus_file, tmp_path, config):
    run_align([corpus_file], tmp_path / "run", config(sentences=16))
    with pytest.raises(InputError, match=r"other settings .hidden: 16 there, 8 now"):
        run_align([corpus_file], tmp_path / "run", config(sentences=16, hidden=8))


def test_a_damaged_checkpoint_is_named(corpus_file, tmp_path, config):
    run_align([corpus_file], tmp_path / "run", config(sentences=16))
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"checkpoint.safetensors: damaged.*delete it"):
        run_align([corpus_file], tmp_path / "run", config(sentences=32))


def test_a_corpus_too_small_to_train_on_is_refused(tmp_path, config):
    (tmp_path / "c.txt").write_text("one line\n")
    with pytest.raises(InputError, match="too few texts"):
        run_align([tmp_path / "c.txt"], tmp_path / "run", config(minutes=1.0))


@pytest.mark.parametrize("load", [Pair.load, Pair.load_task_model])
def test_an_encoder_of_another_size_or_with_other_layers_is_one_clear_line(corpus_file, tmp_path, config, load):
    run_align([corpus_file], tmp_path / "run", config(sentences=16, encoder_lora=2))
    with pytest.raises(InputError, match=r"encoder of size 16 does not fit the adaptor in .*, which needs 24"):
        load(tmp_path / "run", encoder=make_encoder(tmp_path / "wide", dim=16))
    with pytest.raises(InputError, match="LoRA weights do not fit the model at hand, DistilBertModel"):
        load(tmp_path / "run", encoder=make_encoder(tmp_path / "layers", "distilbert"))


def test_a_pair_survives_saving_and_refuses_another_encoder(corpus_file, tmp_path, config, tiny_encoder):
    run_align([corpus_file], tmp_path / "run", config(sentences=48, encoder_lora=2, lora=2))
    pair = Pair.load(tmp_path / "run")
    wanted = pair.task_model.encode(SENTENCES[:4])
    other = tmp_path / "other"
    moved = Pair.load_task_model(tmp_path / "run")
    assert all(weight.requires_grad for weight in moved.encoder.parameters()), "fine-tuning would train the head alone"
    with torch.no_grad():
        for weight in moved.encoder.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    moved.encoder.save(str(other), create_model_card=False)
    with pytest.raises(InputError, match=r"other.*is not the one this adaptor was trained on"):
        Pair.load(tmp_path / "run", encoder=str(other))
    with pytest.raises(InputError, match=r"other.*is not the one this adaptor was trained on"):
        Pair.load_task_model(tmp_path / "run", encoder=str(other))
    pair.save(tmp_path / "again", encoder=True)
    again = Pair.load(tmp_path / "again")
    assert torch.allclose(again.task_model.encode(SENTENCES[:4]), wanted, atol=1e-6)
    assert again.invert(wanted) == pair.invert(wanted)


@pytest.mark.parametrize("name", ["adaptor.safetensors", "pair.json"])
def test_a_damaged_pair_is_refused_by_file(tmp_path, tiny_pair, name):
    tiny_pair.save(tmp_path, encoder=False)
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(InputError, match=f"{name}: damaged"):
        Pair.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        Pair.load(tmp_path)


def test_a_full_disk_is_one_clear_line(corpus_file, tmp_path, config, monkeypatch):
    import errno
    from pathlib import Path

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.partial")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"No space left on device.*run the same command again"):
        run_align([corpus_file], tmp_path / "run", config(sentences=16))


def test_stage_2_trains_an_encoder_that_stage_1_moved(corpus_file, tmp_path, config, examples):
    run_align([corpus_file], tmp_path / "run", config(sentences=16, encoder_lora=2))
    task_model = Pair.load(tmp_path / "run").task_model
    texts = [example.text for example in examples]
    before = task_model.encode(texts)
    classes = sorted({example.label for example in examples})
    settings = WarmupConfig(task_steps=3, encoder_learning_rate=1e-3)
    fit_task_model(task_model, examples, classes, settings, lambda _: None)
    assert not torch.allclose(task_model.encode(texts), before, atol=1e-3)


def test_the_card_names_whose_texts_they_were(corpus_file, tmp_path, tiny_encoder, tiny_llm):
    said = tmp_path / "licences.yaml"
    said.write_text("Wikipedia: CC BY-SA 3.0\n'No': CC0\n")
    own = {"encoder": tiny_encoder, "llm": tiny_llm, "soft_tokens": 2, "hidden": 8, "sentences": 32, "batch_size": 16}
    own |= {"validation_rows": 4}
    run_align([corpus_file], tmp_path / "first", build(AlignConfig, own, {"licences": str(said)}))
    card = (tmp_path / "first" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| Wikipedia | CC BY-SA 3.0 |\n| No | CC0 |\n" in card
    further = build(AlignConfig, own, {"start": str(tmp_path / "first")})
    run_align([corpus_file], tmp_path / "further", further)  # what it learnt from before stays known
    assert "| Wikipedia | CC BY-SA 3.0 |" in (tmp_path / "further" / "MODEL_CARD.md").read_text(encoding="utf-8")
    said.write_text("Wikipedia: [a, b]\n")
    with pytest.raises(InputError, match="Wikipedia: expected the name of a licence"):
        run_align([corpus_file], tmp_path / "second", build(AlignConfig, own, {"licences": str(said)}))


def test_a_model_card_that_was_changed_by_hand_stays_and_one_that_was_not_is_written_anew(
    corpus_file, tmp_path, tiny_encoder, tiny_llm, caplog
):
    def run(sentences):
        run_align([corpus_file], tmp_path / "pair", build(AlignConfig, own, {"sentences": sentences}))
        return card.read_text(encoding="utf-8")

    own = {"encoder": tiny_encoder, "llm": tiny_llm, "soft_tokens": 2, "hidden": 8, "batch_size": 16}
    own |= {"validation_rows": 4}
    card = tmp_path / "pair" / "MODEL_CARD.md"
    assert "\n16 sentences (" in run(16)
    assert "\n32 sentences (" in run(32)
    card.write_text(card.read_text(encoding="utf-8") + "Mine.\n", encoding="utf-8")
    assert run(48).endswith("Mine.\n")
    assert f"{card} was changed since it was written, and stays as it is" in caplog.text
    record_report(tmp_path / "pair", "toy/test.jsonl", {}, [])
    assert card.read_text(encoding="utf-8").endswith("Mine.\n")


def test_an_interrupt_of_the_last_validation_loses_no_training(
    corpus_file, tmp_path, tiny_encoder, tiny_llm, monkeypatch
):
    own = {"encoder": tiny_encoder, "llm": tiny_llm, "soft_tokens": 2, "hidden": 8, "sentences": 32, "batch_size": 16}
    config = build(AlignConfig, {**own, "validation_rows": 4})

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Inverting, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_align([corpus_file], tmp_path / "pair", config)
    monkeypatch.setattr(align._Run, "_step", lambda *_: pytest.fail("trained again"))
    run_align([corpus_file], tmp_path / "pair", config)
    assert read_config(tmp_path / "pair").training["sentences"] == 32


def test_a_corpus_that_is_all_held_out_is_refused_and_locks_nothing(corpus_file, tmp_path, tiny_encoder, tiny_llm):
    own = {"encoder": tiny_encoder, "llm": tiny_llm, "soft_tokens": 2, "hidden": 8, "sentences": 16, "batch_size": 16}
    with pytest.raises(InputError, match=r"too few texts to train on: 108, .* lower --validation-rows"):
        run_align([corpus_file], tmp_path / "pair", build(AlignConfig, own))
    run_align([corpus_file], tmp_path / "pair", build(AlignConfig, {**own, "validation_rows": 8}))
