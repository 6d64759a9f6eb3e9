"""``kill -9`` at any moment: nothing that loads is wrong, and the resumed run is the uninterrupted one, bit for bit."""

import multiprocessing
import random
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from tests.faults.running import start
from tests.launchers import DIFFUSION, OF_THE_MACHINE, REPLACED_TOKENS, launcher, rows, run, tiny_run
from tests.models import tiny_model
from train_loop import MaskedLMObjective, TrainConfig, TrainState, build_optimizers
from train_loop.checkpoint import load_start, load_tensors, save_checkpoint, verify
from train_loop.parallel import full_state, load_full_state
from train_loop.run_checkpoints import checkpoint_folder, checkpoints, find_checkpoint, remove_old

IDENTITY = {"seed": 1}


@pytest.mark.parametrize(
    ("kills", "how"),
    [
        (1, ()),
        pytest.param(25, (), marks=pytest.mark.slow),
        pytest.param(4, ("--shard", "true"), marks=pytest.mark.slow),
        pytest.param(1, (*REPLACED_TOKENS, "--optimizer", "muon"), marks=pytest.mark.slow),
        pytest.param(1, DIFFUSION, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_and_resumed_each_time(
    kills: int, how: tuple[str, ...], corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    """Each life begins at the last checkpoint, makes at least one step, and ends within a second of that."""
    rng = random.Random(0)
    steps = str(150 * kills)
    words = tiny_run(corpus_file, cache_dir, max_steps=steps, eval_steps=31, save_steps=7, logging_steps=5)
    trainers = launcher("torchrun", 2) if how else launcher("python", 1)
    command = [*trainers, *words, *how, "--resume_from_checkpoint", "latest"]
    here = (*command, "--output_dir", str(tmp_path / "run"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    killed = 0
    while killed < kills:
        before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        process = start(list(here), tmp_path, after_rows=before + 1)
        time.sleep(rng.random())
        if process.poll() is not None:
            break  # it came to its end first
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            one.kill()
        process.wait()
        killed += 1
    assert killed == kills, "the run is too short for so many kills"
    assert run(list(here)).returncode == 0
    assert run([*command, "--output_dir", str(tmp_path / "whole")]).returncode == 0

    last = f"step-{int(steps):08d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(tmp_path / f / "checkpoints" / last / name) for f in ("run", "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = (
        [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows(tmp_path / f)]
        for f in ("run", "whole")
    )
    assert one == other


def _model(step: int) -> torch.nn.Module:
    """A model whose every weight says which step it is of."""
    model = tiny_model("modernbert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(step))
    return model


def _save_for_ever(output_dir: Path, tokenizer: PreTrainedTokenizerBase, first: int) -> None:
    for step in range(first, first + 1000):
        model = _model(step)
        optimizers = build_optimizers(model, TrainConfig())
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float(step))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step()
        folder = checkpoint_folder(output_dir, step)
        _, tensors = full_state(MaskedLMObjective(model), optimizers, is_wanted=True)
        facts = {"state": TrainState(step=step), "identity": IDENTITY, "settings": {}, "data_state": {}}
        save_checkpoint(folder, model, tokenizer, tensors, **facts)
        remove_old(folder, keep=2, best_step=None)


@pytest.mark.parametrize("points", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_while_saving_no_checkpoint_loads_and_is_wrong(
    points: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A process does nothing but save, and is killed; what is left is checked against what each step must hold."""
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    newest = 0
    partial = 0
    for _ in range(points):
        process = context.Process(target=_save_for_ever, args=(tmp_path, tokenizer, newest + 1))
        process.start()
        while find_checkpoint("latest", tmp_path) is None and process.is_alive():
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.join()
        partial += any((tmp_path / "checkpoints").glob("*.tmp"))

        for folder in checkpoints(tmp_path):
            verify(folder)  # under its final name a checkpoint is complete
        latest = find_checkpoint("latest", tmp_path)
        assert latest is not None
        state = load_start(latest, IDENTITY, {}).state
        assert state.step >= newest
        newest = state.step
        assert all((tensor == newest).all() for tensor in load_file(latest / "model.safetensors").values())
        model = _model(newest)
        optimizers = build_optimizers(model, TrainConfig())
        load_full_state(MaskedLMObjective(model), optimizers, load_tensors(latest))
        averages = [slots["exp_avg"] for slots in optimizers[0].state.values()]
        assert len(averages) == len(list(model.parameters()))
        assert all(torch.allclose(average, torch.tensor(0.1 * newest)) for average in averages)
    assert partial  # else no kill hit the saving
