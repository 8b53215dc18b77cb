"""``inversedmixup invert FILE``: sentences, to embeddings, and back."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from inversedmixup import reconstruction
from inversedmixup.card import WAYS, WORST, record_report
from inversedmixup.commands import add_config, kept, resolve
from inversedmixup.data import iter_sourced, read_examples
from inversedmixup.errors import InputError, clear_write_errors, local_path
from inversedmixup.identity import work_settings
from inversedmixup.labelled import check_classes
from inversedmixup.mixing import row_stream
from inversedmixup.models.correction import CORRECTIONS
from inversedmixup.models.pair import Pair, PairOptions
from inversedmixup.options import NOTHING, at_least, option
from inversedmixup.outputs import check_apart, check_ours
from inversedmixup.reference import ReferenceLabeller
from inversedmixup.remote import check_local
from inversedmixup.row_file import check_output, write_jsonl
from inversedmixup.runs import RUN_SUFFIX, RunFolder, recorded
from inversedmixup.schema import Example
from inversedmixup.sealed import digest, write_json
from inversedmixup.stages.writer import WriteConfig, write_texts
from inversedmixup.terminal import new_table, output, progress

BLOCK = 64  # sentences at a time


@dataclasses.dataclass(frozen=True)
class InvertConfig(PairOptions, WriteConfig):
    """Settings of ``invert``."""

    candidates: int = option(4, "with --evaluate: texts sampled for a sentence, of which the best is scored as well")
    correct: int | None = option(
        None, f"correction steps on the greedy text (default: {CORRECTIONS} where a word head weighs the words, else 0)"
    )
    rows: int | None = option(None, "only the first so many sentences", decides=NOTHING)
    evaluate: bool = option(
        False, "mean scores, greedy, best of --candidates and corrected, by length and by source", decides=NOTHING
    )
    reference: str | None = option(
        None, "labelled file: also label retention, by a labeller fitted to it", decides=NOTHING
    )
    record: bool = option(
        False,
        "with --evaluate and --pair: add the scores to the pair's record and model card, by FOLDER/FILE",
        decides=NOTHING,
    )
    record_worst: bool = option(
        False,
        f"with --record: also the {WORST} sentences of the file that come back worst, word for word",
        decides=NOTHING,
    )
    output: str | None = option(
        None,
        "write every reconstruction to this .jsonl; a killed run goes on from the folder beside it",
        decides=NOTHING,
    )
    overwrite: bool = option(False, "with --output: replace reconstructions with other settings", decides=NOTHING)
    text_column: str = option("text", "column of the text")
    label_column: str = option("label", "with --reference: column of the label")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="sentences: .txt, .jsonl, .csv or .parquet")
    add_config(parser, InvertConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Reconstruct every sentence; with ``--evaluate``, mean scores by way of decoding."""
    path = options.pop("file")
    config = resolve(InvertConfig, options)
    with kept(config.output):
        return _inverted(config, path)


def _inverted(config: InvertConfig, path: str) -> dict[str, Any]:
    output = _check_writes(config, path)
    sourced = list(islice(iter_sourced(path, config.text_column), config.rows))
    if not sourced:
        raise InputError(f"{path}: no sentence in it")
    labelled: list[Example] = []
    if config.reference:
        labelled = read_examples(config.reference, text_column=config.text_column, label_column=config.label_column)
        check_classes(labelled, config.reference)
    config.check_corrects(config.correct)
    run = _run_folder(config, output, [text for text, _ in sourced]) if output else None
    pair = config.load_pair()
    config = dataclasses.replace(config, correct=pair.corrections(config.correct, config.word_weight))
    with clear_write_errors(output) if output else contextlib.nullcontext():
        result, rows = _measured(pair, sourced, labelled, config, run)
    if output:
        with clear_write_errors(output):
            write_jsonl(rows, output)
            settings = dataclasses.asdict(config)
            write_json(_settings_file(output), {**settings, "sha256": digest(settings)})
    if config.record:
        name = "/".join(local_path(path).absolute().parts[-2:])  # trec/test.jsonl: many files are called test
        folder = local_path(str(config.pair))  # a folder of this machine, see _check_writes
        with clear_write_errors(folder):
            record_report(folder, name, result, rows if config.record_worst else [])
    if not config.evaluate:
        for way in WAYS:
            if way in result:
                result[way] = {key: value for key, value in result[way].items() if not isinstance(value, dict)}
    return {**result, "sample": rows[:10]}


def _check_writes(config: InvertConfig, path: str) -> Path | None:
    """Where the reconstructions go, if anywhere; what could not be written is refused before any work."""
    check_local("invert", path, config.output, config.reference)
    output = check_output(config.output) if config.output else None
    if output:
        if output.suffix != ".jsonl":
            raise InputError(f"--output {output}: end it in .jsonl")
        check_apart((output,), path, config.reference)
        check_ours(_settings_file(output), output, overwrite=config.overwrite)
    if config.record and not (config.evaluate and config.pair and local_path(config.pair).is_dir()):
        raise InputError("--record needs --evaluate, and --pair for the folder whose card to write")
    if config.record_worst and not config.record:
        raise InputError("--record-worst needs --record")
    return output


def _settings_file(output: Path) -> Path:
    return output.with_name(output.name + ".config.json")


def _run_folder(config: InvertConfig, output: Path, texts: Sequence[str]) -> RunFolder:
    """Where finished blocks are kept."""
    # the count says more to a person than a digest, e.g. when it is --rows that changed
    settings = {**work_settings(config, [Example("", text, "") for text in texts]), "rows": len(texts)}
    with clear_write_errors(output):
        return RunFolder(output.with_name(output.name + RUN_SUFFIX), settings, overwrite=config.overwrite)


def _ways(config: InvertConfig) -> dict[str, InvertConfig]:
    """The ways of decoding that are asked for, and the settings of each."""
    ways = {"greedy": dataclasses.replace(config, temperature=0.0, correct=0)}
    if config.evaluate and config.candidates > 1 and config.temperature > 0:
        ways["reranked"] = dataclasses.replace(config, correct=0)
    if config.correct:
        ways["corrected"] = dataclasses.replace(config, temperature=0.0)
    return ways


def _measured(
    pair: Pair,
    sourced: Sequence[tuple[str, str | None]],
    labelled: Sequence[Example],
    config: InvertConfig,
    run: RunFolder | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores by way of decoding, and every sentence with what it came back as: corrected, where the pair can.

    Which way that is stands under ``sample_way``.
    """
    texts, sources = [text for text, _ in sourced], [source for _, source in sourced]
    wanted = pair.task_model.encode(texts)
    result: dict[str, Any] = {}
    labeller = None
    if labelled:
        labeller = ReferenceLabeller(pair.task_model.encode([e.text for e in labelled]), [e.label for e in labelled])
        result["reference"] = {"accuracy": labeller.accuracy, "n": labeller.n}
    texts_of: dict[str, tuple[list[str], Tensor]] = {}
    for name, how in _ways(config).items():
        written = _by_block(pair, wanted, how, texts_of["greedy"] if how.correct else None, name, run)
        found = pair.task_model.encode(written)
        texts_of[name] = written, found
        fluency = pair.llm.log_likelihood(written)
        result[name] = {
            "decodes": _decodes(how), **reconstruction.report(written, texts, found, wanted, fluency, sources)
        }  # fmt: skip
        if labeller:
            result[name]["label_retention"] = labeller.retention(wanted, found)
    result["sample_way"] = "corrected" if "corrected" in texts_of else "greedy"
    best, found = texts_of[result["sample_way"]]
    cosine = nn.functional.cosine_similarity(found, wanted, dim=1).tolist()
    return result, [
        {
            "text": text, "reconstruction": written, "token_f1": reconstruction.token_f1(written, text),
            "cosine": round(near, 4),
        }
        for text, written, near in zip(texts, best, cosine, strict=True)
    ]  # fmt: skip


def _decodes(how: InvertConfig) -> int:
    """Texts decoded per sentence, so that ways can be compared at equal cost."""
    return (how.candidates if how.temperature > 0 else 1) + (how.correct or 0)


def _by_block(
    pair: Pair, wanted: Tensor, config: InvertConfig, greedy: tuple[list[str], Tensor] | None, way: str,
    run: RunFolder | None,
) -> list[str]:  # fmt: skip
    """Texts for embeddings [n, d], a block at a time: ``greedy`` ones corrected, or new ones."""

    def written(at: int) -> list[str]:
        part = slice(at, at + BLOCK)
        block = wanted[part]
        if greedy is None:
            streams = [row_stream(config.seed, at + offset) for offset in range(len(block))]
            return write_texts(pair, block, streams, config)[0]
        return pair.correct(
            block, greedy[0][part], greedy[1][part], steps=config.correct or 0, max_tokens=config.max_tokens,
            batch_size=config.batch_size, word_weight=config.word_weight,
        )[0]  # fmt: skip

    texts: list[str] = []
    with progress("inversion" if greedy is None else "correction", len(wanted)) as advance:
        for at in range(0, len(wanted), BLOCK):
            texts += recorded(run, f"{way}/{at:06d}", partial(written, at))
            advance(min(BLOCK, len(wanted) - at))
    return texts


def show(result: dict[str, Any]) -> None:
    """Reconstructions beside their originals, and the scores."""
    out = output()
    table = new_table("sentence", f"came back as ({result['sample_way']})", "token_f1", "cosine")
    for row in result["sample"]:
        table.add_row(Text(row["text"]), Text(row["reconstruction"]), f"{row['token_f1']:.2f}", f"{row['cosine']:.2f}")
    out.print(table)
    for name in WAYS:
        if name in result:
            scores = {key: value for key, value in result[name].items() if not isinstance(value, dict)}
            out.print(name + ": " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()), soft_wrap=True)
    out.print(f"{reconstruction.KEY}; decodes: texts written for a sentence", soft_wrap=True)
    if "reference" in result:
        found = result["reference"]
        share = "unknown" if found["accuracy"] is None else f"{found['accuracy']:.1%} by cross-validation"
        out.print(f"the reference labeller saw {found['n']} rows; its own accuracy: {share}")
    if "by_length" in result["greedy"]:
        out.print(_breakdown(result))


def _breakdown(result: dict[str, Any]) -> Table:
    """Greedy scores by length and by source."""
    names = ("n", "token_f1", "bleu", "exact", "cosine", "fluency")
    table = new_table("greedy", *names)
    for way in ("by_length", "by_source"):
        for key, scores in result["greedy"].get(way, {}).items():
            table.add_row(Text(key), *(f"{scores[name]:.3g}" for name in names))
    return table
