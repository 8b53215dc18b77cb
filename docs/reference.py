"""A hook of mkdocs: the command-line reference, written from the options themselves."""

from __future__ import annotations

import argparse
from typing import Any

from inversedmixup.cli import COMMANDS, _parser

MARK = "<!-- every command and its options -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference in the place of its mark."""
    return markdown.replace(MARK, command_line_reference()) if MARK in markdown else markdown


def command_line_reference() -> str:
    """A section for each command: what it is for, what it is given, and a table of its options."""
    return "\n\n".join(_section(name, about) for name, about in COMMANDS.items())


def _section(name: str, about: str) -> str:
    chosen = next(action for action in _parser(name)._actions if isinstance(action, argparse._SubParsersAction))
    actions = [action for action in chosen.choices[name]._actions if not isinstance(action, argparse._HelpAction)]
    given = " ".join(str(action.metavar or action.dest) for action in actions if not action.option_strings)
    rows = [f"| `{', '.join(a.option_strings)}` | {_help(a)} |" for a in actions if a.option_strings]
    lines = [f"## {name}", f"{about[0].upper() + about[1:]}.", f"`inversedmixup {name} {given}`"]
    return "\n\n".join([*lines, "\n".join(["| option | |", "|---|---|", *rows])])


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
    choices = f"; one of {', '.join(map(str, action.choices))}" if action.choices else ""
    return text + choices
