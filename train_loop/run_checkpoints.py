"""The checkpoints of one run: the one place that chooses, writes, sets aside and deletes them.

The newest of the run's own history is the one that counts. What a run leaves
behind when it goes on from an older step is renamed to ``step-00000012.aside``;
only the user deletes that.
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
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from train_loop import run_files
from train_loop.checkpoint import (
    CheckpointError,
    TrainState,
    changed_settings,
    load_data_state,
    load_state,
    load_tensors,
    mark_for_deletion,
    save_checkpoint,
    save_model,
    verify,
    whole_or_nothing,
)
from train_loop.config import TrainConfig
from train_loop.model import load_model
from train_loop.objective import Objective

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from, as the main process tells the others, who may not see its disk.

    Attributes:
        folder: Of the checkpoint.
        model_config: The model's configuration, as ``config.json`` has it.
        data_state: Where the streams of text are; empty where the step says it all.
        changed: A line for each setting that differs from those of the checkpoint.
    """

    folder: Path
    state: TrainState
    model_config: dict[str, Any]
    data_state: dict[str, np.ndarray]
    changed: list[str]

    def tensors(self) -> dict[str, Tensor]:
        """All but the model's weights, from the folder, so on the main process only."""
        return load_tensors(self.folder)


class RunCheckpoints:
    """Chooses, writes and rotates a run's checkpoints; used on its main process only.

    They are written in the background, one at a time: training stops for the
    copy to host memory alone. The next save, and the end of the run, wait for the
    one before; if that failed, they say so.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        identity: dict[str, Any],
        settings: dict[str, Any],
        on_saved: Callable[[Path], None],
    ) -> None:
        """Touch nothing yet.

        Args:
            tokenizer: Saved with each model.
            identity: What a checkpoint and the run that goes on from it must share.
            settings: All settings of the run, to say which have changed.
            on_saved: Told of each checkpoint that is on the disk, by the thread that wrote it.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._output_dir = Path(config.output_dir)
        self._identity = identity
        self._settings = settings
        self._on_saved = on_saved
        self._host_model: PreTrainedModel | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[Path, Future[None]] | None = None

    def resume(self) -> Resumed | None:
        """What to go on from as ``resume_from_checkpoint`` says, verified; None to start anew.

        Raises:
            CheckpointError: There is none that is whole, or it is of a run that differs.
        """
        if self._config.resume_from_checkpoint is None:
            return None
        folder = find_checkpoint(self._config.resume_from_checkpoint, self._output_dir)
        if folder is None:
            return None
        return Resumed(
            folder=folder,
            state=load_state(folder, self._identity),
            model_config=AutoConfig.from_pretrained(folder).to_dict(),
            data_state=load_data_state(folder),
            changed=changed_settings(folder, self._settings),
        )

    def begin(self, resumed: Resumed | None) -> list[str]:
        """Make the folder hold this run's history alone, and return a line for each thing that was done to it.

        Raises:
            OSError: It could not be done.
        """
        lines = []
        state = TrainState() if resumed is None else resumed.state
        ours = checkpoint_folder(self._output_dir, state.step)
        is_here = resumed is not None and resumed.folder.resolve() == ours.resolve()
        others = [f for f in checkpoints(self._output_dir) if not is_here or f.name > ours.name]
        if others:
            names = ", ".join(_set_aside(folder).name for folder in others)
            lines.append(f"aside    not of this run's history, kept in {others[0].parent}: {names}")
        if resumed is not None and self._config.keeps_best and state.best_step is not None:
            best = checkpoint_folder(self._output_dir, state.best_step)
            beside = resumed.folder.parent / best.name
            try:
                if not best.exists() and beside.exists():
                    verify(beside)
                    with whole_or_nothing(best) as copy:
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
        """Copy the weights now; write everything, and delete what is old, later. Call `wait` before.

        Args:
            weights: The model's.
            tensors: All others of the objective and its optimizers, in memory of their own.
        """
        host_model = self._on_host(objective, weights)
        state = replace(state)
        folder = checkpoint_folder(self._output_dir, state.step)
        best_step = state.best_step if self._config.keeps_best else None

        def write() -> None:
            save_checkpoint(
                folder,
                host_model,
                self._tokenizer,
                tensors,
                state=state,
                identity=self._identity,
                settings=self._settings,
                data_state=data_state,
            )
            self._on_saved(folder)
            remove_old(folder, self._config.save_total_limit, best_step)

        self._pending = folder, self._thread.submit(write)

    def save_final(self, objective: Objective, weights: Mapping[str, Tensor]) -> None:
        """Write the run's final model. Call `wait` before."""
        save_model(self._output_dir / run_files.MODEL, self._on_host(objective, weights), self._tokenizer)

    def _on_host(self, objective: Objective, weights: Mapping[str, Tensor]) -> PreTrainedModel:
        """A model in host memory with these weights, the same one at each call."""
        if self._host_model is None:
            self._host_model = objective.auto_class.from_config(objective.model.config)
        self._host_model.load_state_dict(weights)
        return self._host_model

    def wait(self) -> None:
        """Return when nothing is left to write.

        Raises:
            CheckpointError: The last save failed, and the settings say to stop then.
        """
        if self._pending is None:
            return
        folder, written = self._pending
        self._pending = None
        try:
            written.result()
        except OSError as error:
            text = f"{folder} could not be written ({error}); earlier checkpoints are as they were"
            if self._config.on_save_error == "stop":
                raise CheckpointError(text) from error
            logger.warning("%s; training goes on", text)

    def load(self, step: int, objective: Objective) -> dict[str, Tensor]:
        """The full state that a step's checkpoint holds.

        Raises:
            ValueError: It is not whole.
        """
        folder = checkpoint_folder(self._output_dir, step)
        verify(folder)
        return load_model(str(folder), auto_class=objective.auto_class).state_dict() | load_tensors(folder)


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, valid or not."""
    return sorted(
        p for p in (output_dir / run_files.CHECKPOINTS).glob("step-*") if not p.suffix
    )  # not .tmp, .old, .aside


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return output_dir / run_files.CHECKPOINTS / f"step-{step:08d}"


def find_checkpoint(wanted: str, output_dir: Path) -> Path | None:
    """The verified checkpoint to go on from; for 'latest', the newest whole one, or None if there is none at all.

    Raises:
        CheckpointError: The checkpoint that was asked for by name is not whole, or none of those that are there is.
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
    """Delete all but the newest ``keep`` checkpoints and the best one; never the one just written."""
    output_dir = written.parent.parent
    best = None if best_step is None else checkpoint_folder(output_dir, best_step)
    others = [folder for folder in checkpoints(output_dir) if folder not in (written, best)]
    num_kept = len(others) if keep is None else keep - (written != best)
    for folder in others[: max(0, len(others) - num_kept)]:
        mark_for_deletion(folder)
    for leftover in written.parent.glob("*.old"):
        shutil.rmtree(leftover)


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint to ``.aside``, with a number where that name is taken."""
    names = (folder.with_name(f"{folder.name}.aside{'' if i == 1 else f'-{i}'}") for i in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))
