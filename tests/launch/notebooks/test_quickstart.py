"""The notebook runs from the first cell to the last, with fewer updates, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.launchers import ROOT, rows

_PATH = ROOT / "launch" / "notebooks" / "quickstart.ipynb"


def test_the_notebook_has_no_outputs() -> None:
    notebook = nbformat.read(_PATH, as_version=4)
    nbformat.validate(notebook)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own libraries
def test_the_notebook_trains_watches_fills_scores_compares_and_exports(
    cache_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    text = _PATH.read_text()
    assert text.count('\\"max_steps\\": 300, \\"eval_steps\\": 100') == 1
    text = text.replace(
        '\\"max_steps\\": 300, \\"eval_steps\\": 100', f'\\"max_steps\\": 4, \\"cache_dir\\": \\"{cache_dir}\\"'
    )
    notebook = nbformat.reads(text, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "".join(output.get("text", "") for output in outputs)
    assert "1/4 [" in shown or "4/4 [" in shown  # the bar
    results = [output["data"]["text/plain"] for output in outputs if output.output_type == "execute_result"]
    table, fills, scores, _ = results
    assert "eval_perplexity" in table
    assert "token_str" in fills
    assert scores.count("This function returns") == 2
    folder = tmp_path / "runs" / "notebook"
    assert [rows(folder / name)[-1]["step"] for name in ("muon", "adamw")] == [4, 4]
    assert "adamw" in (folder / "compared.html").read_text()
    assert (folder / "onnx" / "model.onnx").is_file()
