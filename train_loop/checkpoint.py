"""Checkpoints that are complete or do not exist, and say nothing of the number of processes.

    checkpoints/step-00001234/
        config.json model.safetensors tokenizer.json ...   from_pretrained opens it
        optimizer.safetensors    every tensor of the optimizers, by parameter name
        data.safetensors         where the streams of text are, and their shuffle buffers; when streaming
        state.json               step, best evaluation, what the run is made of
        manifest.json            SHA-256 of each file above, written last

Written to a temporary folder, synced to disk, renamed. Nothing is pickled.
There is no generator state: order, masks and dropout are functions of the step.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_DATA_STATE = "data.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names the file and what is wrong."""


@dataclass
class TrainState:
    """All that a run knows besides parameters and optimizer, and that changes.

    Attributes:
        step: Updates made.
        best_step, best_loss: Of the evaluation with the lowest loss so far.
        evaluations_without_improvement: For early stopping.
        num_skipped_steps: Updates left out because they were not finite.
        scaler: State of the fp16 loss scaler, or None.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_improvement: int = 0
    num_skipped_steps: int = 0
    scaler: dict[str, Any] | None = None


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what ``from_pretrained`` opens, in place of what was there; complete or not at all."""
    with whole_or_nothing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer_tensors: dict[str, Tensor],
    *,
    state: TrainState,
    identity: dict[str, Any],
    data_state: dict[str, np.ndarray],
) -> None:
    """Write a checkpoint, complete or not at all.

    Args:
        optimizer_tensors: See `optimizer_tensors`.
        data_state: What the loaders of all processes need to go on, by name; empty where the step says it all.
        identity: What a run that goes on from here must have in common with this one.
    """
    with whole_or_nothing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        safetensors.torch.save_file(optimizer_tensors, temporary / "optimizer.safetensors")
        if data_state:
            safetensors.numpy.save_file(data_state, temporary / _DATA_STATE)
        _write_json(temporary / "state.json", {**asdict(state), "identity": identity})
        _write_json(temporary / _MANIFEST, {p.name: _sha256(p) for p in sorted(temporary.iterdir())})


class CheckpointWriter:
    """Writes checkpoints in the background, one at a time.

    Training stops for the copy to host memory alone. The next save, and the end
    of the run, wait for the one before; if that failed, they say so.
    """

    def __init__(self, model: PreTrainedModel, *, on_error: Literal["stop", "warn"]) -> None:
        self._on_error = on_error
        self._host_model = AutoModelForMaskedLM.from_config(model.config)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[Path, Future[None]] | None = None

    def save(
        self,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizers: Sequence[Optimizer],
        *,
        state: TrainState,
        identity: dict[str, Any],
        data_state: dict[str, np.ndarray],
        then: Callable[[], None],
    ) -> None:
        """Copy everything now, and write it later; ``then`` is called after that, by the writer.

        Raises:
            CheckpointError: The save before this one failed, and the settings say to stop then.
        """
        self.wait()
        self._host_model.load_state_dict(model.state_dict())
        tensors = optimizer_tensors(model, optimizers)
        state = replace(state)

        def write() -> None:
            save_checkpoint(
                folder, self._host_model, tokenizer, tensors, state=state, identity=identity, data_state=data_state
            )
            then()

        self._pending = folder, self._thread.submit(write)

    def wait(self) -> None:
        """Return when nothing is left to write.

        Raises:
            CheckpointError: See `save`.
        """
        if self._pending is None:
            return
        folder, written = self._pending
        self._pending = None
        try:
            written.result()
        except OSError as error:
            text = f"{folder} could not be written ({error}); earlier checkpoints are as they were"
            if self._on_error == "stop":
                raise CheckpointError(text) from error
            logger.warning("%s; training goes on", text)


def verify(folder: Path) -> None:
    """Raise CheckpointError, naming the file, unless every file is what the manifest says."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {_MANIFEST} is missing or broken ({error})") from error
    names = {p.name for p in folder.iterdir()} - {_MANIFEST}
    if names != set(manifest):
        raise CheckpointError(f"{folder}: files differ from {_MANIFEST}: {', '.join(sorted(names ^ set(manifest)))}")
    for name, digest in manifest.items():
        if _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder}: {name} is damaged (its SHA-256 is not the one in {_MANIFEST})")


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, valid or not."""
    return sorted(p for p in (output_dir / "checkpoints").glob("step-*") if not p.suffix)  # not .tmp, .old


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return output_dir / "checkpoints" / f"step-{step:08d}"


def find_checkpoint(wanted: str, output_dir: Path) -> Path | None:
    """The verified checkpoint to go on from; for 'latest', the newest valid one, or None if there is none.

    Raises:
        CheckpointError: The checkpoint that was asked for by name is not valid.
    """
    if wanted != "latest":
        verify(Path(wanted))
        return Path(wanted)
    for folder in reversed(checkpoints(output_dir)):
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("passed over a checkpoint: %s", error)
        else:
            return folder
    return None


def load_state(folder: Path, identity: dict[str, Any]) -> TrainState:
    """The state of a verified checkpoint.

    Raises:
        CheckpointError: It is of a run that differs; the message names the field.
    """
    facts = json.loads((folder / "state.json").read_text())
    saved = facts.pop("identity")
    for name, value in identity.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{folder} was made with {name}={saved.get(name)!r}, and this run has {name}={value!r}: "
                "its next step would not be the same; change it back, or start anew in another output_dir"
            )
    return TrainState(**facts)


def load_data_state(folder: Path) -> dict[str, np.ndarray]:
    """What `save_checkpoint` was given as ``data_state``."""
    path = folder / _DATA_STATE
    return safetensors.numpy.load_file(path) if path.exists() else {}


def load_optimizers(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Put the tensors of ``optimizer.safetensors`` back into the optimizers."""
    tensors = safetensors.torch.load_file(folder / "optimizer.safetensors")
    names = {id(p): name for name, p in model.named_parameters()}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("/")
        by_parameter.setdefault(name, {})[slot] = tensor.clone()  # out of the file's memory map, see load_model
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        packed = optimizer.state_dict()
        state = {i: by_parameter[names[id(p)]] for i, p in enumerate(parameters) if names[id(p)] in by_parameter}
        optimizer.load_state_dict({"state": state, "param_groups": packed["param_groups"]})


def remove_old(output_dir: Path, keep: int | None, best_step: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one."""
    best = None if best_step is None else checkpoint_folder(output_dir, best_step)
    candidates = [folder for folder in checkpoints(output_dir) if folder != best]
    for folder in candidates[: -keep if keep else 0]:
        _set_aside(folder)  # first: a deletion that is broken off must not leave half a checkpoint under its name
    for leftover in (output_dir / "checkpoints").glob("*.old"):
        shutil.rmtree(leftover)


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """A copy in host memory of every tensor of the optimizers' states: ``{"parameter name/slot": tensor}``."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}/{slot}": value.detach().to("cpu", copy=True).contiguous()
        for optimizer in optimizers
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` at the end, and is removed if that is not reached.

    Raises:
        OSError: It could not be written; safetensors has an error of its own for that.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _publish(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(str(error)) from error
        raise


def _publish(temporary: Path, folder: Path) -> None:
    """Sync every file and rename the folder into place: after this it survives a power cut."""
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    replaced = _set_aside(folder) if folder.exists() else None
    temporary.rename(folder)
    _fsync(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def _set_aside(folder: Path) -> Path:
    """Rename a folder that is to be deleted, at once, so that no part of it is ever taken for the whole."""
    aside = folder.with_name(folder.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
