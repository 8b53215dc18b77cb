"""``inversedmixup mix "A" "B"``: the λ strip; ``mix --evaluate FILE``: whether λ controls the text."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.text import Text

from inversedmixup.commands import add_config, kept, resolve
from inversedmixup.control import check_plot, lam_control, plot
from inversedmixup.data import iter_texts, label_name, read_examples
from inversedmixup.errors import InputError, clear_write_errors, local_path
from inversedmixup.files import iter_records
from inversedmixup.identity import work_settings
from inversedmixup.labelled import take_shots
from inversedmixup.mixer import InversedMixup
from inversedmixup.mixing import INTERPOLATIONS
from inversedmixup.models.pair import PairOptions
from inversedmixup.options import NOTHING, at_least, option
from inversedmixup.outputs import check_ours
from inversedmixup.remote import check_local
from inversedmixup.runs import RunFolder
from inversedmixup.schema import Example
from inversedmixup.sealed import write_json
from inversedmixup.stages.writer import DecodeConfig
from inversedmixup.terminal import gauge, new_table, output

PAIRS = 500


@dataclasses.dataclass(frozen=True)
class MixConfig(PairOptions, DecodeConfig):
    """Settings of ``mix``. A pair from ``OUT.run/model`` of an earlier ``augment`` shows its labels."""

    interpolation: str = option(
        "linear", "how embeddings are mixed; with --evaluate, whose figures by λ are shown: all are measured",
        choices=INTERPOLATIONS,
    )  # fmt: skip
    steps: int = option(7, "points on the strip, from λ = 1 to λ = 0", decides=NOTHING)
    train: str | None = option(None, "labelled file: fit the task model to it first, to show label probabilities")
    shots: int | None = option(None, "with --train: use only this many rows of each class")
    text_column: str = option("text", "column of the text")
    label_column: str = option("label", "column of the label")
    evaluate: str | None = option(
        None, "instead of A and B: sentences to pair at random, to see whether λ controls the text", decides=NOTHING
    )
    pairs: int | None = option(
        None,
        f"with --evaluate: how many pairs, each at eleven ratios by every interpolation (default: {PAIRS})",
        decides=NOTHING,
    )
    plot: str | None = option(None, "with --evaluate: a picture of it, .png, .svg or .pdf", decides=NOTHING)
    output: str | None = option(
        None,
        "with --evaluate: folder for control.json and finished pairs; a killed report goes on there",
        decides=NOTHING,
    )
    overwrite: bool = option(False, "replace a picture, or with --output a report of other settings", decides=NOTHING)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "steps")
        at_least(self, 2, "pairs")
        at_least(self, 1, "shots")
        names = ("train", "shots") if self.evaluate else ("pairs", "plot", "output", "overwrite")
        for name in names:
            if getattr(self, name) not in (None, False):
                raise InputError(f"mix: --{name} {'does not go with' if self.evaluate else 'needs'} --evaluate")
        if self.shots is not None and self.train is None:
            raise InputError("mix: --shots needs --train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("first", metavar="A", nargs="?", help="the sentence at λ = 1")
    parser.add_argument("second", metavar="B", nargs="?", help="the sentence at λ = 0")
    add_config(parser, MixConfig)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The strip's rows, or the λ control report."""
    first, second = options.pop("first"), options.pop("second")
    config = resolve(MixConfig, options)
    check_local("mix", config.evaluate, config.train, config.output, config.plot)
    config.check_corrects(config.correct)
    with kept(config.output):
        if config.evaluate:
            if first is not None:
                raise InputError("mix: give two sentences or --evaluate FILE, not both")
            return _evaluate(config, config.evaluate)
        if first is None or second is None:
            raise InputError("mix: two sentences are needed, or --evaluate FILE")
        return _strip(config, first, second)


def _strip(config: MixConfig, first: str, second: str) -> dict[str, Any]:
    """The λ strip between two sentences."""
    models = {field.name: getattr(config, field.name) for field in dataclasses.fields(PairOptions)}
    mixer = InversedMixup(**models, seed=config.seed)
    if config.train:
        examples = read_examples(config.train, text_column=config.text_column, label_column=config.label_column)
        if config.shots is not None:
            examples = take_shots(examples, config.shots, seed=config.seed)
        mixer.fit([example.text for example in examples], [example.label for example in examples])
    decode = {field.name: getattr(config, field.name) for field in dataclasses.fields(DecodeConfig)}
    return {"first": first, "second": second, "strip": mixer.strip(first, second, steps=config.steps, **decode)}


def _evaluate(config: MixConfig, path: str) -> dict[str, Any]:
    """λ control over random pairs of a file's sentences, by class where it has labels."""
    labels, column = None, config.label_column
    _, first = next(iter_records(path), (0, {}))
    # a column may be there and be empty, as tools write it for rows that nobody has labelled yet
    if column in first and any(label_name(record.get(column)) for _, record in iter_records(path, {column})):
        examples = read_examples(path, text_column=config.text_column, label_column=config.label_column)
        texts, labels = [example.text for example in examples], [example.label for example in examples]
    else:
        texts = list(iter_texts([path], config.text_column, log=True))
    picture = local_path(config.plot) if config.plot else None
    if picture:
        check_plot(picture)
    pairs = config.pairs or PAIRS
    if config.output is None:
        _check_picture(picture, config)
        report = lam_control(config.load_pair(), texts, labels, config, pairs)
    else:
        folder = local_path(config.output)
        read = [Example("", text, label) for text, label in zip(texts, labels or [""] * len(texts), strict=True)]
        same = dataclasses.replace(config, interpolation="linear")  # here it decides which one makes the headline
        control = folder / "control.json"
        check_ours(folder / "run" / "config.json", control, overwrite=config.overwrite)
        with clear_write_errors(folder):
            settings = {**work_settings(same, read), "pairs": pairs}
            run = RunFolder(folder / "run", settings, overwrite=config.overwrite, results=[control])
            _check_picture(picture, config, run)
            report = lam_control(config.load_pair(), texts, labels, config, pairs, run)
            write_json(control, report)
    if picture:
        with clear_write_errors(picture):
            plot(report, picture)
    return report


def _check_picture(picture: Path | None, config: MixConfig, run: RunFolder | None = None) -> None:
    """Refuse to replace a picture that this run did not draw; that it does is recorded."""
    if picture is None:
        return
    drawn = run.read("plot") if run else None
    if picture.exists() and drawn != str(picture.resolve()) and not config.overwrite:
        raise InputError(f"--plot {picture}: is there already; choose another name, or add --overwrite")
    if run:
        run.write("plot", str(picture.resolve()))


def show(result: dict[str, Any]) -> None:
    """The strip, or the report, as a table."""
    if "interpolations" in result:
        _show_control(result)
        return
    labelled = "label_probs" in result["strip"][0]
    out = output()
    drawn = [" A     λ̂     B "] if out.is_terminal else []  # a picture of the column before it
    table = new_table("λ", "λ̂", *drawn, "cycle", "text", *(["labels"] if labelled else []))
    for row in result["strip"]:
        cells: list[str | Text] = [
            f"{row['lam']:.2f}",
            f"{row['lam_realised']:.2f}",
            *([f" {gauge(row['lam_realised'])} "] if drawn else []),
            f"{row['cycle_similarity']:.2f}",
            Text(row["text"]),
        ]
        if labelled:
            best = sorted(row["label_probs"].items(), key=lambda item: -item[1])[:2]
            cells.append(Text(", ".join(f"{name} {p:.2f}" for name, p in best)))
        table.add_row(*cells)
    if drawn:
        out.print(
            Text.assemble(("A ", "bold"), result["first"]), Text.assemble(("B ", "bold"), result["second"]), sep="\n"
        )
    out.print(table)


def _show_control(result: dict[str, Any]) -> None:
    out = output()
    table = new_table("interpolation", "pairs", "Spearman λ, λ̂", "mean |λ − λ̂|", "snapped to a parent")
    for how, figures in result["interpolations"].items():
        for kind in ("all", "same-class", "cross-class"):
            part = figures if kind == "all" else figures.get(kind)
            if part:
                table.add_row(
                    how, kind, f"{part['spearman']:.3f}", f"{part['mean_abs_error']:.3f}", f"{part['snap_rate']:.1%}"
                )
    out.print(table)
    by_lam = new_table("λ", "mean λ̂", "cycle similarity", "fluency", title=result["interpolation"])
    for row in result["interpolations"][result["interpolation"]]["by_lam"]:
        numbers = (row["lam_realised"], row["cycle_similarity"], row["fluency"])
        by_lam.add_row(f"{row['lam']:.1f}", *(f"{number:.2f}" for number in numbers))
    out.print(by_lam)
    out.print(f"fluency of the sentences themselves: {result['real_fluency']:.2f} nats a token")
