"""Train a masked language model.

accelerate launch --config_file accelerate_config.yaml -m launch.train --recipe quickstart
"""

import sys

from launch.run.settings import Command, fail, parse_settings

COMMAND = Command(
    prog="python -m launch.train",
    description="Train a masked language model. A recipe gives the settings, options override them.",
    options={
        "dry_run": {"action": "store_true", "help": "Print the settings and the batch arithmetic, and stop."},
        "num_processes": {
            "type": int,
            "metavar": "N",
            "help": "Processes to start on this machine. Default: one for each GPU; accelerate launch and torchrun "
            "start them themselves.",
        },
    },
    lists_settings=True,
)


def main(arguments: list[str]) -> None:
    """Train, and exit as `launch.run.training.run_training` says."""
    settings, options = parse_settings(arguments, COMMAND)
    # These import torch, which takes seconds: a wrong setting is told before.
    from launch.run.launching import processes_to_start, start_processes
    from launch.run.training import run_training

    try:
        number = processes_to_start(options.num_processes)
    except ValueError as error:
        fail(error)
    if number > 1:
        start_processes(number, settings.train.process_timeout)
    run_training(settings, dry_run=options.dry_run)


if __name__ == "__main__":
    main(sys.argv[1:])
