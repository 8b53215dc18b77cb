"""Text data augmentation by inverting mixed sentence embeddings (arXiv 2601.21543).

from inversedmixup import InversedMixup

mixer = InversedMixup.from_pretrained()
mixer.fit(texts, labels)
rows = mixer.augment(n=200)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inversedmixup.errors import InputError
    from inversedmixup.mixer import InversedMixup

__version__ = "0.2.0.dev3"
__all__ = ["InputError", "InversedMixup", "__version__"]


def __getattr__(name: str) -> object:
    """Import the public names when they are first used: importing the package stays light."""
    if name == "InversedMixup":
        from inversedmixup.mixer import InversedMixup

        return InversedMixup
    if name == "InputError":
        from inversedmixup.errors import InputError

        return InputError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
