"""Trackers beside metrics.jsonl, by Accelerate: TensorBoard, Weights & Biases, Trackio.

A run has one id for all its starts, ``tracker_id`` in its folder, so that a
resumed run goes on in the same tracker run. Of rows that come again TensorBoard
shows the last, W&B keeps the first and Trackio both: but for their time they are
equal, because a resumed run is exact.
"""

import json
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from train_loop import run_files
from train_loop.config import TrainConfig


def check_trackers(config: TrainConfig) -> None:
    """Raise ValueError for a tracker that is not installed; Accelerate would leave it out without a word."""
    if missing := [name for name in config.trackers if find_spec(name) is None]:
        raise ValueError(
            f"report_to={config.report_to}: {', '.join(missing)} is not installed: pip install {' '.join(missing)}"
        )


def open_trackers(accelerator: Accelerator, config: TrainConfig, settings: dict[str, Any], *, step: int) -> None:
    """Open the trackers, in the run that they have been in if this one goes on.

    Args:
        settings: What the run is made of, to be shown beside its numbers.
        step: Updates made so far: what a tracker has of later ones comes again.

    Raises:
        ValueError: A tracker cannot be opened, because nobody is logged in for example.
    """
    if not config.trackers:
        return
    folder = Path(config.output_dir)
    run_id = _run_id(folder, is_new=step == 0) if accelerator.is_main_process else ""
    plain = {name: _plain(value) for name, value in settings.items()}
    options = {
        "tensorboard": {"purge_step": step + 1 if step else 0},
        "wandb": {"id": run_id, "name": folder.name, "resume": "allow", "dir": str(folder)},
        # Its settings at each start: the last start's take the place of the earlier ones.
        "trackio": {"name": f"{folder.name}-{run_id}", "resume": "allow", "config": plain},
    }
    try:
        # Once: TensorBoard would show those of each start as a run of their own.
        accelerator.init_trackers(config.project, None if step else plain, options)
    except Exception as error:  # of a service: it may be anything
        raise ValueError(f"report_to={config.report_to}: {type(error).__name__}: {error}") from error


def track(accelerator: Accelerator, row: dict[str, Any]) -> None:
    """Give the trackers a row of metrics.jsonl, under the same names."""
    if accelerator.trackers:
        accelerator.log(_flat({name: value for name, value in row.items() if name != "step"}), step=row["step"])


def _run_id(folder: Path, *, is_new: bool) -> str:
    """The id that all starts of a run share."""
    path = folder / run_files.TRACKER_ID
    if is_new or not path.exists():
        path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _plain(value: Any) -> bool | int | float | str:
    """What every tracker takes for a setting."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)


def _flat(row: dict[str, Any]) -> dict[str, float | str]:
    """Numbers by name, maps as ``name/key``, the probe sentences as text; without what is unknown."""
    flat: dict[str, float | str] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": item for key, item in value.items()}
        elif name == "probes":
            flat[name] = "\n\n".join(_sentence(probe) for probe in value)
        elif value is not None:
            flat[name] = value
    return flat


def _sentence(probe: dict[str, Any]) -> str:
    fills = ", ".join(f"{fill['token_str'].strip()} {fill['score']:.0%}" for fill in probe["fills"])
    return f"{probe['text']}: {fills}"
