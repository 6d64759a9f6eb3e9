"""Train a masked language model.

accelerate launch --config_file accelerate_config.yaml -m launch.train --recipe quickstart
"""

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from launch.run.errors import fail
from launch.run.settings import SettingsParser, parse_settings

if TYPE_CHECKING:
    from launch.run.calling import FinishedRun

COMMAND = SettingsParser(
    "mlm train",
    "Train a masked language model. A recipe gives the settings, options override them.",
    lists_settings=True,
)
COMMAND.add_option("--dry_run", action="store_true", help="Print the settings and the batch arithmetic, and stop.")
_NUM_PROCESSES = "Processes to start on this machine; not under a launcher. Default: one for each GPU."
COMMAND.add_option("--num_processes", type=int, metavar="N", help=_NUM_PROCESSES)


def train(**settings: Any) -> "FinishedRun":
    """Train in this process, as the command does, and return the run, or that of a recipe's last phase.

    >>> run = train(recipe="quickstart", dataset=["A text.", "Another one."], max_steps=100, output_dir="runs/mine")

    Args:
        settings: Those of the command, and ``recipe``. ``dataset`` and ``eval_dataset`` may also be a
            ``datasets.Dataset`` or an iterable of strings, which are copied to ``cache_dir``.

    Raises:
        ValueError: A setting is wrong. The message is the command's line.
        Stopped: After SIGTERM or an interrupt, and a checkpoint. For others, see `launch.run.training.train_to_end`.
    """
    from launch.run.calling import finished, process_left_as_it_was, settings_of_call
    from launch.run.training import set_up_phases, train_to_end

    read = settings_of_call(settings)
    with process_left_as_it_was(), contextlib.closing(set_up_phases(read)) as runs:
        for ready in runs:
            train_to_end(ready)
            folder, auto_class = ready.run.output_dir, ready.run.bare_objective.auto_class
            del ready  # its model goes before the next phase's comes
        return finished(folder, auto_class)


def main(arguments: list[str]) -> None:
    """Train. User errors exit with code 2, other errors of one line with 1, signals with 128 and their number."""
    try:
        settings, options = parse_settings(arguments, COMMAND)
        # These import torch, which takes seconds: a wrong setting is told before.
        from launch.run.launching import processes_to_start, start_processes
        from launch.run.training import train_or_exit

        number = processes_to_start(options.num_processes)
    except ValueError as error:
        fail(error)
    if number > 1:
        start_processes(number, settings.train.process_timeout)
    train_or_exit(settings, dry_run=options.dry_run)


if __name__ == "__main__":
    main(sys.argv[1:])
