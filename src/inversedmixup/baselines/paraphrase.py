"""Back-to-parent paraphrase: the plain LLM is shown rows in other words, then a row of the user.

It costs what a mixed row costs: ``candidates`` texts a row (see :mod:`.prompted`). Few examples and no chat template,
for an LLM of 135M parameters answers a question that it is told to rewrite, and a prompt of this form fits any LLM.
"""

from __future__ import annotations

from inversedmixup.baselines import Added, Method, Split
from inversedmixup.baselines.prompted import Answers, Request, answers, by_request, clipped

# of no data set; half of them are questions, which the LLM would answer rather than ask in other words
SHOWN = (
    ("how do i change my password ?", "what do i have to do to get a new password ?"),
    ("The parcel arrived two days late and the box was open.", "My package came open, two days after it should have."),
    ("Which river runs through the old town?", "What is the name of the river in the old town?"),
    ("Please turn the lights off before you leave.", "Before going out, switch off the lamps, please."),
    ("Who wrote the song that she sang last night?", "The song she sang last night, whose work is it?"),
    ("Floods close three schools in the north", "Three northern schools shut as the water rises"),
)
OPENING = "".join(f"Text: {text}\nThe same in other words: {other}\n" for text, other in SHOWN) + "Text:"
ENDING = "\nThe same in other words:"


def paraphrases(split: Split) -> Answers:
    """Rows of the split in other words, each with its parent's class; parents in turn from a shuffled list."""
    order = split.stream(32).permutation(len(split.examples))

    def request(row: int) -> Request:
        parent = split.examples[order[row % len(order)]]
        return Request(OPENING, f" {clipped(parent.text)}", ENDING, parent.label, (parent.text,))

    return answers(split, "paraphrase", request)


def by_parent(split: Split) -> Added:
    """Paraphrases with their parents' labels."""
    return by_request(split, paraphrases(split))


def pooled(split: Split) -> Added:
    """The same paraphrases labelled by what task model and tuned LLM say together."""
    return split.labelled(paraphrases(split).texts)


METHODS = (
    Method("paraphrase", "rows in other words by the plain LLM, to a prompt", added=by_parent, writes=True),
    Method("paraphrase-pooled", "the same paraphrases, labelled as inversed-pooled is", added=pooled, writes=True,
           tunes=1),
)  # fmt: skip
