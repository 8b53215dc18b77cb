"""New texts from class names and examples, by the plain LLM: few-shot generation after GPT3Mix (Yoo et al. 2021).

As there, the prompt names the task's classes and lists examples, and the LLM goes on with the list. Other than there, a
list holds examples of one class and the text gets that class: GPT3Mix lists two examples of any classes, lets the LLM
write text and label, and takes its label likelihoods as a soft label, which asks for an LLM that can tell the classes
apart from two examples (the default LLM cannot: docs/log.md, "Judges"). ``generate-pooled`` gives the same texts the
labels of ``inversed-pooled``: it shows whether a gain comes from mixing or from the judge.

It costs what a mixed row costs: ``candidates`` texts a row (see :mod:`.prompted`).
"""

from __future__ import annotations

import numpy as np

from inversedmixup.baselines import Added, Method, Split
from inversedmixup.baselines.prompted import Answers, Request, answers, by_request, clipped

EXAMPLES = 3  # shown in a prompt
SHARING = 8  # rows of a class in a row that share their examples, and with them the work of reading these


def generated(split: Split) -> Answers:
    """New texts, classes in turn from a shuffled list."""
    order = split.stream(33).permutation(len(split.classes))
    meanings = split.config.described(split.classes)

    def request(row: int) -> Request:
        turn, place = divmod(row, len(order))
        label = split.classes[order[place]]
        own = [example.text for example in split.examples if example.label == label]
        rng = np.random.default_rng([split.config.seed, 34, place, turn // SHARING])
        shown = [own[at] for at in rng.permutation(len(own))[:EXAMPLES]]
        opening = f"Different texts of the class {meanings[label]}:\n"
        opening += "".join(f"- {clipped(text)}\n" for text in shown)
        return Request(opening, "-", "", label, tuple(shown))

    return answers(split, "generate", request)


def by_class(split: Split) -> Added:
    """New texts with the class asked for."""
    return by_request(split, generated(split))


def pooled(split: Split) -> Added:
    """The same texts labelled by what task model and tuned LLM say together."""
    return split.labelled(generated(split).texts)


METHODS = (
    Method("generate", "new texts by the plain LLM, from class names and examples (GPT3Mix-like)", added=by_class,
           writes=True),
    Method("generate-pooled", "the same new texts, labelled as inversed-pooled is", added=pooled,
           writes=True, tunes=1),
)  # fmt: skip
