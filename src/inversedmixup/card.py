"""The model card of a pair: ``MODEL_CARD.md`` beside its weights, made from its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inversedmixup.escapes import code, markdown
from inversedmixup.models.pair import PairConfig, read_config, write_config
from inversedmixup.models.sources import WHEELS
from inversedmixup.sealed import write_text

CARD = "MODEL_CARD.md"
SHOWN = ("n", "token_f1", "bleu", "exact", "cosine", "fluency", "label_retention")
WAYS = ("greedy", "reranked", "corrected")
WORST = 8  # failures kept in the card
# Published figures of inverters on texts of 32 tokens, for scale: other encoders, other sizes, other corpora.
PUBLISHED = (
    ("GTR, zero-step (Morris et al. 2023)", "0.67", "31.9", "0.91"),
    ("GTR, one correction step (Morris et al. 2023)", "0.80", "50.7", "0.96"),
    ("GPT-2 decoder attack, as reported there", "0.47", "1.0", "0.76"),
)
MARK = "<!-- model card, written by inversedmixup"
TEMPLATE = """{mark}

# {title}

An adaptor that turns sentence embeddings of {encoder} into soft tokens of {llm}{extras}. Trained by
[inversedmixup](https://arxiv.org/abs/2601.21543) (an implementation of "inversedMixup", arXiv 2601.21543).

## What it is made of

{models}
- adaptor: {soft_tokens} soft tokens, {layers} hidden layers of {hidden}; prompt {prompt}

## What it was trained on

{sentences} sentences ({tokens} target tokens) of {corpus}{taught}. {licences}

## How well sentences come back

{figures}

For scale, published inverters on texts of 32 tokens (other encoders, sizes and corpora):

| inverter | token F1 | BLEU | cosine |
|---|---|---|---|
{published}

{failures}
## What it is for, and what to mind

For writing new labelled sentences between two of yours, and for looking at what lies between them. Not for
recovering private text. Decoded texts can repeat pieces of the texts they were mixed from, and of the corpus: treat a
text that was mixed from confidential rows as confidential. It learnt from the corpus above; texts of other languages or
much longer ones come back as their gist at best. Facts in its sentences are invented.
"""


def record_report(folder: Path, name: str, result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Add what ``invert --evaluate`` measured on the file ``name`` to the record of a pair, and write its card.

    Args:
        folder: of the pair.
        name: of the file.
        result: its scores.
        rows: its sentences, whose worst are quoted; none where nothing of the file is to be told but scores.
    """
    config = read_config(folder)
    config.training.pop("failures", None)  # as earlier versions kept them
    report = {key: result[key] for key in (*WAYS, "reference") if key in result}
    if rows:
        worst = sorted(rows, key=lambda row: row["cosine"])[:WORST]
        report["failures"] = [{key: row[key] for key in ("text", "reconstruction", "cosine")} for row in worst]
    config.training.setdefault("reports", {})[name] = report
    write_config(folder, config)
    write_card(folder, config)


def write_card(folder: Path, config: PairConfig) -> None:
    """Write the card of a pair, unless it was changed by hand since."""
    training, adaptor = config.training, config.adaptor
    ranks = (("the LLM", config.lora_rank), ("the encoder", config.encoder_lora_rank))
    extras = "".join(f", with LoRA weights of rank {rank} on {part}" for part, rank in ranks if rank)
    extras += ", with an LLM all of whose weights were trained" if config.own_llm else ""
    extras += f", with a word head that knows {config.words.words:,} of its tokens" if config.words else ""
    card = TEMPLATE.format(
        mark=MARK, title=markdown(f"{config.encoder} → {config.llm}"), encoder=code(config.encoder),
        llm=code(config.llm), extras=extras, models=_models(config), soft_tokens=adaptor.soft_tokens,
        layers=adaptor.layers, hidden=adaptor.hidden, prompt=code(config.prompt),
        sentences=f"{training.get('sentences', 0):,}", tokens=f"{training.get('target_tokens', 0):,}",
        corpus=_names(training.get("corpus", [])) or "no corpus", figures=_figures(training),
        published="\n".join(f"| {' | '.join(row)} |" for row in PUBLISHED), failures=_failures(training),
        taught=_taught(training), licences=_licences(training.get("licences", {})),
    )  # fmt: skip
    write_text(folder / CARD, card, MARK)


def _taught(training: dict[str, Any]) -> str:
    """What later lessons saw, counting every pass."""
    parts = (("words", "word head"), ("correction", "corrector"))
    return "".join(
        f"; the {part}, in all its passes, {training[name]['sentences']:,} of "
        + _names(training[name].get("corpus", training.get("corpus", [])))
        for name, part in parts
        if name in training
    )


def _names(files: Sequence[str]) -> str:
    return ", ".join(map(markdown, files))


def _licences(known: dict[str, str]) -> str:
    """Whose texts they were, as many licences want it said."""
    if not known:
        return "The licences of those texts are those of the corpus."
    rows = "\n".join(f"| {markdown(source)} | {markdown(licence)} |" for source, licence in known.items())
    return f"Their sources:\n\n| source | licence |\n|---|---|\n{rows}"


def _models(config: PairConfig) -> str:
    lines = []
    for part, name in (("encoder", config.encoder), ("LLM", config.llm)):
        known, source = WHEELS.get(name), config.sources.get(name)
        about = f": {known.about} ({known.licence})" if known else ""
        pinned = f", {source['package']} {source['version']}, sha256 `{source['sha256']}`" if source else ""
        lines.append(f"- {part} {code(name)}{about}{pinned}")
    return "\n".join(lines)


def _figures(training: dict[str, Any]) -> str:
    """A table of every report, the first one by length too, or what the last validation measured if there is none."""
    lines = [f"| text | way | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 2) + "|"]
    notes = []
    for number, (name, report) in enumerate(training.get("reports", {}).items()):
        if "reference" in report:
            seen = report["reference"]
            known = "unknown" if seen["accuracy"] is None else f"{seen['accuracy']:.3f}"
            notes.append(f"- Reference labeller of {markdown(name)}: {seen['n']} rows, accuracy {known}.")
        for way in WAYS:
            if way in report:
                lines.append(_line(name, way, report[way]))
                parts = report[way]["by_length"] if number == 0 else {}
                lines += [_line("", f"{way}, {key} words", part) for key, part in parts.items()]
    if len(lines) == 2:
        lines.append(_line("validation", "greedy", training.get("metrics", {})))
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _line(name: str, way: str, scores: dict[str, Any]) -> str:
    cells = [f"{scores[key]:.4g}" if key in scores else "" for key in SHOWN]
    return f"| {markdown(name)} | {way} | {' | '.join(cells)} |"


def _failures(training: dict[str, Any]) -> str:
    """The worst texts of the first report that keeps them."""
    for name, report in training.get("reports", {}).items():
        rows = [
            f"| {markdown(row['text'])} | {markdown(row['reconstruction'])} | {row['cosine']:.2f} |"
            for row in report.get("failures", [])
        ]
        head = [f"The worst of {markdown(name)}:", "", "| sentence | came back as | cosine |", "|---|---|---|"]
        if rows:
            return "\n".join([*head, *rows, "", ""])
    return ""
