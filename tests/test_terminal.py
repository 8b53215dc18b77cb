"""What is printed: tables on a terminal, plain lines in a pipe, no colour where it is not wanted."""

import contextlib
import io
import json
import logging
import re
import types
import unicodedata

import pytest
from rich.cells import cell_len
from rich.text import Text

from inversedmixup import cli
from inversedmixup import terminal as shown_by
from inversedmixup.commands import augment, benchmark, intrusion, invert, label, mix
from inversedmixup.escapes import CONTROLS, printable
from inversedmixup.terminal import gauge, new_table, output, progress, show_logs

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
    monkeypatch.setattr(shown_by.console, "_width", None)  # COLUMNS as it was when the console was made
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


OBEYED = (
    "a\x1b[31mred\x1b]0;title\x07\x1b[2J\x9b31m\x7f\u202eb\u2066c\r"  # colour, window title, empty screen, turned round
)
SCORES = {"accuracy": 0.5, "macro_f1": 0.5, "ece": 0.5, "nll": 0.5}
RATE = {"rate": 0.5, "low": 0.4, "high": 0.6, "corrected": None}
RESULTS = {
    mix: {
        "first": OBEYED, "second": OBEYED,
        "strip": [
            {"lam": 1.0, "lam_realised": 0.9, "cycle_similarity": 0.8, "text": OBEYED, "label_probs": {OBEYED: 1.0}}
        ],
    },
    label: {
        "sample": [{"label": OBEYED, "confidence": 0.5, "text": OBEYED}], "output": OBEYED, "labelled": 1, "asked": 2,
        "rejected": {"unsure": 1}, "rejected_output": OBEYED, "classes": {OBEYED: 1}, "seconds": 1.0,
        "judge": {"name": OBEYED, "accuracy": None, "interpolated_accuracy": None, "n": 0},
    },
    augment: {
        "sample": [{"lam": 0.5, "label": OBEYED, "text": OBEYED, "parents": [OBEYED, OBEYED]}], "output": OBEYED,
        "asked": 1, "kept": 1, "tried": 1, "rejected": {}, "intrusion_rate": 0.0, "intrusion_rate_kept": 0.0,
        "cycle_similarity": 0.5, "lam_correlation": None, "near_copies": 0, "near_copies_searched": 1,
        "report": OBEYED, "seconds_by_stage": {OBEYED: 1.0},
    },
    benchmark: {"methods": {OBEYED: SCORES}, "verdicts": [OBEYED], "output": "there"},
    invert: {
        "sample": [{"text": OBEYED, "reconstruction": OBEYED, "token_f1": 0.5, "cosine": 0.5}], "sample_way": "greedy",
        "greedy": {"n": 1, "by_length": {}, "by_source": {OBEYED: dict.fromkeys(
            ("n", "token_f1", "bleu", "exact", "cosine", "fluency"), 1.0
        )}},
    },
    intrusion: {
        "observers": [{"name": OBEYED, "accuracy": None}], "reference_knows_the_parents": False, "output": OBEYED,
        "pictures": [], "rates": [
            {"lam": lam, "space": OBEYED, "pairs": "any", "interpolation": "slerp", "observer": "reference",
             "contradicted": RATE, "foreign": RATE} for lam in (None, *intrusion.LAMS)
        ],
    },
}  # fmt: skip


def obeyed(text):
    """What a terminal would obey in a text, besides line ends, tabs and the colours that are ours."""
    return [letter for letter in re.sub("\x1b\\[[0-9;]*m", "", text) if ord(letter) in CONTROLS]


@pytest.mark.parametrize("command", RESULTS, ids=lambda command: command.__name__.rpartition(".")[2])
@pytest.mark.parametrize("on_terminal", [True, False])
def test_no_command_sends_a_texts_control_characters_to_the_terminal(terminal, monkeypatch, command, on_terminal):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setattr(terminal, "isatty", lambda: on_terminal)
    with contextlib.redirect_stdout(terminal):
        command.show(RESULTS[command])
    assert "red" in terminal.getvalue()
    assert "\x1b[31mred" not in terminal.getvalue()
    assert not obeyed(terminal.getvalue())


def test_nor_do_log_lines_errors_and_progress_bars(terminal, monkeypatch):
    monkeypatch.setattr(shown_by.console, "_file", terminal)
    monkeypatch.setattr(shown_by.console, "_force_terminal", True)
    show_logs()
    logging.getLogger("inversedmixup.somewhere").warning("%s [bold] :smile:", OBEYED)
    with progress(OBEYED + " [red]", 1):
        pass
    shown_by.console.print(f"inversedmixup: {OBEYED}", style="red", markup=False, soft_wrap=True)
    assert "[bold] :smile:" in terminal.getvalue()
    assert "\x1b[31mred" not in terminal.getvalue()
    assert not set("\x9b\x7f\u202e\u2066") & set(terminal.getvalue())
    assert "\x1b]0;" not in terminal.getvalue()


def test_json_holds_the_same_values_and_nothing_that_a_terminal_obeys(capsys):
    command = types.SimpleNamespace(run=lambda _: {"text": OBEYED, "λ": 1}, show=None)
    assert cli._run(command, {"json": True}) == 0
    line = capsys.readouterr().out
    assert not obeyed(line)
    assert json.loads(line) == {"text": OBEYED, "λ": 1}


def test_replaced_characters_keep_columns_straight_and_styles_in_place(terminal):
    with contextlib.redirect_stdout(terminal):
        table = new_table("a", "b")
        table.add_row("\x1b" * 9, Text.assemble("\u202e", ("dim", "red")))
        output().print(table)
    lines = re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert len({cell_len(line) for line in lines}) == 1
    assert "�" * 9 in lines[3]
    assert re.search("\x1b\\[[0-9;]*mdim", terminal.getvalue())


def test_every_control_character_but_tab_and_line_feed_is_replaced():
    kept = [letter for letter in map(chr, range(0x3000)) if printable(letter) == letter]
    assert {letter for letter in kept if unicodedata.category(letter) == "Cc"} == {"\t", "\n"}
    turning = {"RLE", "LRE", "RLO", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}
    assert not [letter for letter in kept if unicodedata.bidirectional(letter) in turning]
    assert printable("naïve 👩‍👩‍👧 بيت") == "naïve 👩‍👩‍👧 بيت"
