"""The folder of a run: whether it may be used, and how it begins."""

import shutil
from pathlib import Path

import yaml

from launch.cli import Settings

_RUN_CONTENTS = (
    "config.yaml",
    "metrics.jsonl",
    "checkpoints",
    "model",
    "profile",
    "environment.json",
    "report.html",
    "hub",
    "tensorboard",
    "wandb",
    "tracker_id",
)


def check_output_dir(settings: Settings) -> None:
    """Raise ValueError if the output folder holds a run that is neither to go on nor to be deleted."""
    config = settings.train
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={config.output_dir!r} is a file")
    if config.overwrite_output_dir and config.resume_from_checkpoint:
        raise ValueError("overwrite_output_dir deletes the run and resume_from_checkpoint goes on with it: give one")
    held = any((folder / name).exists() for name in _RUN_CONTENTS)
    if held and not (config.overwrite_output_dir or config.resume_from_checkpoint):
        raise ValueError(
            f"output_dir={config.output_dir!r} holds another run: go on with it by --resume_from_checkpoint latest, "
            "delete it by --overwrite_output_dir, or choose another folder"
        )


def open_output_dir(settings: Settings) -> None:
    """Make the run's folder and write the resolved settings; delete an old run, and nothing else, where asked to."""
    folder = Path(settings.train.output_dir)
    if settings.train.overwrite_output_dir:
        for name in _RUN_CONTENTS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.as_dict(), sort_keys=False), encoding="utf-8")
