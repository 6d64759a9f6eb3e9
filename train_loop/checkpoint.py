"""The files of a checkpoint. It is complete or it does not exist, and it does not depend on the number of processes.

    checkpoints/step-00001234/
        config.json model.safetensors tokenizer.json ...   from_pretrained opens it
        optimizer.safetensors    every tensor of the optimizers, as parameter/slot; weights of the objective that
                                 are not the model's
        data.safetensors         positions of the streams of text, and their shuffle buffers; when streaming
        state.json               step, best evaluation, identity and settings of the run
        manifest.json            SHA-256 of each file above, written last

Written to a temporary folder, synced to disk, renamed. Nothing is pickled.
There is no generator state: order, masks and dropout are functions of the step.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

_MANIFEST = "manifest.json"
_TENSORS = "optimizer.safetensors"
_DATA_STATE = "data.safetensors"


class CheckpointError(ValueError):
    """A checkpoint cannot be used or written. The message names the file and the problem."""


@dataclass
class TrainState:
    """The state of a run besides the parameters and the optimizers."""

    step: int = 0  # number of updates made
    best_step: int | None = None  # of the best evaluation so far
    best_loss: float | None = None
    evaluated_step: int | None = None  # of the last evaluation; a run that was stopped within one makes it again
    evaluations_without_improvement: int = 0  # since the best one, for early stopping
    num_skipped_steps: int = 0  # updates that were skipped because they were not finite
    scaler: dict[str, Any] | None = None  # of fp16's loss scaler


@dataclass(frozen=True)
class Start:
    """Where a run starts, as the main process tells the other processes, which may not see its disk."""

    folder: Path | None = None  # the checkpoint to resume from; None: the run starts anew
    is_branch: bool = False  # whether the run starts anew with the weights and the optimizers' state in there
    state: TrainState = field(default_factory=TrainState)
    model_config: dict[str, Any] = field(default_factory=dict)  # as ``config.json`` has it
    data_state: dict[str, np.ndarray] = field(default_factory=dict)  # see `save_checkpoint`
    changed: list[str] = field(default_factory=list)  # a line for each setting that differs from the checkpoint's


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a folder that ``from_pretrained`` opens, or nothing; it replaces what was there."""
    with whole_or_nothing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tensors: dict[str, Tensor],  # all but the model's weights
    *,
    state: TrainState,
    identity: dict[str, Any],  # what a run that resumes from here must have in common with this one
    settings: dict[str, Any],  # all of them, so that a run that resumes from here can report which have changed
    data_state: dict[str, np.ndarray],  # of the loaders of all processes, by name; empty where the step determines it
) -> None:
    """Write a complete checkpoint or none."""
    with whole_or_nothing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        safetensors.torch.save_file(tensors, temporary / _TENSORS)
        if data_state:
            safetensors.numpy.save_file(data_state, temporary / _DATA_STATE)
        _write_json(temporary / "state.json", {**asdict(state), "identity": identity, "settings": settings})
        _write_json(temporary / _MANIFEST, {p.name: _sha256(p) for p in sorted(temporary.iterdir())})


def verify(folder: Path) -> None:
    """Raise CheckpointError, naming the file, unless every file matches the manifest."""
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


def load_start(folder: Path, identity: dict[str, Any], settings: dict[str, Any], *, is_branch: bool = False) -> Start:
    """Where a run of this identity and these settings starts from a verified checkpoint: all of it but the tensors.

    Raises CheckpointError, naming the field, if the checkpoint belongs to a different run; with ``is_branch`` only if
    tokenizer, objective or optimizer are others.
    """
    way_out = "its next step would not be the same; change it back, or start anew in another output_dir"
    if is_branch:
        identity = {n: v for n, v in identity.items() if n.startswith(("tokenizer", "objective", "optimizer"))}
        identity.pop("objective_kwargs")
        way_out = f"the same is needed, or start with the weights alone by --model_name_or_path {folder}"
    facts = json.loads((folder / "state.json").read_text())
    saved = {"objective": "masked_lm", "objective_kwargs": {}} | facts.pop("identity")  # older ones name no objective
    for name, value in identity.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{folder} was made with {name}={saved.get(name)!r}, and this run has {name}={value!r}: {way_out}"
            )
    if is_branch:
        return Start(folder, is_branch, TrainState(scaler=facts["scaler"]))
    given = facts.pop("settings", {})
    places = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "start_from", "cache_dir")  # no results
    changed = [
        f"changed  {name}: {value!r}, was {given[name]!r}"
        for name, value in json.loads(json.dumps(settings)).items()
        if name in given and name not in places and given[name] != value
    ]
    data_state = safetensors.numpy.load_file(folder / _DATA_STATE) if (folder / _DATA_STATE).exists() else {}
    model_config = AutoConfig.from_pretrained(folder).to_dict()
    return Start(folder, is_branch, TrainState(**facts), model_config, data_state, changed)


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """What `save_checkpoint` was given as ``tensors``."""
    return safetensors.torch.load_file(folder / _TENSORS)


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``folder`` at the end, and is removed after an error.

    Raises OSError if a file could not be written, also where safetensors raises an error of its own.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        replaced = mark_for_deletion(folder) if folder.exists() else None
        temporary.rename(folder)
        _fsync(folder.parent)  # after this it survives a power cut
        if replaced is not None:
            shutil.rmtree(replaced)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(str(error)) from error
        raise


def mark_for_deletion(folder: Path) -> Path:
    """Rename a folder before it is deleted, so that a half-deleted one is never taken for a whole one."""
    marked = folder.with_name(folder.name + ".old")
    shutil.rmtree(marked, ignore_errors=True)
    return folder.rename(marked)


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
