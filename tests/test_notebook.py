"""The notebook: it runs from top to bottom on the real pair, and shows what it did.

``make notebook`` runs it and keeps what it shows.
"""

import json
import re
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "story.ipynb"


def run(folder):
    """The notebook, run in a folder."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": folder}}, timeout=1200).execute()
    return notebook


def results(notebook):
    """What each cell of code shows; not warnings, which hold paths of the machine."""
    return {
        cell["id"]: [output for output in cell["outputs"] if output.get("name") != "stderr"]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    }


def texts(shown):
    """The same as one text a cell."""
    found = {}
    for cell, outputs in shown.items():
        parts = [output.get("text") or output["data"]["text/plain"] for output in outputs]
        found[cell] = "".join(part if isinstance(part, str) else "".join(part) for part in parts)
    return found


def kept():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_a_reader_sees_what_every_cell_shows_and_nothing_of_the_machine():
    notebook = kept()
    assert all(texts(results(notebook)).values())
    for cell in notebook["cells"]:
        assert not cell["metadata"]  # there nbclient keeps times
        assert not [output for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    shown = "".join(texts(results(notebook)).values())
    assert not re.search(r"/\w+/|[A-Z]:\\|seconds", shown)


def test_the_strip_is_the_one_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("$ inversedmixup mix", 1)[1].split("```", 1)[0]
    rows = [line.split(maxsplit=3) for line in readme.splitlines() if re.match(r" [01]\.\d\d ", line)]
    assert len(rows) == 7
    strip = texts(results(kept()))["cell-3"].splitlines()
    assert strip == [f"λ {lam}  λ̂ {realised}  cycle {cycle}  {text}" for lam, realised, cycle, text in rows]


@pytest.mark.real
def test_the_notebook_runs_and_shows_what_it_showed(tmp_path):
    now, before = results(run(tmp_path)), results(kept())
    for cell, outputs in list(before.items())[:-1]:  # of the last, rejected rows, there may be none on other hardware
        assert [output["output_type"] for output in now[cell]] == [output["output_type"] for output in outputs], cell
    shown, known = texts(now), texts(before)
    assert shown["cell-1"] == known["cell-1"]
    lams = re.compile(r"^λ [\d.]+", re.MULTILINE)
    assert lams.findall(shown["cell-3"]) == lams.findall(known["cell-3"])
    assert len(re.findall(r"^.{18} λ 0\.\d\d  cycle 0\.\d\d  .+", shown["cell-7"], re.MULTILINE)) == 8


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as place:
        made = run(place)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    for cell, ran in zip(stored.cells, made.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = results(made)[cell.id], ran.execution_count
    nbformat.write(stored, NOTEBOOK)
