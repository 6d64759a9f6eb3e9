"""Sends the rows of metrics.jsonl to trackers, through Accelerate: TensorBoard, Weights & Biases, Trackio.

All starts of a run share one id, ``tracker_id`` in its folder, so that a resumed run goes on in the same tracker run.
When a resumed run writes a row again, TensorBoard shows the last, W&B keeps the first and Trackio both. The rows are
equal except for their time, because a resumed run is exact.
"""

import json
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from train_loop import run_files
from train_loop.config import TrainConfig
from train_loop.watching.run_record import shown_fills


def check_trackers(config: TrainConfig) -> None:
    """Raise ValueError for a tracker that is not installed, which Accelerate would ignore silently."""
    if missing := [name for name in config.trackers if find_spec(name) is None]:
        raise ValueError(
            f"report_to={config.report_to}: {', '.join(missing)} is not installed: pip install {' '.join(missing)}"
        )


def open_trackers(accelerator: Accelerator, config: TrainConfig, settings: dict[str, Any], *, step: int) -> None:
    """Open the trackers; a run that resumes after ``step`` updates goes on in its earlier tracker run.

    Raises ValueError if a tracker cannot be opened, for example because nobody is logged in.
    """
    if not config.trackers:
        return
    folder = Path(config.output_dir)
    id_file = folder / run_files.TRACKER_ID
    if accelerator.is_main_process and (step == 0 or not id_file.exists()):
        id_file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    run_id = id_file.read_text(encoding="utf-8") if accelerator.is_main_process else ""
    plain = {  # every tracker accepts numbers and text, and some nothing else
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)
        for name, value in settings.items()
    }
    options = {
        "tensorboard": {"purge_step": step + 1 if step else 0},
        "wandb": {"id": run_id, "name": folder.name, "resume": "allow", "dir": str(folder)},
        # Trackio gets the settings at each start, and the last ones replace the earlier.
        "trackio": {"name": f"{folder.name}-{run_id}", "resume": "allow", "config": plain},
    }
    try:
        # The settings are given once: TensorBoard would show those of each start as a run of their own.
        accelerator.init_trackers(config.project, None if step else plain, options)
    except Exception as error:  # each service raises its own kinds
        raise ValueError(f"report_to={config.report_to}: {type(error).__name__}: {error}") from error


def track(accelerator: Accelerator, row: dict[str, Any]) -> None:
    """Send a row of metrics.jsonl to the trackers, under the same names."""
    if accelerator.trackers:
        accelerator.log(_flat({name: value for name, value in row.items() if name != "step"}), step=row["step"])


def _flat(row: dict[str, Any]) -> dict[str, float | str]:
    """Numbers by name, maps as ``name/key``, probe sentences as text; values of None are omitted."""
    flat: dict[str, float | str] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": item for key, item in value.items()}
        elif name == "probes":
            flat[name] = "\n\n".join(f"{probe['text']}: {shown_fills(probe, ', ')}" for probe in value)
        elif value is not None:
            flat[name] = value
    return flat
