"""The judge as the classifier: if the LLM is tuned on the rows anyway, why not ask it itself?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from inversedmixup.baselines import Method, Split


def classified(split: Split, texts: Sequence[str]) -> np.ndarray:
    """Class probabilities [n, classes] by judge ``tuned``: a copy of the LLM, tuned by LoRA on the originals."""
    return split.dear("tuned").probabilities(texts, torch.empty(len(texts), 0))


METHODS = (
    Method("tuned-llm", "the LLM itself, tuned by LoRA on the originals, as the classifier", classify=classified,
           tunes=1),
)  # fmt: skip
