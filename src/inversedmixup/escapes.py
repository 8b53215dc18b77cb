"""Texts of the data where they could act on what shows them: on a terminal, in a line of JSON."""

from __future__ import annotations

# Control characters (category Cc), but for tab and line feed, and the marks that turn the direction of writing
# (Bidi_Control): a terminal obeys them, and with them a text looks like another one.
CONTROLS = (
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)  # fmt: skip
_REPLACED = dict.fromkeys(CONTROLS, "\ufffd")
_IN_JSON = {code: f"\\u{code:04x}" for code in CONTROLS}


def printable(text: str) -> str:
    """A text for a terminal: a ``�`` in the place of every character that a terminal would obey."""
    return text.translate(_REPLACED)


def printable_json(line: str) -> str:
    """The same JSON, in which such characters are escaped; ``json.dumps`` leaves those beyond ASCII as they are."""
    return line.translate(_IN_JSON)
