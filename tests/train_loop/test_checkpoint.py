"""P5, without the kills: a checkpoint is what was saved, or it is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.models import tiny_model
from train_loop import CheckpointError, MaskedLMObjective, TrainConfig, TrainState, build_optimizers
from train_loop.checkpoint import load_start, load_tensors, save_checkpoint, save_model, verify
from train_loop.model import load_model
from train_loop.parallel import full_state, load_full_state
from train_loop.run_checkpoints import (
    RunCheckpoints,
    checkpoint_folder,
    checkpoints,
    find_checkpoint,
    remove_old,
)

IDENTITY = {"seed": 1, "block_size": 16}


def _optimizers(model: torch.nn.Module, kind: str, steps: int) -> list[torch.optim.Optimizer]:
    optimizers = build_optimizers(model, TrainConfig(optimizer=kind))  # type: ignore[arg-type]
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
    return optimizers


def _optimizer_tensors(model: PreTrainedModel, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    _, tensors = full_state(MaskedLMObjective(model), optimizers, is_wanted=True)
    return tensors


def _save(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, step: int, kind: str = "adamw") -> Path:
    model = tiny_model("modernbert")
    folder = checkpoint_folder(tmp_path, step)
    tensors = _optimizer_tensors(model, _optimizers(model, kind, steps=2))
    facts = {"state": TrainState(step=step), "identity": IDENTITY, "settings": {}, "data_state": {}}
    save_checkpoint(folder, model, tokenizer, tensors, **facts)
    return folder


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_is_loaded_is_what_was_saved_bit_for_bit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    model = tiny_model("modernbert")
    optimizers = _optimizers(model, kind, steps=3)
    state = TrainState(step=7, best_step=5, best_loss=1.5, evaluations_without_improvement=2, scaler={"scale": 4.0})
    folder = checkpoint_folder(tmp_path, 7)
    tensors = _optimizer_tensors(model, optimizers)
    facts = {"state": state, "identity": IDENTITY, "settings": {}, "data_state": {}}
    save_checkpoint(folder, model, tokenizer, tensors, **facts)

    verify(folder)
    assert load_start(folder, IDENTITY, {}).state == state
    reopened = AutoModelForMaskedLM.from_pretrained(folder)
    for (name, saved), loaded in zip(model.named_parameters(), reopened.parameters(), strict=True):
        assert torch.equal(saved, loaded), name
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    fresh = build_optimizers(reopened, TrainConfig(optimizer=kind))  # type: ignore[arg-type]
    load_full_state(MaskedLMObjective(reopened), fresh, load_tensors(folder))
    for old, new in zip(optimizers, fresh, strict=True):
        saved_state, loaded_state = old.state_dict()["state"], new.state_dict()["state"]
        assert saved_state.keys() == loaded_state.keys()
        for index, slots in saved_state.items():
            assert slots.keys() == loaded_state[index].keys()
            assert all(torch.equal(slots[slot], loaded_state[index][slot]) for slot in slots)


def test_a_loaded_model_computes_what_the_saved_one_did_down_to_one_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A product of one row rounds by where its matrix lies in memory: a model that was left in its file's memory map
    differs in the last bit at the first micro-batch with a single masked token."""
    folder = _save(tmp_path, tokenizer, 1)
    model = load_model(str(folder))
    before = tiny_model("modernbert")
    before.load_state_dict(model.state_dict())
    for num_masked in (1, 2, 7):
        batch = torch.arange(40)[None] + 5, torch.arange(num_masked)
        one, other = (MaskedLMObjective(m.eval()).logits(*batch) for m in (before, model))
        assert torch.equal(one, other), num_masked


def test_the_optimizer_is_kept_by_parameter_name(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = _save(tmp_path, tokenizer, 1, "muon")
    keys = load_file(folder / "optimizer.safetensors").keys()
    assert "model.embeddings.tok_embeddings.weight/exp_avg" in keys
    assert "model.layers.0.attn.Wqkv.weight/momentum_buffer" in keys


def test_every_truncation_and_every_flipped_bit_is_refused_by_file_name(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    good = _save(tmp_path, tokenizer, 1)
    bad = _save(tmp_path, tokenizer, 2)
    for path in sorted(bad.iterdir()):
        content = path.read_bytes()
        damages = [
            content[:-1],
            b"",
            bytes([content[0] ^ 1]) + content[1:],
            content[:-2] + bytes([content[-2] ^ 64]) + content[-1:],
        ]
        for damaged in damages:
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=str(bad)):
                verify(bad)
            assert find_checkpoint("latest", tmp_path) == good
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            verify(bad)
        path.write_bytes(content)
    assert find_checkpoint("latest", tmp_path) == bad


def test_a_file_that_is_not_in_the_manifest_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = _save(tmp_path, tokenizer, 1)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        find_checkpoint(str(folder), tmp_path)


def test_what_was_passed_over_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = _save(tmp_path, tokenizer, 1), _save(tmp_path, tokenizer, 2)
    (bad / "state.json").write_text("{}")
    assert find_checkpoint("latest", tmp_path) == good
    assert "skipped a checkpoint" in caplog.text
    assert "state.json is damaged" in caplog.text


def test_leftovers_of_a_broken_off_save_are_no_checkpoints(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = _save(tmp_path, tokenizer, 1)
    folder.rename(folder.with_name(folder.name + ".tmp"))
    assert checkpoints(tmp_path) == []
    assert find_checkpoint("latest", tmp_path) is None
    assert _save(tmp_path, tokenizer, 1) == find_checkpoint("latest", tmp_path)


def test_a_checkpoint_of_another_run_is_refused_by_field(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = _save(tmp_path, tokenizer, 1)
    with pytest.raises(CheckpointError, match=r"made with block_size=16, and this run has block_size=32"):
        load_start(folder, {**IDENTITY, "block_size": 32}, {})


def test_old_ones_go_but_never_the_best_and_never_the_one_just_written(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folders = {step: _save(tmp_path, tokenizer, step) for step in range(1, 6)}

    def left(written: int, keep: int | None, best_step: int | None) -> list[int]:
        remove_old(folders[written], keep, best_step)
        return [step for step, folder in folders.items() if folder.exists()]

    assert left(5, keep=None, best_step=None) == [1, 2, 3, 4, 5]
    assert left(5, keep=7, best_step=None) == [1, 2, 3, 4, 5]
    assert left(5, keep=2, best_step=1) == [1, 4, 5]
    assert left(5, keep=2, best_step=5) == [1, 4, 5]
    assert left(1, keep=1, best_step=None) == [1]  # written after a rewind, beside newer ones


def test_where_none_of_the_checkpoints_is_whole_none_is_gone_on_from(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert find_checkpoint("latest", tmp_path) is None
    for step in (1, 2):
        (_save(tmp_path, tokenizer, step) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole \(.*step-00000002.*step-00000001.*--over"):
        find_checkpoint("latest", tmp_path)


def test_the_final_model_replaces_the_one_before(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for seed in (0, 1):
        save_model(tmp_path / "model", tiny_model("bert", seed=seed), tokenizer)
    reopened = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    for saved, loaded in zip(tiny_model("bert", seed=1).parameters(), reopened.parameters(), strict=True):
        assert torch.equal(saved, loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not list((tmp_path / "model").glob("*.bin"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "bert"


def test_what_the_writer_writes_is_what_was_there_when_it_was_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Training changes parameters, optimizer and state while the writing goes on."""
    model = tiny_model("modernbert")
    optimizers = _optimizers(model, "adamw", steps=1)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected_optimizer = _optimizer_tensors(model, optimizers)
    state = TrainState(step=3)
    called: list[bool] = []
    writer = RunCheckpoints(
        TrainConfig(output_dir=str(tmp_path)),
        tokenizer,
        identity=IDENTITY,
        settings={},
        on_saved=lambda folder: called.append(folder.exists()),
    )
    folder = checkpoint_folder(tmp_path, 3)
    objective = MaskedLMObjective(model)
    writer.save(objective, *full_state(objective, optimizers, is_wanted=True), state=state, data_state={})
    state.step = 4
    for optimizer in optimizers:
        optimizer.step()
    writer.wait()
    assert called == [True]
    verify(folder)
    assert load_start(folder, IDENTITY, {}).state.step == 3
    reopened = AutoModelForMaskedLM.from_pretrained(folder)
    assert all(torch.equal(p, expected[name]) for name, p in reopened.named_parameters())
    written = load_file(folder / "optimizer.safetensors")
    assert written.keys() == expected_optimizer.keys()
    assert all(torch.equal(tensor, expected_optimizer[key]) for key, tensor in written.items())
    assert not torch.equal(model.state_dict()["decoder.bias"], expected["decoder.bias"])
