"""Texts of the data where they could act on what shows them: on a terminal, in a line of JSON, in Markdown."""

from __future__ import annotations

import html
import re

# Control characters (category Cc), but for tab and line feed, and the marks that turn the direction of writing
# (Bidi_Control): a terminal obeys them, and with them a text looks like another one.
CONTROLS = (
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)  # fmt: skip
_REPLACED = dict.fromkeys(CONTROLS, "\ufffd")
_IN_JSON = {code: f"\\u{code:04x}" for code in CONTROLS}
_SPACED = dict.fromkeys((*CONTROLS, ord("\t"), ord("\n")), " ")
# What the Hub's Markdown reads within a line, and no more, so that sentences stay readable: not an underscore between
# letters, nor a closing bracket; addresses become links by their :// and www., and a heading loses a # at its end.
_MARKUP = re.compile(r"[\\`*\[|~$]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=www)\.|#$", re.IGNORECASE)


def printable(text: str) -> str:
    """A text for a terminal: a ``�`` in the place of every character that a terminal would obey."""
    return text.translate(_REPLACED)


def printable_json(line: str) -> str:
    """The same JSON, in which such characters are escaped; ``json.dumps`` leaves those beyond ASCII as they are."""
    return line.translate(_IN_JSON)


def markdown(text: str) -> str:
    """A text for a heading, a line or a table of Markdown: no markup, no cell border, one line."""
    return html.escape(_MARKUP.sub(r"\\\g<0>", text.translate(_SPACED)), quote=False)


def code(text: str) -> str:
    """A code span of Markdown: one line, fenced with more backticks than it holds."""
    line = text.translate(_SPACED)
    fence = _fence(line, 1)
    pad = " " if line[:1] in ("`", " ") or line[-1:] in ("`", " ") else ""  # one at each end is taken away
    return f"{fence}{pad}{line}{pad}{fence}"


def code_block(text: str) -> str:
    """A block of code of one line."""
    line = text.translate(_SPACED)
    fence = _fence(line, 3)
    return f"{fence}\n{line}\n{fence}"


def _fence(line: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", line)), default=0))
