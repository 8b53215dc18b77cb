"""Hooks of mkdocs: the command-line reference, written from the options; docstrings that name other things."""

from __future__ import annotations

import argparse
import re
from typing import Any

from inversedmixup.cli import COMMANDS, _parser, given

MARK = "<!-- every command and its options -->"


# as a docstring says it, in HTML: :meth:`~package.Class.name` or :meth:`words <package.Class.name>`
ROLE = re.compile(r":[a-z]+:<code>(?:([^<]+?) &lt;[^<]+&gt;|~[\w.]*?(\w+)|([^<]+))</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Show roles of docstrings as what they stand for."""
    return ROLE.sub(lambda found: f"<code>{found[1] or found[2] or found[3]}</code>", html)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference in the place of its mark."""
    return markdown.replace(MARK, command_line_reference()) if MARK in markdown else markdown


def command_line_reference() -> str:
    """A section for each command: what it is for, what it is given, and a table of its options."""
    return "\n\n".join(_section(name, about) for name, about in COMMANDS.items())


def _section(name: str, about: str) -> str:
    commands = next(action for action in _parser(name)._actions if isinstance(action, argparse._SubParsersAction))
    parser = commands.choices[name]
    parts = [f"## {name}", f"{about[0].upper() + about[1:]}.", f"`inversedmixup {name} {' '.join(given(parser))}`"]
    for group in parser._action_groups:
        rows = [f"| `{', '.join(a.option_strings)}` | {_help(a)} |" for a in group._group_actions if _is_option(a)]
        if rows:
            parts.append("\n".join([f"| {group.title} | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _is_option(action: argparse.Action) -> bool:
    return bool(action.option_strings) and not isinstance(action, argparse._HelpAction)


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
    choices = f"; one of {', '.join(map(str, action.choices))}" if action.choices else ""
    return text + choices
