"""The exported graph computes what the model does, through ONNX Runtime, at any batch and length."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.models import sharpened, tiny_model
from train_loop import FillMask
from train_loop.sharing.export_onnx import compare_logits

ROOT = Path(__file__).parents[3]


def _saved(folder: Path, family: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    sharpened(tiny_model(family, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _export(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.publish", "export", *words],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_logits_and_the_top_five_are_those_of_the_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, family: str
) -> None:
    model_folder, output = _saved(tmp_path / "model", family, tokenizer), tmp_path / "onnx"
    done = _export("--model", str(model_folder), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    longest = {"roberta": 64, "modernbert": 2048}[family]
    assert f" at the most, on random texts of 5 to {longest:,} tokens\n" in done.stdout
    model = AutoModelForMaskedLM.from_pretrained(model_folder)
    exported = AutoTokenizer.from_pretrained(output)
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))

    mask = tokenizer.mask_token
    for texts in ([f"the cat sat on {mask}"], [f"a {mask} saw", f"then the {mask} and it sat on a mat", f"two {mask}"]):
        rows = exported(texts, padding=True, return_tensors="np")
        inputs = {name: rows[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        (logits,) = session.run(["logits"], inputs)
        with torch.no_grad():
            expected = model(**{name: torch.tensor(array) for name, array in inputs.items()}).logits.numpy()
        is_token = inputs["attention_mask"].astype(bool)
        np.testing.assert_allclose(logits[is_token], expected[is_token], rtol=0, atol=1e-5)
        top_five = np.argsort(-logits[inputs["input_ids"] == exported.mask_token_id])[:, :5]
        fills = FillMask(model, tokenizer)(texts)
        assert top_five.tolist() == [[fill["token"] for fill in of_text] for of_text in fills]


@pytest.mark.slow
def test_the_comparison_reaches_the_models_last_position(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A graph that differs there alone is seen."""
    model_folder = _saved(tmp_path / "model", "roberta", tokenizer)
    done = _export("--model", str(model_folder), "--output", str(tmp_path / "onnx"))
    assert done.returncode == 0, done.stderr
    model = AutoModelForMaskedLM.from_pretrained(model_folder).eval()
    with torch.no_grad():
        model.roberta.embeddings.position_embeddings.weight[-1].neg_()
    assert compare_logits(model, tmp_path / "onnx" / "model.onnx").difference > 0.01


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model_folder, output = _saved(tmp_path / "model", "roberta", tokenizer), tmp_path / "onnx"
    missing = _export("--model", str(tmp_path / "none"), "--output", str(output))
    assert missing.returncode == 2
    assert str(tmp_path / "none") in missing.stderr
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'onnx' else found(name, *more)\n"
    )
    words = ("--model", str(model_folder), "--output", str(output))
    no_onnx = _export(*words, PYTHONPATH=str(tmp_path / "packages"))
    assert (no_onnx.returncode, no_onnx.stderr) == (
        2, 'error: the ONNX export needs onnx: pip install "mlm-train-loop[onnx]"\n'
    )  # fmt: skip
    output.mkdir()
    there = _export(*words)
    assert there.returncode == 2
    assert "is there already" in there.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "onnx", "packages"]
    assert list(output.iterdir()) == []
    assert json.loads((model_folder / "config.json").read_text())["model_type"] == "roberta"
