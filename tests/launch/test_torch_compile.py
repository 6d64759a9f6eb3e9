"""What a run with ``--torch_compile`` compiles, by the compiler's own counters, and what it learns."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.launch.conftest import Train
from tests.launchers import OF_THE_MACHINE

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # the compiler looks at it, and hides the warning itself
]
_PROBE = ("--probe", "the cat <mask> on a mat")  # as evaluation, of another shape


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def _losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row[key] for row in rows for key in ("loss", "eval_loss") if key in row]


@pytest.mark.slow
def test_each_distinct_layer_is_compiled_once_for_each_shape_and_the_losses_stay(train: Train, tmp_path: Path) -> None:
    """Micro-batches of 3 + 3 + 2 blocks; a ModernBERT's first layer has no norm, so there are two kinds of layers."""
    words = (
        *("--model_type", "modernbert", "--train_tokenizer", "--vocab_size", "300", "--model_config"),
        *("hidden_size=32", "num_hidden_layers=3", "num_attention_heads=4", "intermediate_size=48"),
        *("--per_device_train_batch_size", "3", *_PROBE),
    )
    base = ("--max_steps", "6", "--block_size", "16", "--global_batch_size", "8", "--logging_steps", "1")
    base = (*base, "--eval_steps", "3", "--learning_rate", "1e-3")
    plain = train(tmp_path / "plain", *words, base=base)
    assert not counters["frames"]
    compiled = train(tmp_path / "compiled", *words, "--torch_compile", "true", base=base)
    assert counters["stats"]["unique_graphs"] == counters["frames"]["total"] == 2 * 2
    assert not counters["graph_break"]
    assert _losses(compiled) == pytest.approx(_losses(plain), rel=1e-4)


def test_one_graph_and_a_resumed_run_is_the_uninterrupted_one(train: Train, tmp_path: Path) -> None:
    """A RoBERTa's layers are all alike. Dropout is drawn in them, by the seed of the micro-batch as ever."""
    words = ("--torch_compile", "true", "--load_best_model_at_end", "true", *_PROBE)
    rows = train(tmp_path / "whole", *words)
    assert counters["stats"]["unique_graphs"] == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-00000006")
    torch.compiler.reset()
    counters.clear()
    resumed = train(tmp_path / "broken", *words, "--resume_from_checkpoint", "latest")
    assert counters["stats"]["unique_graphs"] == 1
    assert [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in resumed] == [
        {k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows
    ]


@pytest.mark.slow
@pytest.mark.parametrize("texts", [("--document_attention", "true"), ("--grouping", "line_by_line")])
def test_with_texts_side_by_side_no_later_update_compiles(texts: tuple[str, ...], train: Train, tmp_path: Path) -> None:
    """Rows of one width but for an epoch's last, or of another in each: one more graph of each part serves all."""
    graphs = []
    for num_steps in (12, 30):  # beyond the first short batch, at the end of an epoch
        torch.compiler.reset()
        counters.clear()
        size = ("--max_steps", str(num_steps), "--block_size", "32", "--eval_steps", "100")
        train(tmp_path / str(num_steps), "--torch_compile", "true", *texts, *size)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0
