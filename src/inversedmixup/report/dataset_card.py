"""The dataset card beside the output: a README.md with the front matter that the Hugging Face Hub expects."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from inversedmixup.errors import InputError
from inversedmixup.escapes import code, code_block, markdown
from inversedmixup.models.pair import pair_folder, read_config
from inversedmixup.models.sources import WHEELS
from inversedmixup.outputs import is_marked, mark
from inversedmixup.report.results import RunResults, observer
from inversedmixup.runs import PLACES
from inversedmixup.sealed import write_text

logger = logging.getLogger(__name__)

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TEMPLATE = """
{mark}

# {title}

{kept} labelled sentences written by a language model between labelled sentences of {train}, with
[inversedMixup](https://arxiv.org/abs/2601.21543). None of these was written by a person. {originals}

## Rows

| label | original rows | new rows |
|---|---|---|
{labels}

{asked} were asked for, {tried} tried, {rejected} rejected; the rejected ones and their reasons are in
{rejected_file}. Columns: `id`, `text`, `label`, `label_probs`, `parents` (ids in the training file), `lam` (mixing
ratio), `lam_realised`, `cycle_similarity`, `fluency` (nats a token), `labels` (what each source says), `intruded`,
`seed`, `kept`, `reject_reason`.
{intrusion}
## Provenance

- training file: {train}, sha256 `{sha256}`
- {versions}
{models}

Made by:

{command}

## Licences

The rows derive from the training file: its licence decides what may be done with them, and it is not known here. Fill
in `license` above. The models' licences are those named above.

## What to mind

Facts in the sentences are invented. A text can repeat words of its parents or of the corpus that the models were
trained on: treat rows that were mixed from confidential text as confidential. Labels are machine-made; see the report.
"""


def card_path(output: Path) -> Path:
    """Where the card of an output lies: README.md, unless that file is somebody else's: then OUT.README.md."""
    path = output.with_name("README.md")
    if path.exists() and not is_marked(path, mark("card", output)):
        return output.with_name(f"{output.stem}.README.md")
    return path


def write_dataset_card(results: RunResults, kept: dict[str, int]) -> Path:
    """Write the card of a run's output, unless it was changed by hand since, and return its path.

    Args:
        results: the run.
        kept: kept rows per class.
    """
    path = card_path(results.output)
    if path.name != "README.md":
        logger.info("README.md there is not ours; the dataset card is %s", path.name)
    card = f"---\n{_front_matter(results)}\n---\n{_body(results, kept)}"
    write_text(path, card, mark("card", results.output))
    return path


def _front_matter(results: RunResults) -> str:
    from huggingface_hub import DatasetCardData

    rows, makers = results.summary["kept"] + _originals(results), ["machine-generated"]
    if _originals(results):
        makers.append("other")  # whoever made the training file
    data = DatasetCardData(
        pretty_name=results.output.stem, license="unknown", task_categories=["text-classification"],
        size_categories=next((size for limit, size in SIZES if rows < limit), "n>1M"),
        annotations_creators=makers, language_creators=[*makers],  # two lists: YAML would name the one
        tags=["synthetic", "data-augmentation", "inversedmixup"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": results.output.name}]}],
    )  # fmt: skip
    return str(data.to_yaml())


def _originals(results: RunResults) -> int:
    """How many rows of the training file the output begins with."""
    return sum(results.summary["originals"].values()) if results.summary.get("originals_repeated") else 0


def _body(results: RunResults, kept: dict[str, int]) -> str:
    summary, made = results.summary, results.provenance
    labels = sorted({*summary["originals"], *kept})
    train = code(made["train"]) if "train" in made else "the training file"
    count = _originals(results)
    return TEMPLATE.format(
        mark=mark("card", results.output), title=markdown(results.output.stem),
        train=train, kept=summary["kept"], asked=results.asked,
        labels="\n".join(f"| {markdown(n)} | {summary['originals'].get(n, 0)} | {kept.get(n, 0)} |" for n in labels),
        tried=summary["tried"], rejected=summary["tried"] - summary["kept"], rejected_file=code(results.rejected.name),
        sha256=made.get("train_sha256", "not recorded"),
        versions=", ".join(f"{n} {v}" for n, v in made.get("versions", {}).items()) or "versions not recorded",
        originals=f"The first {count} rows of the file are those of {train} itself." if count else "",
        intrusion=_intrusion(summary), models=_models(results.settings),
        command=code_block(made.get("command", "(not recorded)")),
    )  # fmt: skip


def _intrusion(summary: dict[str, Any]) -> str:
    """How many rows are intruded, and who says so; nothing where no row was kept."""
    if summary["intrusion_rate_kept"] is None:
        return ""
    (name, error), kept, tried = observer(summary), summary["intrusion_rate_kept"], summary["intrusion_rate"]
    errs = "" if error is None else f", who errs on {error:.0%} of the original rows,"
    return (
        f"\n{kept:.0%} of the new rows are `intruded` ({tried:.0%} of those tried): {name}{errs} sees a class in them\n"
        f"that holds less than half of the mix of the parents' labels.\n"
    )


def _models(settings: dict[str, Any]) -> str:
    """The pair's encoder and LLM, with release and licence where they are known."""
    name = settings.get(PLACES, {}).get("pair", settings.get("pair"))
    try:
        pair = read_config(pair_folder(name))
    except InputError:
        return f"- pair: {code(str(name))}"
    lines = []
    for part, name in (("encoder", pair.encoder), ("LLM", pair.llm)):
        wheel = WHEELS.get(name)
        about = f"{wheel.about}; {wheel.package} {wheel.version}; licence {wheel.licence}" if wheel else "see its card"
        lines.append(f"- {part} {code(name)}: {about}")
    return "\n".join(lines)
