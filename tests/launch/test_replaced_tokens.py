"""``--objective replaced_tokens``: what is trained, saved, resumed and refused, by the command."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedTokenizerBase

from launch.fill_mask import main as fill_mask
from tests.launch.conftest import Train
from tests.launchers import OF_THE_MACHINE
from tests.models import tiny_model

REPLACED = ("--objective", "replaced_tokens")
TABLE = "embeddings.word_embeddings.weight"


def _tensors(step: Path) -> dict[str, torch.Tensor]:
    return load_file(step / "model.safetensors") | load_file(step / "optimizer.safetensors")


def test_the_discriminator_is_saved_and_opened(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its embeddings as it reads them: the generator's, which stays in the checkpoint, and the learned difference."""
    rows = train(tmp_path / "run", *REPLACED, "--optimizer", "muon", "--eval_on_start", "true")
    shown = capsys.readouterr().out
    for row in (row for row in rows if "loss" in row):
        assert row["loss"] == pytest.approx(row["loss_generator"] + 50 * row["loss_discriminator"], rel=1e-12)
    first, *_, last = (row for row in rows if "eval_loss" in row)
    assert last["eval_loss"] < first["eval_loss"]
    assert {"eval_generator_perplexity", "eval_accuracy", "eval_original_share"} <= last.keys()
    assert f"accuracy {last['eval_accuracy']:.1%} | original share {last['eval_original_share']:.1%}" in shown
    assert "try it" not in shown

    for folder in (tmp_path / "run" / "model", tmp_path / "run" / "checkpoints" / "step-00000006"):
        model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        tensors = _tensors(tmp_path / "run" / "checkpoints" / "step-00000006")
        difference = tensors["objective.difference"]
        assert difference.norm() > 0
        table = tensors[f"objective.generator.roberta.{TABLE}"] + difference
        assert torch.equal(model.get_input_embeddings().weight, table)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card
    assert "FillMask" not in card
    assert "AutoModel" in card

    with pytest.raises(SystemExit):
        fill_mask(["--model", str(tmp_path / "run"), "the <mask> sat"])
    assert "has no trained masked-language-modeling head" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--objective_kwargs", "embedding_sharing=all", "--ema_decay", "0.8", "--optimizer", "muon"),
        pytest.param(("--ema_decay", "0.8", "--load_best_model_at_end", "true"), marks=pytest.mark.slow),
        pytest.param(("--objective_kwargs", "embedding_sharing=none", "generator_layers=2"), marks=pytest.mark.slow),
        pytest.param(("--grouping", "line_by_line", "--gradient_checkpointing", "true"), marks=pytest.mark.slow),
    ],
)
def test_it_resumes_bit_for_bit(words: tuple[str, ...], train: Train, tmp_path: Path) -> None:
    """Its generator, head and embeddings too, in the middle of an epoch."""
    words = (*REPLACED, *words, "--save_steps", "3")
    whole = train(tmp_path / "whole", *words)
    folder = tmp_path / "whole" / "checkpoints"
    resumed = train(tmp_path / "resumed", *words, "--resume_from_checkpoint", str(folder / "step-00000003"))
    found, expected = (
        [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in of] for of in (resumed, whole)
    )
    assert found == [row for row in expected if row["step"] > 3]
    one, other = (_tensors(tmp_path / run / "checkpoints" / "step-00000006") for run in ("whole", "resumed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    one, other = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "resumed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_average_of_the_weights_has_the_sum_of_the_averages(train: Train, tmp_path: Path) -> None:
    words = ("--ema_decay", "0.8", "--save_steps", "1", "--save_total_limit", "none")
    rows = train(tmp_path / "run", *REPLACED, *words)
    tensors = _tensors(tmp_path / "run" / "checkpoints" / "step-00000006")
    averages = [f"objective.generator.roberta.{TABLE}/weight_average", "objective.difference/weight_average"]
    model = load_file(tmp_path / "run" / "model" / "model.safetensors")
    torch.testing.assert_close(model[TABLE], tensors[averages[0]] + tensors[averages[1]])
    assert not torch.equal(model[TABLE], tensors[TABLE])
    assert math.isfinite(rows[-1]["eval_loss"])


@pytest.mark.parametrize("grouping", ["concatenate", "line_by_line"])
def test_its_update_is_the_same_in_any_micro_batches(
    grouping: str, train: Train, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Of padded texts too, whose real tokens are counted on the device, and whose micro-batches differ in width."""
    for part in (tiny_model("modernbert"), tokenizer):  # it has no dropout
        part.save_pretrained(tmp_path / "model")
    words = (*REPLACED, "--grouping", grouping, "--model_name_or_path", str(tmp_path / "model"))
    rows = {size: train(tmp_path / size, *words, "--per_device_train_batch_size", size) for size in ("8", "3")}
    for a, b in zip(rows["8"], rows["3"], strict=True):
        for name in a.keys() - OF_THE_MACHINE:
            assert b[name] == pytest.approx(a[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective_kwargs", "generator_layers=3"), "generator_layers is from 1 to 2, and embedding_sharing"),
        (("--objective_kwargs", "generator_layers=-1"), "generator_layers is from 1 to 2, and embedding_sharing"),
        (("--objective_kwargs", "embedding_sharing=some"), "gradient_disentangled, all, none"),
        (("--probe", "the <mask> sat"), "probe: a RobertaModel has no head that fills masks: use --probe none"),
        (("--document_attention", "true"), "attends to whole blocks: use --document_attention false"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    words: tuple[str, ...], message: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", *REPLACED, *words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert error.count("error: ") == 1  # before it, transformers reports that the head is not loaded


def test_a_dry_run_counts_its_memory_and_a_trial_finds_its_micro_batch(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = train(tmp_path / "run", *REPLACED, "--per_device_train_batch_size", "auto", "--max_steps", "1")
    assert rows[0]["flop_utilization"] > 0
    with pytest.raises(FileNotFoundError):  # it writes nothing
        train(tmp_path / "dry", *REPLACED, "--dry_run")
    assert "memory   for each of 8 processes about: DDP" in capsys.readouterr().out
