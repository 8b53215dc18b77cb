"""The notebook runs from top to bottom on the real pair."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.real
NOTEBOOK = Path(__file__).parents[1] / "docs" / "story.ipynb"


def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}, timeout=1200).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "λ 0.50" in printed
    assert "cycle" in printed
