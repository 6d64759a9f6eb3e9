"""A training run from its settings to its end, and what is said of it."""

import signal
import sys
from dataclasses import replace
from typing import Any, NoReturn

import torch
import transformers
import yaml
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from data.documents.ranges import DataError
from launch.run.assemble import assemble, open_objective
from launch.run.corpus import Corpus, open_corpus, with_probes
from launch.run.folder import RunFolder
from launch.run.hub import Sharing
from launch.run.processes import has_launcher, start_accelerator, what_was_lost
from launch.run.settings import Settings, fail
from launch.run.signals import StopSignals, stop_with_launcher
from launch.run.summary import print_end, print_plan, show_log
from train_loop import run_files
from train_loop.checkpoint import CheckpointError
from train_loop.evaluate import unigram_perplexity
from train_loop.inference.probes import fill_probes
from train_loop.loop import train
from train_loop.objective import EvalMetrics
from train_loop.plan import plan_batches
from train_loop.processes import AgreedError, Processes
from train_loop.run import Run, Stopped
from train_loop.run_checkpoints import Start
from train_loop.speed.flops import measure_arithmetic
from train_loop.step_metrics import NonFiniteError
from train_loop.watching.watch import Watch


def run_training(settings: Settings, *, dry_run: bool) -> None:
    """Set up, train, and print where the results are. User errors exit with code 2."""
    if has_launcher():
        stop_with_launcher()
    show_log()
    transformers.utils.logging.disable_progress_bar()  # of its own: one bar is enough
    try:
        accelerator = start_accelerator(settings.train)
    except ValueError as error:
        fail(error)
    signals = StopSignals()
    try:
        settings = replace(settings, train=replace(settings.train, mixed_precision=accelerator.mixed_precision))
        processes = Processes(accelerator, settings.train.process_timeout, lambda: signals.number is not None)
        of_the_machine = settings.marked("of the machine")
        processes.require_same({k: v for k, v in settings.as_dict().items() if k not in of_the_machine})
        processes.together(settings.find_functions)  # before hours of tokenizing
        folder = RunFolder(settings.train)
        if not dry_run and (settings.train.resume_from_checkpoint or settings.train.overwrite_output_dir):
            processes.from_main(folder.hold)  # a new run asks for it last: wrong settings are told before
        is_sharing = accelerator.is_main_process and not dry_run
        sharing = processes.together(lambda: Sharing(settings.train, is_main=is_sharing))
        corpus = processes.first_of_machine_first(lambda: open_corpus(settings))
        settings = with_probes(settings, corpus)
        plan = processes.together(
            lambda: plan_batches(settings.train, corpus.blocks_per_epoch, accelerator.num_processes)
        )
        if dry_run:
            model = open_objective(settings, corpus.tokenizer, Start(), processes).model
            if accelerator.is_main_process:
                print(yaml.safe_dump(settings.as_dict(), sort_keys=False))
                print_plan(corpus, plan, accelerator, model)
            return
        run = assemble(settings, accelerator, processes, corpus, plan, folder, sharing.on_saved)
    except AgreedError as error:
        fail(error)
    except (ValueError, OSError) as error:
        _fail_alone(error, accelerator, code=2)
    if accelerator.is_main_process:
        print_plan(corpus, run.plan, accelerator, run.bare_objective.model)
    unigram = None  # when streaming: nobody has counted the tokens
    if corpus.train:
        unigram = unigram_perplexity(accelerator, unigram_weights(corpus), run.eval_batches())
        accelerator.print(f"unigram  perplexity {unigram:.1f} for guessing by frequency alone")
    final = _train_or_exit(settings, run, corpus.tokenizer, signals, sharing)
    print_end(run, final, unigram, str(corpus.tokenizer.mask_token))
    processes.close()
    accelerator.end_training()
    sharing.finish(run.output_dir / run_files.MODEL)


def _train_or_exit(
    settings: Settings, run: Run, tokenizer: PreTrainedTokenizerBase, signals: StopSignals, sharing: Sharing
) -> EvalMetrics:
    """Train. Errors exit with code 1 and one line, signals with 128 and their number."""
    accelerator, probes = run.accelerator, settings.train.probe

    def filled() -> list[dict[str, Any]]:
        with accelerator.autocast():
            return fill_probes(run.bare_objective.model, tokenizer, probes)

    arithmetic = measure_arithmetic(accelerator, run.bare_objective, settings.data.block_size)
    signals.listen()
    try:
        return train(run, Watch(run, arithmetic, filled if probes else None))
    except (NonFiniteError, CheckpointError) as error:
        fail(error, code=1)
    except (DataError, RuntimeError, OSError, EOFError) as error:  # of one process: the launcher ends the others
        if not isinstance(error, DataError) and (loss := what_was_lost(error)):
            _fail_alone(loss, accelerator, code=1)
        if isinstance(error, DataError | OSError):
            _fail_alone(error, accelerator, code=1)
        raise
    except Stopped as stopped:
        number = signals.number or signal.SIGTERM  # another process's
        accelerator.print(f"{stopped} by {signal.Signals(number).name}: go on with --resume_from_checkpoint latest")
        run.processes.close()
        accelerator.end_training()
        sharing.leave(128 + number)


def _fail_alone(error: object, accelerator: Accelerator, *, code: int) -> NoReturn:
    """Print an error that perhaps only this process has, and exit. The launcher ends the other processes."""
    who = f"process {accelerator.process_index}: " if accelerator.num_processes > 1 else ""
    print(f"error: {who}{' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


def unigram_weights(corpus: Corpus) -> torch.Tensor:
    """``[V]``: how often each token occurs in the training text, plus one; 0 for special tokens."""
    weights = torch.from_numpy(corpus.token_counts() + 1)
    weights[torch.from_numpy(corpus.vocabulary.is_special)] = 0
    return weights
