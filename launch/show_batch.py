"""Show the batch of one update as the model sees it: ``mlm show-batch --recipe quickstart --step 1``."""

import io
import sys

from launch.run.errors import one_line_errors
from launch.run.settings import SettingsParser, parse_settings
from train_loop.plan import plan_batches

COMMAND = SettingsParser(
    "mlm show-batch",
    "Print the batch of one update as a run sees it, without a model and without the updates before it; "
    "then what the corpus is made of.",
)
for _name, _default, _text in (
    ("step", 1, "Which update; the first is 1, the default."),
    ("rows", 8, "How many of its blocks to print. Default: 8."),
    ("num_processes", 1, "Processes of the run. They matter only if gradient_accumulation_steps is given. Default: 1."),
):
    COMMAND.add_option(f"--{_name}", type=int, metavar="N", default=_default, help=_text)


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print the batch and what the corpus is made of."""
    settings, options = parse_settings(arguments, COMMAND)
    settings = (*settings.phases, settings)[0]
    for name, smallest in (("step", 1), ("rows", 0), ("num_processes", 1)):
        if (value := getattr(options, name)) < smallest:
            raise ValueError(f"{name}={value} must be {smallest} or more")
    from launch.run.corpus import open_corpus, print_corpus
    from launch.terminal.batch import batches_of_step, print_counts, print_rows

    corpus = open_corpus(settings)
    plan = plan_batches(settings.train, corpus.blocks_per_epoch, options.num_processes)
    if options.step > plan.total_steps:
        raise ValueError(f"step={options.step} is beyond this run's last update, {plan.total_steps}")
    batches = batches_of_step(settings, corpus, plan, options.step)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for characters that the output's encoding lacks
    epoch = f", epoch {(options.step - 1) // plan.steps_per_epoch + 1}" if plan.steps_per_epoch else ""
    print(f"update {options.step:,} of {plan.total_steps:,}{epoch}")
    print_rows(batches, corpus, options.rows)
    print_counts(batches, corpus)
    print()
    print_corpus(corpus)


if __name__ == "__main__":
    main(sys.argv[1:])
