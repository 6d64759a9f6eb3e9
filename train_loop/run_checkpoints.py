"""The checkpoints of one run: this module chooses, writes, sets aside and deletes them.

The newest checkpoint of the run's own history counts. When a run resumes from an older step, the newer checkpoints are
renamed to ``step-00000012.aside``, and only the user deletes those.
"""

import itertools
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from train_loop import checkpoint, run_files
from train_loop.checkpoint import CheckpointError, Start, TrainState, verify
from train_loop.config import TrainConfig
from train_loop.model import load_model
from train_loop.objective import Objective
from train_loop.run_files import checkpoint_folder, checkpoints

logger = logging.getLogger(__name__)


@dataclass
class RunCheckpoints:
    """Chooses, writes and rotates a run's checkpoints; used on the main process only.

    A thread writes them, one at a time, so training stops only for the copy to host memory. An error of the thread is
    raised by the next `wait`.
    """

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase  # saved with each model
    identity: dict[str, Any]  # see `checkpoint.save_checkpoint`, of the settings too
    settings: dict[str, Any]
    on_saved: Callable[[Path], None]  # called with each written checkpoint's folder, in the thread that wrote it
    _host_model: PreTrainedModel | None = None
    _pending: tuple[Path, Future[None]] | None = None

    def __post_init__(self) -> None:
        self._output_dir = Path(self.config.output_dir)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def start(self) -> Start:
        """Find and verify the checkpoint that ``resume_from_checkpoint`` names, or without one ``start_from``.

        Raises CheckpointError if no checkpoint is whole, or it belongs to a different run.
        """
        wanted = self.config.resume_from_checkpoint
        folder = None if wanted is None else find_checkpoint(wanted, self._output_dir)
        if (name := self.config.start_from) is None or folder is not None:
            return Start() if folder is None else checkpoint.load_start(folder, self.identity, self.settings)
        is_run = (Path(name) / run_files.CHECKPOINTS).is_dir()
        if (branches := find_checkpoint("latest" if is_run else name, Path(name))) is None:
            raise CheckpointError(f"start_from={name!r}: this run has no checkpoint")
        return checkpoint.load_start(branches, self.identity, self.settings, is_branch=True)

    def begin(self, start: Start) -> list[str]:
        """Leave only this run's history among the checkpoints; return a line for each change.

        Raises OSError if a checkpoint could not be renamed or copied.
        """
        lines, state = [], start.state
        ours = checkpoint_folder(self._output_dir, state.step)
        is_here = start.folder is not None and start.folder.resolve() == ours.resolve()
        others = [f for f in checkpoints(self._output_dir) if not is_here or f.name > ours.name]
        if others:
            names = ", ".join(_set_aside(folder).name for folder in others)
            lines.append(f"aside    not of this run's history, kept in {others[0].parent}: {names}")
        if start.folder is not None and self.config.keeps_best and state.best_step is not None:
            best = checkpoint_folder(self._output_dir, state.best_step)
            beside = start.folder.parent / best.name
            try:
                if not best.exists() and beside.exists():
                    verify(beside)
                    with checkpoint.whole_or_nothing(best) as copy:
                        shutil.copytree(beside, copy, dirs_exist_ok=True)
                verify(best)
            except CheckpointError as error:
                lines.append(
                    f"best     the checkpoint of the best evaluation so far, of step {state.best_step}, is not to be "
                    f"had: if none is better, the final model is the last one ({error})"
                )
        return lines

    def save(
        self,
        objective: Objective,
        weights: Mapping[str, Tensor],
        tensors: dict[str, Tensor],
        *,
        state: TrainState,
        data_state: dict[str, np.ndarray],
    ) -> None:
        """Copy the model's weights now; write the checkpoint and delete old ones in the background. Call `wait` before.

        All other ``tensors``, of the objective and its optimizers, are not copied.
        """
        host_model = self._on_host(objective, weights)
        state = replace(state)
        folder = checkpoint_folder(self._output_dir, state.step)
        best_step = state.best_step if self.config.keeps_best else None

        def write() -> None:
            checkpoint.save_checkpoint(
                folder,
                host_model,
                self.tokenizer,
                tensors,
                state=state,
                identity=self.identity,
                settings=self.settings,
                data_state=data_state,
            )
            self.on_saved(folder)
            remove_old(folder, self.config.save_total_limit, best_step)

        self._pending = folder, self._thread.submit(write)

    def save_final(self, objective: Objective, weights: Mapping[str, Tensor]) -> None:
        """Write the run's final model. Call `wait` before."""
        checkpoint.save_model(self._output_dir / run_files.MODEL, self._on_host(objective, weights), self.tokenizer)

    def _on_host(self, objective: Objective, weights: Mapping[str, Tensor]) -> PreTrainedModel:
        """A model in host memory with these weights, the same one at each call."""
        if self._host_model is None:
            self._host_model = objective.auto_class.from_config(objective.model.config)
        self._host_model.load_state_dict(weights)
        return self._host_model

    def wait(self) -> None:
        """Wait until the last save is written; CheckpointError if it failed, and the settings say to stop then."""
        if self._pending is None:
            return
        folder, written = self._pending
        self._pending = None
        try:
            written.result()
        except OSError as error:
            text = f"{folder} could not be written ({error}); earlier checkpoints are as they were"
            if self.config.on_save_error == "stop":
                raise CheckpointError(text) from error
            logger.warning("%s; training goes on", text)


def load_whole(folder: Path, objective: Objective) -> dict[str, Tensor]:
    """The full state in a checkpoint; ValueError if that is not whole."""
    verify(folder)
    return load_model(str(folder), auto_class=objective.auto_class).state_dict() | checkpoint.load_tensors(folder)


def find_checkpoint(wanted: str, output_dir: Path) -> Path | None:
    """The checkpoint to resume from, verified. For 'latest': the newest whole one, or None if there are none.

    Raises CheckpointError if the named checkpoint is not whole, or there are checkpoints and none of them is.
    """
    if wanted != "latest":
        verify(Path(wanted))
        return Path(wanted)
    problems = []
    for folder in reversed(checkpoints(output_dir)):
        try:
            verify(folder)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            for problem in problems:
                logger.warning("skipped a checkpoint: %s", problem)
            return folder
    if problems:
        raise CheckpointError(
            f"resume_from_checkpoint=latest: no checkpoint in {output_dir} is whole ({'; '.join(problems)}): name "
            "another one by its path, or start anew in another output_dir, or here by --overwrite_output_dir"
        )
    return None


def remove_old(written: Path, keep: int | None, best_step: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one; never the one that was just written."""
    output_dir = written.parent.parent
    best = None if best_step is None else checkpoint_folder(output_dir, best_step)
    others = [folder for folder in checkpoints(output_dir) if folder not in (written, best)]
    num_kept = len(others) if keep is None else keep - (written != best)
    for folder in others[: max(0, len(others) - num_kept)]:
        checkpoint.mark_for_deletion(folder)
    for leftover in written.parent.glob("*.old"):
        shutil.rmtree(leftover)


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint to ``.aside``, with a number where that name is taken."""
    names = (folder.with_name(f"{folder.name}.aside{'' if i == 1 else f'-{i}'}") for i in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))
