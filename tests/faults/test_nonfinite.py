"""A loss that is not finite on one process only: all stop at the same step, or leave the update out together.

The fault is real: one row of the model's input embeddings is NaN, so every block that shows this token has a NaN loss
on the process that got it.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerBase

from data import DataConfig, Order, build_blocks, open_documents
from tests.launchers import launcher, rows, run

BLOCK, BATCH, STEPS = 40, 10, 6


@pytest.fixture(scope="module")
def poisoned(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, cache_dir: str
) -> tuple[Path, list[str], int]:
    """A folder, the words of a run on it, and the step (from 1) that meets the poisoned token."""
    folder = tmp_path_factory.mktemp("poisoned")
    texts = ["the cat sat on a mat and then it saw two dogs " * 3] * 150
    poison = tokenizer("Q", add_special_tokens=False)["input_ids"][0]
    texts[70] += " Q"
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "validation.jsonl").write_text(json.dumps({"text": texts[0] * 4}) + "\n")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "modernbert", vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        tie_word_embeddings=False, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    settings = DataConfig(dataset=str(folder), block_size=BLOCK, cache_dir=cache_dir)
    blocks = build_blocks(open_documents(settings)[0], tokenizer, settings)
    (bad_block,) = np.flatnonzero((blocks[np.arange(len(blocks))] == poison).any(axis=1))
    # A seed by which an early, but not the first, step meets it on the second of two processes.
    for seed in range(1000):
        for step in range(2, STEPS - 1):
            place = np.flatnonzero(Order((len(blocks),), (1.0,), BATCH, seed).global_batch(step)[1] == bad_block)
            if len(place) and place[0] >= BATCH // 2:
                words = {
                    "dataset": folder, "model_name_or_path": folder / "model", "block_size": BLOCK, "seed": seed,
                    "global_batch_size": BATCH, "max_steps": STEPS, "eval_steps": STEPS, "save_steps": 1,
                    "save_total_limit": "none", "logging_steps": 1, "cache_dir": cache_dir, "learning_rate": 1e-3,
                    "mask_replace_prob": 1.0, "random_replace_prob": 0.0, "mlm_probability": 0.05,
                }  # fmt: skip
                return folder, [word for k, v in words.items() for word in (f"--{k}", str(v))], step + 1
    raise AssertionError("no such seed")


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_stop_at_the_same_step_and_name_the_blocks(
    num_processes: int, poisoned: tuple[Path, list[str], int], tmp_path: Path
) -> None:
    _, words, bad_step = poisoned
    command = launcher("python" if num_processes == 1 else "accelerate", num_processes)
    done = run(command, *words, "--output_dir", str(tmp_path))
    assert done.returncode == (1 if num_processes == 1 else done.returncode) != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.match(rf"error: step {bad_step}: the loss of blocks \[.*\d+.*\] is not a finite number", errors[0])
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == [f"step-{step:08d}" for step in range(1, bad_step)]


@pytest.mark.slow
def test_it_is_found_when_the_next_row_is_due_and_nothing_is_saved_before(
    poisoned: tuple[Path, list[str], int], tmp_path: Path
) -> None:
    _, words, bad_step = poisoned
    end = str(STEPS)
    done = run(
        launcher("python", 1), *words, "--output_dir", str(tmp_path), "--logging_steps", end, "--save_steps", end
    )  # fmt: skip
    assert done.returncode == 1
    assert f"error: step {bad_step}: the loss of blocks [" in done.stderr
    assert not (tmp_path / "checkpoints").exists()
    assert rows(tmp_path) == []


@pytest.mark.parametrize("shard", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_the_update_is_skipped_bit_for_bit_and_counted(
    shard: str, poisoned: tuple[Path, list[str], int], tmp_path: Path
) -> None:
    _, words, bad_step = poisoned
    words = [*words, "--shard", shard, "--on_nonfinite", "skip"]
    done = run(launcher("accelerate", 2), *words, "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "update skipped, 1 of at most 10" in done.stdout
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [s for s in range(1, STEPS + 1) if s != bad_step]

    def tensors(step: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")

    before, skipped, after = (tensors(step) for step in (bad_step - 1, bad_step, bad_step + 1))
    assert all(torch.equal(before[name], skipped[name]) for name in before if not before[name].isnan().any())
    assert not all(torch.equal(skipped[name], after[name]) for name in skipped if not skipped[name].isnan().any())
    state = json.loads((tmp_path / "checkpoints" / f"step-{STEPS:08d}" / "state.json").read_text())
    assert state["num_skipped_steps"] == 1


@pytest.mark.slow
def test_more_than_the_limit_stops_after_all(poisoned: tuple[Path, list[str], int], tmp_path: Path) -> None:
    _, words, _ = poisoned
    words = [*words, "--on_nonfinite", "skip", "--max_skipped_steps", "1", "--max_steps", "130", "--save_steps", "130"]
    done = run(launcher("python", 1), *words, "--output_dir", str(tmp_path))  # shown in most epochs
    assert done.returncode == 1
    assert "1 of at most 1" in done.stdout
    assert "error: step" in done.stderr
