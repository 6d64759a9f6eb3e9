"""Train a masked language model.

accelerate launch --config_file accelerate_config.yaml -m launch.train --recipe quickstart
"""

import sys

from launch.run.settings import Command, parse_settings

COMMAND = Command(
    prog="python -m launch.train",
    description="Train a masked language model. A recipe gives the settings, options override them.",
    options={"dry_run": {"action": "store_true", "help": "Print the settings and the batch arithmetic, and stop."}},
    lists_settings=True,
)


def main(arguments: list[str]) -> None:
    """Train a model with the settings that are given."""
    settings, options = parse_settings(arguments, COMMAND)
    from launch.run.training import run_training  # imports torch, which takes seconds: a wrong setting is told before

    run_training(settings, dry_run=options.dry_run)


if __name__ == "__main__":
    main(sys.argv[1:])
