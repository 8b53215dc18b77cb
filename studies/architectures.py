"""Does the method work with any kind of LLM? ``python -m studies.architectures CORPUS DATA -o DIR --minutes M``.

For each kind, a small LLM is made from random weights, with a tokenizer trained on the corpus, and learns together with
its adaptor through stage 1 (``align --train-llm``), for the same time. Then: how well sentences come back, whether λ
controls the text, and what the texts add to the accuracy of a linear head on the frozen encoder. The encoder is the
default one throughout: one of random weights would make λ̂ and the accuracy meaningless (tests have them).

What comes of minutes on a processor are models that know next to no English. The figures say that every kind goes
through the same code and learns; they say nothing about which kind is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from inversedmixup.benchmark.statistics import interval_on_splits
from inversedmixup.control import lam_control
from inversedmixup.data import iter_texts, read_examples
from inversedmixup.errors import InputError, write_whole
from inversedmixup.labelled import take_shots
from inversedmixup.models.pair import Pair
from inversedmixup.stages.align import AlignConfig, run_align
from inversedmixup.stages.lessons import evaluate_pair
from inversedmixup.stages.writer import DecodeConfig
from inversedmixup.terminal import new_table, output
from studies.common import gained_accuracy, interval_words, run, run_grid, study_run, write_texts
from studies.families import GENERATORS, Size, make_generator

TOKENIZER_TEXTS = 20_000
MAX_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of every kind.

    Attributes:
        size: how large the LLM is.
        minutes: time for training.
        rows: held-out sentences that are written again.
        walks: pairs of sentences for λ control.
        set: labelled set, 10 shots a class.
        seeds: draws of the shots.
        n: texts added to them.
    """

    size: Size
    minutes: float
    rows: int
    walks: int
    set: str
    seeds: int
    n: int


def trained(kind: str, corpus: Path, folder: Path, plan: Plan) -> Pair:
    """A pair with an LLM of this kind that has learnt from scratch; an interrupted training is taken up again."""
    train, held_out = corpus_files(corpus)
    generator = folder / "generator"
    if not (generator / "model.safetensors").exists():
        make_generator(kind, plan.size, islice(iter_texts(train, "text"), TOKENIZER_TEXTS), generator)
    config = AlignConfig(
        llm=str(generator), train_llm=True, minutes=plan.minutes, hidden=512, validation=str(held_out), compile="never",
        validation_rows=32, chunk=256, max_tokens=MAX_TOKENS, validate_every=10**9, warmup_steps=20,
    )  # fmt: skip
    run_align(train, folder / "pair", config)
    return Pair.load(folder / "pair")


def corpus_files(corpus: Path) -> tuple[list[Path], Path]:
    """The training files of a corpus, and its held-out one.

    Raises:
        InputError: if one of them is missing.
    """
    train, held_out = sorted(corpus.glob("train*.parquet")), corpus / "validation.parquet"
    if not train or not held_out.exists():
        raise InputError(f"{corpus}: expected train*.parquet and validation.parquet there")
    return train, held_out


def cell(kind: str, corpus: Path, data: Path, folder: Path, plan: Plan) -> dict[str, Any]:
    """Train one kind, and measure it."""
    pair = trained(kind, corpus, folder, plan)
    texts = list(islice(iter_texts([corpus_files(corpus)[1]], "text"), plan.rows))
    control = lam_control(pair, texts, None, DecodeConfig(candidates=2, max_tokens=MAX_TOKENS), plan.walks)
    train, test = (read_examples(data / plan.set / f"{part}.jsonl") for part in ("train", "test"))
    gains = []
    for seed in range(plan.seeds):
        examples = take_shots(train, 10, seed=seed)
        soft, written = write_texts(pair, examples, plan.n, seed)
        gains.append(gained_accuracy(pair.task_model, examples, test, written.reread, soft))
    training = pair.config.training
    return {
        "kind": kind, "parameters": sum(weight.numel() for weight in pair.llm.model.parameters()),
        "sentences": training["sentences"], "target_tokens": training["target_tokens"], "steps": training["steps"],
        "reconstruction": evaluate_pair(pair, texts, MAX_TOKENS),
        "control": {name: control[name] for name in ("spearman", "mean_abs_error", "snap_rate")}, "gains": gains,
    }  # fmt: skip


def table(records: Sequence[dict[str, Any]]) -> Table:
    """One line a kind: token F1 of reconstructions, Spearman's ρ of λ and λ̂, accuracy gained."""
    shown = new_table("LLM", "weights", "sentences", "loss", "F1", "BLEU", "exact", "cosine", "ρ", "gain", "95 %")
    for record in records:
        found, gains = record["reconstruction"], np.array(record["gains"])
        shown.add_row(
            record["kind"], f"{record['parameters'] / 1e6:.1f} M", f"{record['sentences']:,}", f"{found['loss']:.2f}",
            f"{found['token_f1']:.3f}", f"{found['bleu']:.1f}", f"{found['exact']:.3f}", f"{found['cosine']:.3f}",
            f"{record['control']['spearman']:.2f}", f"{gains.mean():+.3f}", interval_words(interval_on_splits(gains)),
        )  # fmt: skip
    return shown


def main() -> None:
    """Run every kind; finished ones are not run again."""
    parser = argparse.ArgumentParser(prog="python -m studies.architectures", description="Every kind of LLM.")
    parser.add_argument("corpus", type=Path, help="folder with train*.parquet and validation.parquet, column text")
    parser.add_argument("data", type=Path, help="folder with a folder for each set: train.jsonl and test.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the pairs, cells and summary.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(GENERATORS), choices=list(GENERATORS))
    parser.add_argument("--hidden", type=int, default=256, help="width of the LLM; a head is 64 wide")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=300, help="held-out sentences")
    parser.add_argument("--walks", type=int, default=8, help="pairs of sentences for λ control")
    parser.add_argument("--set", default="trec")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n", type=int, default=60, help="texts added to the shots")
    options = parser.parse_args()
    size = Size(options.hidden, options.layers, max(2, options.hidden // 64), options.vocabulary)
    plan = Plan(size, options.minutes, options.rows, options.walks, options.set, options.seeds, options.n)
    where = {"corpus": str(options.corpus.resolve()), "data": str(options.data.resolve())}
    run = study_run(options.output, {**where, **dataclasses.asdict(plan)}, [])

    def make(kind: str) -> dict[str, Any]:
        return cell(kind, options.corpus, options.data, options.output / kind, plan)

    records = run_grid(((kind,) for kind in options.kinds), make, run)
    write_whole(options.output / "summary.json", json.dumps(records, indent=1).encode())
    output().print(table(records))


if __name__ == "__main__":
    run(main)
