"""Whether a judge is to be trusted: how often it is right, against how often the interpolated labels are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from inversedmixup.errors import InputError
from inversedmixup.judges.panel import TOGETHER
from inversedmixup.labels import interpolated_accuracy, parse_labels
from inversedmixup.schema import Row

logger = logging.getLogger(__name__)


def describe(record: dict[str, Any]) -> str:
    """A judge's record in words."""
    if not record["n"]:
        return f"judge {record['name']}: no row of yours was left to measure it on"
    if record["accuracy"] is None:
        return f"judge {record['name']} abstained on all {record['n']} rows of yours that it was asked about"
    silent = f", silent on {1 - record['coverage']:.0%}" if record["coverage"] < 1 else ""
    alone = ", ".join(f"{name} on {share:.0%}" for name, share in _alone(record).items())
    return (
        f"judge {record['name']} is right on {record['accuracy']:.0%} of {record['n']} rows of yours{silent}"
        f"{alone and f' (alone: {alone})'}"
    )


def _alone(record: dict[str, Any]) -> dict[str, float]:
    """How often each of several judges is right who says something about every row."""
    said = {name: score for name, score in record.get("judges", {}).items() if name not in TOGETHER}
    if len(said) < 2:
        return {}
    return {name: score["accuracy"] for name, score in said.items() if score["coverage"] == 1}


def warn_of_better_alone(record: dict[str, Any]) -> None:
    """Tell of a judge whom the others make worse: right more often alone, by more than two standard errors."""
    together, rows = record["accuracy"], record["n"]
    better = max(_alone(record).items(), key=lambda one: one[1], default=None)
    if together is None or better is None:
        return
    name, alone = better
    # of the Wilson kind, one more row right and one more wrong: all right is no certainty
    shares = [(share * rows + 1) / (rows + 2) for share in (alone, together)]
    error = (sum(share * (1 - share) for share in shares) / rows) ** 0.5
    if alone - together > 2 * error:
        logger.warning(
            "judge %s alone is right on %.0f %% of these rows, together with the others on %.0f %%: --labels pool:%s "
            "labels better%s", name, 100 * alone, 100 * together, name,
            "; it teaches a task model nothing that it does not know, though" if name == "task" else "",
        )  # fmt: skip


def compare(record: dict[str, Any], pilot: Sequence[Row], classes: int) -> dict[str, Any]:
    """The record with what a judge says about the interpolated labels of the first rows.

    Adds ``agreement`` (the share of judged rows on which the two name the same class), ``judged`` rows, and
    ``interpolated_accuracy`` (see :func:`~inversedmixup.labels.interpolated_accuracy`), where they can be had.
    """
    verdict = record["verdict"]
    judged = [row for row in pilot if row.labels[verdict] is not None]
    found: dict[str, Any] = {"judged": len(judged), "agreement": None, "interpolated_accuracy": None}
    if judged:
        agreement = sum(row.labels[verdict] == row.labels["soft"] for row in judged) / len(judged)
        found["agreement"] = round(agreement, 4)
        if record["accuracy"] is not None:
            share = interpolated_accuracy(agreement, record["accuracy"], classes)
            found["interpolated_accuracy"] = None if share is None else round(share, 4)
    return {**record, **found}


def check(record: dict[str, Any], labels: str, classes: int, *, force: bool) -> None:
    """Refuse a judge whose labels would be worse than the interpolated ones, by more than a standard error.

    Args:
        record: what :func:`compare` returned.
        labels: the label policy, as the user wrote it.
        classes: how many there are.
        force: only warn.

    Raises:
        InputError: if the policy would use the judge's labels, and they are wrong more often, no better than chance, or
            of a judge that could not be measured.
    """
    if not parse_labels(labels).trusts_judge:
        return
    share, accuracy = record["interpolated_accuracy"], record["accuracy"]
    if share is not None and (share <= accuracy or share - accuracy <= _error(record, classes)):
        return
    if accuracy is None or record["agreement"] is None:
        rival = "so nobody knows whether it is to be trusted"
    elif share is None:
        rival = "no better than chance"
    else:
        rival = f"the interpolated label on about {share:.0%} of the new texts"
    _refuse(
        f"--labels {labels}: {describe(record)}, {rival}; use --labels soft --pairs same-class, "
        f"--labels drop:{record['name']} or another judge (with --overwrite or another output), or --force-judge",
        force,
    )  # fmt: skip


def check_alone(record: dict[str, Any], labels: str, counts: Mapping[str, int], *, force: bool) -> None:
    """Refuse a judge of real texts who is clearly worse than always naming the largest class.

    Args:
        record: of :func:`~inversedmixup.judges.judge_record`.
        labels: the label policy, as the user wrote it.
        counts: the user's rows of each class, largest first.
        force: only warn.

    Raises:
        InputError: if he is right less often by more than a standard error, no better than chance, or not measured.
    """
    largest, rows = next(iter(counts)), sum(counts.values())
    accuracy, share = record["accuracy"], counts[largest] / rows
    if accuracy is None:
        rival = "so nobody knows whether it is to be trusted"
    else:
        error = (accuracy * (1 - accuracy) / max(1.0, record["n"] * record["coverage"])) ** 0.5
        if accuracy > max(1 / len(counts), share - error):
            return
        rival = f"and always saying {largest!r} would be on {share:.0%}"
    _refuse(
        f"--labels {labels}: {describe(record)}, {rival}; label more rows yourself or name another judge (with "
        f"--overwrite or another output), or add --force-judge", force,
    )  # fmt: skip


def _refuse(message: str, force: bool) -> None:
    if not force:
        raise InputError(message)
    logger.warning("%s", message)


def _error(record: dict[str, Any], classes: int) -> float:
    """Standard error of the difference between the two accuracies of a record, were they the same in truth.

    The rival's is seen through the judge (the delta method): were he right more often than measured, it would be found
    as much lower, so that his error counts twice.
    """
    both = (record["accuracy"] + record["interpolated_accuracy"]) / 2
    agreement, slope = record["agreement"], both - (1 - both) / (classes - 1)
    of_judge = 4 * both * (1 - both) / max(1.0, record["n"] * record["coverage"])
    of_rival = agreement * (1 - agreement) / max(1, record["judged"]) / slope**2
    return float((of_judge + of_rival) ** 0.5)
