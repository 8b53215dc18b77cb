"""Whether a judge is to be trusted: how often it is right, against how often the interpolated labels are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from inversedmixup.data import Row
from inversedmixup.errors import InputError
from inversedmixup.labels import interpolated_accuracy, parse_labels

logger = logging.getLogger(__name__)


def describe(record: dict[str, Any]) -> str:
    """A judge's record in words."""
    if record["accuracy"] is None:
        return f"judge {record['name']}: no row of yours was left to measure it on"
    silent = f", silent on {1 - record['coverage']:.0%}" if record["coverage"] < 1 else ""
    return f"judge {record['name']} is right on {record['accuracy']:.0%} of {record['n']} rows of yours{silent}"


def compare(record: dict[str, Any], pilot: Sequence[Row], classes: int) -> dict[str, Any]:
    """The record with what a judge says about the interpolated labels of the first rows.

    Adds ``agreement`` (the share of judged rows on which the two name the same class), ``judged`` rows, and
    ``interpolated_accuracy`` (see :func:`~inversedmixup.labels.interpolated_accuracy`), where they can be had.
    """
    verdict = "agreement" if "+" in record["name"] else record["name"]
    judged = [row for row in pilot if row.labels[verdict] is not None]
    found: dict[str, Any] = {"judged": len(judged), "agreement": None, "interpolated_accuracy": None}
    if judged:
        agreement = sum(row.labels[verdict] == row.labels["soft"] for row in judged) / len(judged)
        found["agreement"] = round(agreement, 4)
        if record["accuracy"] is not None:
            share = interpolated_accuracy(agreement, record["accuracy"], classes)
            found["interpolated_accuracy"] = None if share is None else round(share, 4)
    return {**record, **found}


def check(record: dict[str, Any], labels: str, *, force: bool) -> None:
    """Refuse a judge whose labels would be worse than the interpolated ones.

    Args:
        record: what :func:`compare` returned.
        labels: the label policy, as the user wrote it.
        force: only warn.

    Raises:
        InputError: if the policy would use the judge's labels, and they are wrong more often; or if they are no
            better than chance.
    """
    if not parse_labels(labels).trusts_judge or record["accuracy"] is None:
        return
    share = record["interpolated_accuracy"]
    if share is not None and record["accuracy"] >= share:
        return
    rival = (
        "no better than chance" if share is None else f"the interpolated label on about {share:.0%} of the new texts"
    )
    message = (
        f"--labels {labels}: {describe(record)}, {rival}; use --labels soft or drop:{record['name']}, another judge, "
        f"or --force-judge"
    )
    if not force:
        raise InputError(message)
    logger.warning("%s", message)
