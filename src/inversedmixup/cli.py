"""The command line: ``inversedmixup COMMAND``. Thin: it reads arguments, calls the library, prints the result.

Exit codes: 0 done, 2 bad input, a full disk or no memory (one line, no traceback), 130 interrupted (Ctrl-C, SIGTERM).
torch is imported by the command that needs it, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from inversedmixup import __version__
from inversedmixup.errors import InputError, out_of_memory
from inversedmixup.escapes import printable, printable_json

COMMANDS = {
    "augment": "make more labelled sentences from a labelled file (the main job)",
    "label": "label sentences that you have, by the judges that label new ones",
    "mix": "show what lies between two sentences",
    "invert": "reconstruct sentences from their embeddings, with scores",
    "align": "train an adaptor for any encoder and LLM on unlabelled text",
    "benchmark": "tell whether it helps on your data: methods side by side, and a verdict",
    "intrusion": "measure how often a mix belongs to another class than interpolation says",
    "report": "write what a run of augment made into one HTML file",
    "explore": "open a local page to mix, look and curate",
    "models": "list, fetch and verify the models that the default pair is made of",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        with _terminations_interrupt():
            return _main(argv)
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "what was finished is kept; run the same command again to go on"
        sys.stderr.write(f"interrupted: {said}\n")
        return 130


@contextlib.contextmanager
def _terminations_interrupt() -> Iterator[None]:
    """Let SIGTERM, by which schedulers announce the end, do what Ctrl-C does: stop, and keep what is finished."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(argv: Sequence[str] | None) -> int:
    _quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # λ is not in every encoding
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    parser = _parser(chosen if chosen in COMMANDS else None)
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return 0
    if sys.stdout is None:
        parser.error("standard output is closed; leave it open, or give it a file")
    options = vars(parsed)
    command = importlib.import_module(f"inversedmixup.commands.{options.pop('command')}")
    return _run(command, options)


class _Parser(argparse.ArgumentParser):
    """One that refuses arguments in one line, as commands refuse input."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where all of them are told."""
        self.exit(2, f"{self.prog}: {printable(message)}; see --help\n")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """All commands with their one-line help, and the flags of the chosen one only: the others need torch to know."""
    parser = _Parser(
        prog="inversedmixup", description="Readable new sentences between two of yours, with labels and evidence."
    )
    parser.add_argument("--version", action="version", version=f"inversedmixup {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, about in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        if name == chosen:
            importlib.import_module(f"inversedmixup.commands.{name}").add_arguments(sub)
            sub.add_argument("--json", action="store_true", help="print one JSON object as the last line")
            sub.add_argument("--verbose", action="store_true", help="show more of what goes on")
            sub.usage = " ".join(["%(prog)s", *given(sub), "[options]"])  # sixty flags in a row are not read
    return parser


def given(parser: argparse.ArgumentParser) -> list[str]:
    """What a command must be given, and files that it may be, as a usage line shows them."""
    files = [action for action in parser._actions if not action.option_strings]
    flags = [action for action in parser._actions if action.required and action.option_strings]
    shown = [f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar) for action in files]
    return [*shown, *(f"{action.option_strings[0]} {action.metavar}" for action in flags)]


def _run(command: Any, options: dict[str, Any]) -> int:  # noqa: ANN401 (a module)
    as_json, verbose = options.pop("json", False), options.pop("verbose", False)
    from inversedmixup.terminal import console, show_logs

    show_logs(int(verbose))
    try:
        _check_utf8(options)
        result = command.run(options)
        if not result:  # one of several processes, and not the one that reports
            return 0
        _show(command, result, as_json=as_json)
        return 0
    except InputError as error:
        console.print(f"inversedmixup: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except BrokenPipeError:
        _drop_output()
        return 0
    except Exception as error:
        # too long a name to look for, a folder that may not be read
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
            found = f"{str(error.filename)[:200]}: {error.strerror}; choose another name, or mend its permissions"
        elif out_of_memory(error):
            found = (
                f"memory has run out ({' '.join(str(error).split())[:80]}); lower --batch-size or free some, then run "
                f"the same command again: finished work is kept"
            )
        else:
            raise
        console.print(f"inversedmixup: {found}", style="red", markup=False, soft_wrap=True)
        return 2


def _show(command: Any, result: dict[str, Any], *, as_json: bool) -> None:  # noqa: ANN401
    """Print the result."""
    try:
        if as_json:
            unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "utf").lower()
            sys.stdout.write(printable_json(json.dumps(result, ensure_ascii=not unicode)) + "\n")
        else:
            command.show(result)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        raise InputError(
            f"standard output: cannot be written ({error.strerror}); run the same command again: finished work is kept"
        ) from error


def _drop_output() -> None:
    """Let go of what is not printed yet: Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_utf8(options: dict[str, Any]) -> None:
    from inversedmixup.data import LONE_SURROGATE

    for name, value in options.items():
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str) and LONE_SURROGATE.search(word):
                raise InputError(f"{name} {word!r}: not UTF-8; rename it, or choose another")


def _quiet_libraries() -> None:
    """Settings that must be in the environment before the libraries are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
