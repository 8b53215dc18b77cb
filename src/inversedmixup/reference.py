"""A reference labeller: says which class a text belongs to, and how often it is right itself.

It is a logistic regression on the embeddings of a large labelled set. Whatever it measures carries its own error, so
that is reported beside every figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

FOLDS = 5


class ReferenceLabeller:
    """Logistic regression over embeddings.

    Args:
        embeddings: embeddings [n, d] of labelled texts.
        labels: their classes, two or more.

    Attributes:
        accuracy: share of held-out rows that it labels right, by (at most) five-fold cross-validation over the classes
            with two different rows or more; ``None`` if there are not two of those.
        n: rows that it was trained on.
    """

    def __init__(self, embeddings: Tensor, labels: Sequence[str]) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_score

        points, names, self.n = embeddings.numpy(), np.asarray(labels), len(labels)
        # embeddings are of unit length: the penalty must be weak for the classes to come apart
        model = LogisticRegression(C=10.0, max_iter=1000)
        # a row must not be held out from its copy, and a class of one row cannot be held out
        different = np.sort(np.unique(points, axis=0, return_index=True)[1])
        classes, counts = np.unique(names[different], return_counts=True)
        shared = different[np.isin(names[different], classes[counts > 1])]
        self.accuracy: float | None = None
        if (counts > 1).sum() > 1:
            folds = StratifiedKFold(min(FOLDS, int(counts[counts > 1].min())), shuffle=True, random_state=0)
            self.accuracy = float(cross_val_score(model, points[shared], names[shared], cv=folds).mean())
        self.model = model.fit(points, names)

    def label(self, embeddings: Tensor) -> np.ndarray:
        """The class [n] of each embedding [n, d]."""
        return np.asarray(self.model.predict(embeddings.numpy()))

    def retention(self, wanted: Tensor, found: Tensor) -> float:
        """Label retention: how often a text gets the label that the embedding it was written from gets.

        Args:
            wanted: embeddings [n, d] that were decoded.
            found: embeddings [n, d] of the texts they became.
        """
        return float((self.label(wanted) == self.label(found)).mean())
