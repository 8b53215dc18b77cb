"""What is printed: tables on a terminal, plain lines in a pipe, no colour where it is not wanted."""

import contextlib
import io
import logging

import pytest

from inversedmixup.commands import mix
from inversedmixup.terminal import gauge, new_table, output, show_logs

STRIP = {
    "first": "one [bold]",
    "second": "two",
    "strip": [
        {"lam": 1.0, "lam_realised": 0.9, "cycle_similarity": 0.8, "text": "long " * 60 + "[red]end[/red]"},
        {"lam": 0.0, "lam_realised": 0.1, "cycle_similarity": 0.7, "text": "short"},
    ],
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_in_a_pipe_a_row_is_one_plain_line(capsys):
    mix.show(STRIP)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "[red]end[/red]" in lines[1]
    assert not set("│┃━─\x1b") & set("".join(lines))


@pytest.mark.parametrize("verbosity", [0, 1])
def test_in_a_pipe_a_log_line_is_unbroken_and_ends_where_it_ends(capsys, verbosity):
    show_logs(verbosity)
    said = "[bold]my folder[/bold] :smile: " + "and so on " * 40 + "end"
    logging.getLogger("inversedmixup.test").warning("%s", said)
    assert capsys.readouterr().err == ("WARNING  " if verbosity else "") + said + "\n"


def test_on_a_terminal_log_lines_keep_to_its_width(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with contextlib.redirect_stderr(terminal):
        show_logs()
        logging.getLogger("inversedmixup.test").warning("and so on " * 20)
    assert max(map(len, terminal.getvalue().splitlines())) <= 40


def test_on_a_terminal_the_strip_shows_its_ends_and_where_the_texts_lie(terminal):
    with contextlib.redirect_stdout(terminal):
        mix.show(STRIP)
    shown = terminal.getvalue()
    assert "┃" in shown
    assert "one [bold]" in shown
    assert gauge(0.9) in shown


@pytest.mark.parametrize(("unwanted", "coloured"), [(None, True), ("1", False)])
def test_no_color_is_respected(terminal, monkeypatch, unwanted, coloured):
    if unwanted:
        monkeypatch.setenv("NO_COLOR", unwanted)
    with contextlib.redirect_stdout(terminal):
        output().print("x", style="red")
    assert ("\x1b[31m" in terminal.getvalue()) == coloured


@pytest.mark.parametrize(("ratio", "mark"), [(1.0, 0), (0.5, 5), (0.0, 10)])
def test_the_gauge_has_the_first_parent_on_the_left(ratio, mark):
    assert gauge(ratio).index("●") == mark
    assert len(gauge(ratio)) == 11


def test_tables_have_no_lines_in_a_pipe():
    assert new_table("a").box is None
