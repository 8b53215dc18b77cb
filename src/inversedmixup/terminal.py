"""What a person sees while work goes on: log lines and a progress bar, both on stderr."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from rich.box import HEAVY_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from inversedmixup.escapes import printable

Advance = Callable[[float], None]


class _Console(Console):
    """Shows data as text, whoever prints: what a terminal would obey is replaced as the last thing of all."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class _Table(Table):
    """Replaces it in the cells too, where it counts for the width of a column."""

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        super().add_row(*map(_printable_cell, cells), **how)


def _printable_cell(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, Text):
        cell = cell.copy()
        cell.plain = printable(cell.plain)  # as many characters, so that its styles stay where they were
        return cell
    return printable(cell) if isinstance(cell, str) else cell


console = _Console(stderr=True, highlight=False, emoji=False)


PIPED_WIDTH = 10_000  # wide enough that a line of piped output is never broken


def output() -> Console:
    """Where results are printed: stdout; in colour on a terminal unless NO_COLOR is set, unbroken in a pipe."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return _Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def new_table(*columns: str, title: str | None = None) -> Table:
    """A table with lines around it on a terminal, plain columns in a pipe."""
    box = HEAVY_HEAD if sys.stdout.isatty() else None
    return _Table(*columns, title=title, title_justify="left", box=box, pad_edge=box is not None)


def gauge(ratio: float, width: int = 11) -> str:
    """A ratio in [0, 1] as a mark on a line; 1, the first parent, is on the left."""
    at = round((1 - ratio) * (width - 1))
    return "─" * at + "●" + "─" * (width - 1 - at)


class _Lines(logging.Handler):
    """Each record as it is: :class:`RichHandler` fills lines up to the console's width, and breaks what is longer."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            console.print(Text(self.format(record)), soft_wrap=True)
        except Exception:
            self.handleError(record)


def show_logs(verbosity: int = 0) -> None:
    """Send this package's log lines to stderr, unbroken in a pipe, and keep the libraries' chatter out."""
    if console.file.isatty():  # whatever the environment says of colours
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, show_time=False, show_level=verbosity > 0, markup=False
        )
    else:
        handler = _Lines()
        handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s" if verbosity else None))
    logger = logging.getLogger("inversedmixup")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbosity else logging.INFO)
    for name in ("sentence_transformers", "transformers", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def progress(title: str, total: float) -> Iterator[Advance]:
    """A progress bar on a terminal, nothing elsewhere; yields ``advance(amount)``."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C or SIGTERM that comes in this block take effect at its end: an update is whole or absent."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append((number, frame)))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for first, frame in came[:1]:
        handler = before[signal.Signals(first)]
        if callable(handler):
            handler(first, frame)
        elif handler == signal.SIG_DFL:
            signal.raise_signal(first)
