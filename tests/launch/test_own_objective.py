"""An objective, and an average of the weights, each in one file of the user's own."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from tests.launch.conftest import Train
from tests.launchers import OF_THE_MACHINE, ROOT
from tests.models import tiny_model

TWO_TERMS = """
import torch
import torch.nn.functional as F

from train_loop import MaskedLMObjective


class Spotting(MaskedLMObjective):
    '''Beside the masked tokens: of every token, whether it is one of them. It has a head of its own.'''

    terms = {"masked_lm": 1.0, "spotting": 0.5}

    def __init__(self, model, bias=0.0):
        super().__init__(model)
        self.head = torch.nn.Linear(model.config.hidden_size, 1)
        torch.nn.init.constant_(self.head.bias, bias)

    def count(self, batch):
        return (batch.num_masked, batch.num_tokens)

    def forward(self, batch):
        hidden = self.model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
        target = torch.zeros(batch.input_ids.numel())
        target[batch.masked_positions] = 1
        losses = F.binary_cross_entropy_with_logits(self.head(hidden).flatten(), target, reduction="none")
        of_blocks = losses.view(batch.input_ids.shape)[batch.block_ids >= 0]  # a process without a share has none
        return torch.cat([super().forward(batch), of_blocks.sum().unsqueeze(0)])
"""

AVERAGE = """
import os
import signal
from pathlib import Path

import torch

from train_loop import build_optimizers

HALT = Path(__file__).with_name("halt")


class Average(torch.optim.Optimizer):
    '''An exponential average of the weights, with which the model is evaluated and saved.'''

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", p.detach().clone())
                average.lerp_(p, 1 - group["decay"])

    @torch.no_grad()
    def swap(self):
        for p, slots in self.state.items():
            weights = p.clone()
            p.copy_(slots["average"])
            slots["average"].copy_(weights)

    def eval(self):
        self.swap()
        if HALT.exists():
            os.kill(os.getpid(), signal.SIGTERM)

    train = swap


def averaged(objective, config):
    parameters = [p for p in objective.parameters() if p.requires_grad]
    return [*build_optimizers(objective, config), Average(parameters, {"lr": 0.0, "decay": 0.5})]


def kick(config, total_steps):
    return lambda step: 1.0 if step < 4 else 1e5
"""


@pytest.fixture
def spotting(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "spotting.py"
    path.write_text(TWO_TERMS)
    return ("--objective", f"{path}:Spotting", "--objective_kwargs", "bias=-2")


def _same(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in OF_THE_MACHINE} for row in rows]


def test_an_objective_of_two_terms_is_logged_by_term_and_saved_without_its_head(
    train: Train, spotting: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [row for row in train(tmp_path / "run", *spotting) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_masked_lm"] + 0.5 * row["loss_spotting"], rel=1e-12)
    assert rows[-1]["loss_spotting"] < rows[0]["loss_spotting"]  # it is trained
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_it_resumes_bit_for_bit_with_its_head(train: Train, spotting: tuple[str, ...], tmp_path: Path) -> None:
    words = (*spotting, "--save_steps", "3")
    whole = _same(train(tmp_path / "whole", *words))
    folder = tmp_path / "whole" / "checkpoints" / "step-00000003"
    assert load_file(folder / "optimizer.safetensors")["objective.head.weight"].shape == (1, 32)
    resumed = _same(train(tmp_path / "resumed", *words, "--resume_from_checkpoint", str(folder)))
    assert resumed == [row for row in whole if row["step"] > 3]


def test_its_update_is_the_same_in_any_micro_batches(
    train: Train, spotting: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Its two counts differ from micro-batch to micro-batch, each in its own way."""
    for part in (tiny_model("modernbert"), tokenizer):  # it has no dropout
        part.save_pretrained(tmp_path / "model")
    words = (*spotting, "--model_name_or_path", str(tmp_path / "model"), "--per_device_train_batch_size")
    one, cut = (
        [row for row in train(tmp_path / name, *words, size) if "loss" in row]
        for name, size in (("one", "8"), ("cut", "3"))
    )
    for a, b in zip(one, cut, strict=True):
        for name in ("loss", "loss_masked_lm", "loss_spotting", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), name


def test_the_example_of_the_readme_trains(train: Train, tmp_path: Path) -> None:
    _, code = (ROOT / "train_loop" / "README.md").read_text().split("```python\n")
    (tmp_path / "mine.py").write_text(code.partition("```")[0])
    row = train(tmp_path / "run", "--objective", f"{tmp_path / 'mine.py'}:WithSmallLogits", "--max_steps", "1")[0]
    assert row["loss"] == pytest.approx(row["loss_masked_lm"] + 1e-4 * row["loss_z"], rel=1e-12)
    assert row["loss_z"] > 1


@pytest.mark.parametrize(
    "change",
    ["the options", *(pytest.param(change, marks=pytest.mark.slow) for change in ("the file", "the objective"))],
)
def test_another_objective_does_not_go_on(
    change: str, train: Train, spotting: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", *spotting)
    words, what = {
        "the options": ((*spotting[:2], "--objective_kwargs", "bias=1"), "objective_kwargs="),
        "the file": (spotting, "objective (SHA-256 of the file)="),
        "the objective": ((), "objective="),
    }[change]
    if change == "the file":
        Path(spotting[1].removesuffix(":Spotting")).write_text(TWO_TERMS + "\n")
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", *words, "--resume_from_checkpoint", "latest")
    assert caught.value.code == 2
    assert f"was made with {what}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "masked-lm"), "objective='masked-lm' must be one of: masked_lm, replaced_tokens, or path"),
        (("--objective_kwargs", "weight=2"), "objective='masked_lm' with objective_kwargs={'weight': 2}: "),
        (("--objective", "{mine}:MaskedLM"), "has no 'MaskedLM'; did you mean 'MaskedLMObjective'?"),
        (("--objective", "{mine}:torch"), "torch is not a function"),
        (("--objective", "{mine}:F.relu"), "has no 'F.relu'"),
        (("--objective", "{mine}:repr"), "made a str, which is no train_loop.Objective"),
        (("--objective", "{mine}:Uncounted"), "must give a number for each of the terms, ['masked_lm', 'spotting']"),
    ],
)
def test_what_is_no_objective_is_one_line(
    words: tuple[str, ...], message: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    uncounted = "class Uncounted(Spotting):\n    def count(self, batch):\n        return (batch.num_masked,)\n"
    (tmp_path / "mine.py").write_text(f"{TWO_TERMS}\nrepr = repr\n\n{uncounted}")
    assert message in refusal(*(word.replace("{mine}", str(tmp_path / "mine.py")) for word in words))


def test_an_average_of_the_weights_is_what_is_evaluated_and_saved(train: Train, tmp_path: Path) -> None:
    (tmp_path / "average.py").write_text(AVERAGE)
    words = ("--optimizer", f"{tmp_path / 'average.py'}:averaged", "--eval_steps", "2")
    keep = ("--save_steps", "1", "--save_total_limit", "none")
    plain = train(tmp_path / "plain", "--eval_steps", "2", *keep)
    rows = train(tmp_path / "run", *words, *keep)
    assert [row["loss"] for row in rows if "loss" in row] == [row["loss"] for row in plain if "loss" in row]

    average: dict[str, torch.Tensor] = {}
    for step in range(1, 7):
        weights = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
        average = {name: 0.5 * average.get(name, weight) + 0.5 * weight for name, weight in weights.items()}
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, average[name], msg=name)
    assert any((tensor - weights[name]).abs().max() > 1e-4 for name, tensor in saved.items())

    last = [row for row in rows if "eval_loss" in row][-1]
    assert _loss_of(tmp_path / "run" / "model", train, tmp_path) == pytest.approx(last["eval_loss"], rel=1e-6)


def _loss_of(model: Path, train: Train, tmp_path: Path) -> float:
    """That of a run that begins from a model, before its first update."""
    words = ("--eval_on_start", "true", "--max_steps", "1", "--model_name_or_path", str(model))
    return train(tmp_path / "reopened", *words)[0]["eval_loss"]


def test_an_average_resumes_bit_for_bit_and_the_best_one_is_kept(train: Train, tmp_path: Path) -> None:
    """The rate makes the last updates bad ones."""
    mine = tmp_path / "average.py"
    mine.write_text(AVERAGE)
    words = ("--optimizer", f"{mine}:averaged", "--lr_scheduler_type", f"{mine}:kick", "--eval_steps", "2")
    words += ("--save_steps", "2", "--save_total_limit", "none", "--load_best_model_at_end", "true")
    whole = _same(train(tmp_path / "whole", *words))
    folder = tmp_path / "whole" / "checkpoints" / "step-00000002"
    resumed = _same(train(tmp_path / "resumed", *words, "--resume_from_checkpoint", str(folder)))
    assert resumed == [row for row in whole if row["step"] > 2]
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    losses = {row["step"]: row["eval_loss"] for row in whole if "eval_loss" in row}
    assert losses[6] > losses[4]
    assert _loss_of(tmp_path / "whole" / "model", train, tmp_path) == pytest.approx(min(losses.values()), rel=1e-6)


def test_a_run_that_is_stopped_while_the_average_is_evaluated_goes_on_bit_for_bit(train: Train, tmp_path: Path) -> None:
    """The checkpoint holds the weights that are trained, not the average that was in their place."""
    mine, halt = tmp_path / "average.py", tmp_path / "halt"
    mine.write_text(AVERAGE)
    words = ("--optimizer", f"{mine}:averaged", "--per_device_eval_batch_size", "8")
    whole = _same(train(tmp_path / "whole", *words))
    halt.touch()
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", *words)
    assert caught.value.code == 128 + signal.SIGTERM
    halt.unlink()
    assert _same(train(tmp_path / "run", *words, "--resume_from_checkpoint", "latest")) == whole
