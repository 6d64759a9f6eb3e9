"""The names in a run's folder, and what each holds."""

from pathlib import Path

CONFIG = "config.yaml"  # the resolved settings: a recipe of the same run
METRICS = "metrics.jsonl"  # a row for each window of updates, evaluation and probe
ENVIRONMENT = "environment.json"  # machine, versions and commit of each start
CHECKPOINTS = "checkpoints"
MODEL = "model"  # the final one, with its card
REPORT = "report.html"
PROFILE = "profile"  # traces
HUB = "hub"  # what is being pushed
TENSORBOARD = "tensorboard"
WANDB = "wandb"
TRACKER_ID = "tracker_id"  # by which a resumed run goes on in its trackers
LOCK = ".lock"
PHASE = "phase-"  # with a number from 1: the folders of the runs that are phases of one

# What a new run in the same folder replaces.
CONTENTS = (CONFIG, METRICS, CHECKPOINTS, MODEL, PROFILE, ENVIRONMENT, REPORT, HUB, TENSORBOARD, WANDB, TRACKER_ID)


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, valid or not."""
    return sorted(p for p in (output_dir / CHECKPOINTS).glob("step-*") if not p.suffix)  # not .tmp, .old, .aside


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return output_dir / CHECKPOINTS / f"step-{step:08d}"
