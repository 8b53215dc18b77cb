"""What the documents say runs: Python snippets on tiny models, command lines through the parsers."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from conftest import write_jsonl
from inversedmixup import __version__
from inversedmixup.cli import COMMANDS, _parser
from inversedmixup.models import pair as pairs
from tiny import LABELS, SENTENCES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fenced(page):
    """The language and content of every fenced block, in pairs: the end of one must not be taken for a beginning."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def blocks(language):
    return [
        pytest.param(content, id=f"{page.name}-{at}")
        for page in PAGES
        for at, content in enumerate(content for found, content in fenced(page) if found == language)
    ]


def command_lines():
    """Every ``inversedmixup …`` line of a fenced block that is not Python, comments and continuations put aside."""
    found = {}
    for page in PAGES:
        for block in (content for language, content in fenced(page) if language in ("", "bash", "console")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("inversedmixup ") and "…" not in line:
                    found[f"{page.name}: {line}"] = line
    return [pytest.param(line, id=name) for name, line in found.items()]


@pytest.mark.parametrize("snippet", blocks("python"))
def test_python_snippets_run(snippet, tmp_path, monkeypatch, tiny_pair_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pairs, "default_pair_folder", lambda: Path(tiny_pair_folder))
    wanted = {"tolerance": 1.0, "task_steps": 3, "refine_steps": 1}  # random models: a drop means nothing
    from inversedmixup.mixer import InversedMixup

    # files that augment takes and makes
    rows = [{"text": text, "label": name} for text, name in zip(SENTENCES, LABELS, strict=True)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "more.jsonl", [{**row, "label_probs": dict.fromkeys(LABELS, 1 / 3)} for row in rows])
    real = InversedMixup.fit
    monkeypatch.setattr(InversedMixup, "fit", lambda self, *a, **k: real(self, *a, **{**wanted, **k}))
    judged = {"force_judge": True, "judge_steps": 2}
    label = InversedMixup.label
    monkeypatch.setattr(InversedMixup, "label", lambda self, texts, **k: label(self, texts, **{**judged, **k}))
    whole = InversedMixup._augment
    monkeypatch.setattr(InversedMixup, "_augment", lambda self, n, options: whole(self, n, {**judged, **options}))
    exec(compile(snippet, "snippet", "exec"), {"texts": SENTENCES, "labels": LABELS, "unlabelled": ["the box is late"]})


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_ones_that_the_commands_take(line):
    words = shlex.split(line, comments=True)[1:]
    chosen = next(word for word in words if word in COMMANDS)
    assert _parser(chosen).parse_args(words).command == chosen


def test_the_command_line_reference_has_every_command_and_option():
    namespace = {}
    exec((ROOT / "docs" / "reference.py").read_text(encoding="utf-8"), namespace)
    written = namespace["on_page_markdown"]((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    assert all(f"## {name}" in written for name in COMMANDS)
    assert "--worker-gpus" in written
    assert namespace["MARK"] not in written


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (":class:<code>~inversedmixup.schema.Row</code>", "<code>Row</code>"),
        (":data:<code>FOLDS</code>", "<code>FOLDS</code>"),
        (":meth:<code>Pair.correct &lt;inversedmixup.models.pair.Pair.correct&gt;</code>", "<code>Pair.correct</code>"),
        ("a list: <code>x</code>", "a list: <code>x</code>"),
    ],
)
def test_roles_of_docstrings_are_shown_as_names(said, shown):
    namespace = {}
    exec((ROOT / "docs" / "reference.py").read_text(encoding="utf-8"), namespace)
    assert namespace["on_page_content"](said) == shown


def anchors(page):
    """What links can lead to in a page, as GitHub and as Python-Markdown name its headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    bare = [re.sub(r"[^\w\s-]", "", text).strip().lower() for text in headings]
    ascii_only = [text.encode("ascii", "ignore").decode() for text in bare]
    return {text.replace(" ", "-") for text in bare} | {re.sub(r"[-\s]+", "-", text) for text in ascii_only}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings_that_are_there(page):
    for where, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = page.parent / where if where else page
        assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name}: {where}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_two_intervals_beside_each_other_are_no_link(page):
    """``[−1, +1] [0, +2]`` is a link to something called "0, +2" to Markdown, which ends the build of the site."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"\] ?\[[^\]]*\]", prose) == []


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert "fit_resample" in page
    assert not re.search(r":[a-z]+:<code>", page)


def test_no_target_replaces_the_editable_install():
    installs = re.findall(r'.*pip install.*"\.\[.*', (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(installs) > 3
    assert all("--editable" in line for line in installs)


def test_the_version_stands_in_one_place_and_is_cited():
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
