"""Does a text keep the class of what it was written from? ``python -m studies.retention DATA -o DIR``.

For each set and number of shots, held-out texts are encoded and written again (λ = 1) by the pair as it ships, by a
pair whose task model was fitted to the shots with the adaptor left behind, after all of stage 2, and after a stage 2
that refines the adaptor longer and on other training rows as well, whose labels it does not see. *Label retention*
is how often a reference labeller (a classifier fitted to up to 5,000 rows on the encoder that ships) gives the text
that came back the class of the text that went in; *own* retention is how often a labeller on the pair's own encoder,
wherever stage 2 moved it, gives the text the class that it gives the embedding. The same candidates are chosen from in
three ways: the first (greedy), by cycle similarity, and by cycle similarity plus how far the task model's class
probabilities agree between the embedding and the text; and, where the pair has a word head, the greedy text is
corrected, by the cosine alone. So are the texts of cross-class mixes, counted against the larger parent's class.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.data import read_examples
from inversedmixup.errors import write_whole
from inversedmixup.labelled import take_shots
from inversedmixup.mixing import PairSampler, interpolate, parse_lambda, row_stream
from inversedmixup.models.pair import Pair
from inversedmixup.models.sampling import GREEDY, WORD_WEIGHT, Sampling
from inversedmixup.reconstruction import token_f1
from inversedmixup.reference import ReferenceLabeller
from inversedmixup.schema import Example
from inversedmixup.stages.warmup import WarmupConfig, run_warmup
from inversedmixup.terminal import new_table, output
from studies.common import SETS, encode, run, run_grid, sample, study_run

WITH_UNLABELLED = "after stage 2, unlabelled rows too"
STAGES: Mapping[str, WarmupConfig] = {
    "as it ships": WarmupConfig(train_encoder="head", follow_steps=0, refine_steps=0, tolerance=1.0),
    "warmed up, adaptor left behind": WarmupConfig(follow_steps=0, refine_steps=0, tolerance=1.0),
    "after stage 2": WarmupConfig(tolerance=1.0),
    WITH_UNLABELLED: WarmupConfig(tolerance=1.0, refine_steps=100),
}
UNLABELLED = 2000  # rows without labels
OWN_ROWS = 2000  # training rows that each moved encoder reads for a labeller of its own
AGREEMENT = (0.0, 0.2, 0.5, 1.0)  # weights of class agreement beside cycle similarity
SAMPLING = Sampling(max_tokens=40)


def cell(
    plain: Pair, data: Path, name: str, shots: int, seed: int, *, n: int, candidates: int, mixes: bool = True,
    stages: Sequence[str] = tuple(STAGES),
) -> dict[str, Any]:  # fmt: skip
    """One set, number of shots and seed: token F1, cosine and label retention by stage and choice.

    ``mixes`` says whether cross-class mixes are written as well, which doubles the time.
    """
    train, test = (read_examples(data / name / f"{part}.jsonl") for part in ("train", "test"))
    examples = take_shots(train, shots, seed=seed)
    classes = sorted({example.label for example in examples})
    known = sample(train)
    reference = ReferenceLabeller(encode(plain.task_model, known), [row.label for row in known])
    held = [test[at] for at in np.random.default_rng([seed, 1]).permutation(len(test))[:n]]
    record: dict[str, Any] = {
        "set": name, "shots": shots, "seed": seed, "n": n, "candidates": candidates, "stages": {},
        "reference": {"accuracy": reference.accuracy, "n": reference.n},
    }  # fmt: skip
    for stage in stages:
        pair = Pair.load()
        with _unlabelled(train, examples, seed) as others:
            given = others if stage == WITH_UNLABELLED else None
            run_warmup(pair, examples, classes, dataclasses.replace(STAGES[stage], unlabelled=given))
        embeddings = pair.task_model.encode([row.text for row in held])
        texts = [row.text for row in held]
        few = sample(known, OWN_ROWS)
        own = ReferenceLabeller(pair.task_model.encode([row.text for row in few]), [row.label for row in few])
        labellers = Labellers(plain, reference, own)
        kept = reference.label(encode(plain.task_model, held))
        found = record["stages"][stage] = {
            "own_reference_accuracy": own.accuracy,
            "reconstruction": _by_choice(pair, embeddings, labellers, kept, seed, candidates, texts),
        }
        if mixes:
            mixed, leading = _mixes(pair, examples, n, seed)
            found["cross-class"] = _by_choice(pair, mixed, labellers, leading, seed, candidates, None)
    return record


@contextlib.contextmanager
def _unlabelled(train: Sequence[Example], examples: Sequence[Example], seed: int) -> Iterator[str]:
    """A file of other training rows, without their labels."""
    taken = {example.text for example in examples}
    others = [row.text for row in train if row.text not in taken]
    order = np.random.default_rng([seed, 2]).permutation(len(others))[:UNLABELLED]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unlabelled.txt"
        path.write_text("".join(f"{others[at]}\n" for at in order), encoding="utf-8")
        yield str(path)


@dataclasses.dataclass(frozen=True)
class Labellers:
    """Who says which class a text has: one on the encoder that ships, and one on the pair's own, wherever it moved."""

    plain: Pair
    reference: ReferenceLabeller
    own: ReferenceLabeller


def _mixes(pair: Pair, examples: Sequence[Example], n: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Mixed embeddings [n, d] of cross-class pairs at λ in [0.5, 1], and the leading parent's class."""
    sampler = PairSampler([row.label for row in examples], "cross-class", parse_lambda("uniform:0.5,1"))
    draws = [sampler.draw(row, row_stream(seed, row)) for row in range(n)]
    points = pair.task_model.encode([row.text for row in examples])
    mixed = interpolate(
        points[[draw.first for draw in draws]], points[[draw.second for draw in draws]],
        torch.tensor([draw.lam for draw in draws]),
    )  # fmt: skip
    return mixed, np.array([examples[draw.first].label for draw in draws])


def _by_choice(
    pair: Pair, wanted: Tensor, labellers: Labellers, labels: np.ndarray, seed: int, candidates: int,
    originals: Sequence[str] | None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of the texts at embeddings [n, d] by how one of several candidates is chosen."""
    n = len(wanted)
    uniforms = np.concatenate([row_stream(seed, row).random((candidates, SAMPLING.max_tokens)) for row in range(n)])
    texts = pair.invert(wanted, SAMPLING, uniforms, candidates=candidates)
    reread = pair.task_model.encode(texts)
    cosine = nn.functional.cosine_similarity(reread, wanted.repeat_interleave(candidates, dim=0), dim=1)
    ours, theirs = (pair.task_model.predict_proba(points) for points in (wanted, reread))
    agreement = 1 - np.abs(ours.repeat(candidates, axis=0) - theirs).sum(1) / 2  # 1 − total variation distance
    greedy = pair.invert(wanted, dataclasses.replace(GREEDY, max_tokens=SAMPLING.max_tokens))
    chosen = {"greedy": greedy}
    if steps := pair.corrections(None, WORD_WEIGHT):
        chosen[f"corrected {steps} times"], _ = pair.correct(
            wanted, greedy, pair.task_model.encode(greedy), steps=steps, max_tokens=SAMPLING.max_tokens
        )
    for weight in AGREEMENT:
        score = (cosine.numpy() + weight * agreement).reshape(n, candidates)
        chosen[f"best of {candidates}, class agreement × {weight:g}"] = [
            texts[row * candidates + at] for row, at in enumerate(score.argmax(1))
        ]
    found = {}
    for how, these in chosen.items():
        kept = labellers.reference.label(labellers.plain.task_model.encode(these)) == labels
        found_at = pair.task_model.encode(these)
        found[how] = {
            "retention": round(float(kept.mean()), 4),
            "own_retention": round(labellers.own.retention(wanted, found_at), 4),
            "cosine": round(float(nn.functional.cosine_similarity(found_at, wanted, dim=1).mean()), 4),
        }
        if originals is not None:
            f1 = [token_f1(one, two) for one, two in zip(originals, these, strict=True)]
            found[how]["token_f1"] = round(float(np.mean(f1)), 4)
    return found


def main() -> None:
    """Run the grid; finished cells are not run again."""
    parser = argparse.ArgumentParser(prog="python -m studies.retention", description="Label retention by stage.")
    parser.add_argument("data", type=Path, help="folder with a folder for each set: train.jsonl and test.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the cells and summary.json")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--shots", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=64, help="texts, and mixes, of a cell")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--mixes", action=argparse.BooleanOptionalAction, default=True, help="cross-class mixes too")
    options = parser.parse_args()
    settings = {"n": options.n, "candidates": options.candidates, "mixes": options.mixes, "stages": options.stages}
    run = study_run(options.output, settings, [None])
    pair = Pair.load()

    def make(name: str, shots: int, seed: int) -> dict[str, Any]:
        return cell(pair, options.data, name, shots, seed, **settings)

    grid = ((name, shots, seed) for shots in options.shots for seed in range(options.seeds) for name in options.sets)
    records = run_grid(grid, make, run)
    rows = summarise(records)
    write_whole(options.output / "summary.json", json.dumps(rows, indent=1).encode())
    table = new_table("set", "shots", "seeds", "stage", "what", "choice", "retention", "own", "cosine", "token F1")
    for row in rows:
        f1 = "–" if row["token_f1"] is None else f"{row['token_f1']:.3f}"
        table.add_row(
            row["set"], str(row["shots"]), str(row["seeds"]), row["stage"], row["what"], row["choice"],
            f"{row['retention']:.3f}", f"{row['own_retention']:.3f}", f"{row['cosine']:.3f}", f1,
        )  # fmt: skip
    output().print(table)


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds for each set, number of shots, stage, kind of text and choice."""
    found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for record in records:
        for stage, whats in record["stages"].items():
            for what in ("reconstruction", "cross-class"):
                for choice, figures in whats.get(what, {}).items():
                    found.setdefault((record["set"], record["shots"], stage, what, choice), []).append(figures)
    names = ("set", "shots", "stage", "what", "choice")
    return [
        {**dict(zip(names, key, strict=True)), "seeds": len(figures), **{
            name: float(np.mean([one[name] for one in figures])) if name in figures[0] else None
            for name in ("retention", "own_retention", "cosine", "token_f1")
        }}
        for key, figures in found.items()
    ]  # fmt: skip


if __name__ == "__main__":
    run(main)
