"""A training run from its settings to its end, and what is said of it."""

import gc
import signal
import sys
from collections import ChainMap
from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
import yaml
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.documents.ranges import DataError
from launch.run.assemble import assemble, open_objective
from launch.run.corpus import Corpus, open_corpus, with_probes
from launch.run.errors import fail
from launch.run.folder import RunFolder
from launch.run.hub import NotPushedError, Sharing
from launch.run.processes import has_launcher, start_accelerator, what_was_lost, why_not_met
from launch.run.settings import Settings
from launch.run.signals import StopSignals, stop_with_launcher
from launch.run.suite import Suite, open_suite
from launch.run.summary import memory_plan, print_end, print_plan, show_log
from train_loop import run_files
from train_loop.checkpoint import CheckpointError, Start
from train_loop.inference.probes import fill_probes
from train_loop.loop import save_alone, train
from train_loop.objectives.masked_lm import unigram_perplexity
from train_loop.parallel import full_state, load_full_state
from train_loop.plan import BatchPlan, plan_batches
from train_loop.processes import AgreedError, Processes
from train_loop.run import Run, Stopped
from train_loop.speed.flops import measure_arithmetic
from train_loop.watching.columns import say
from train_loop.watching.metrics import NonFiniteError
from train_loop.watching.watch import Watch


class Prepared(NamedTuple):
    """What a run is made of before it has a model."""

    settings: Settings  # resolved
    accelerator: Accelerator
    processes: Processes
    signals: StopSignals
    sharing: Sharing
    suite: Suite | None
    corpus: Corpus
    plan: BatchPlan


class ReadyRun(NamedTuple):
    """A run that is set up, and what it was set up from."""

    run: Run
    at: Prepared
    is_last: bool  # whether no phase follows


def train_or_exit(settings: Settings, *, dry_run: bool) -> None:
    """Train. User errors exit with code 2, later errors with 1, signals with 128 and their number, each with a line."""
    runs = set_up_phases(settings, dry_run=dry_run)
    while True:
        try:
            if (ready := next(runs, None)) is None:
                return
        except AgreedError as error:
            fail(error)
        except (ValueError, OSError) as error:
            fail(error, is_alone=True)
        try:
            train_to_end(ready)
        except (NonFiniteError, CheckpointError) as error:
            fail(error, code=1)
        except (DataError, OSError) as error:
            fail(error, code=1, is_alone=True)
        except NotPushedError as error:
            print(f"error: {error}", file=sys.stderr)
            ready.at.sharing.leave(error.code)
        except Stopped:
            ready.at.sharing.leave(128 + (ready.at.signals.number or signal.SIGTERM))
        del ready  # its model goes before the next phase's comes


def set_up_phases(settings: Settings, *, dry_run: bool = False) -> Generator[ReadyRun]:
    """Yield the run of the settings; or those of all phases that are not finished, each after the one before.

    All phases are tried out before the first one trains. With ``dry_run`` they are printed, and none is yielded. Raises
    as `set_up`.
    """
    phases = settings.phases or (settings,)
    folders = [RunFolder(phase.train) for phase in phases]
    first, tokenizer = 0, None
    weights: Mapping[str, Tensor] = {}
    try:
        for i in range(len(phases)) if dry_run or len(phases) > 1 else ():
            folders[i].later = folders[i + 1 :]
            skips = not dry_run and first == i < len(phases) - 1
            if (at := prepare(phases[i], folders[i], tokenizer, dry_run=dry_run, skips=skips)) is None:
                first += 1
            else:
                weights = _try_out(at, folders[i], weights, dry_run=dry_run)
                tokenizer = at.corpus.tokenizer if phases[0].data.train_tokenizer else None
        for i in () if dry_run else range(first, len(phases)):
            gc.collect()  # what is left of the phase before
            yield set_up(phases[i], folders[i], tokenizer, is_last=i == len(phases) - 1)
    finally:
        for folder in folders:
            folder.release()


def _try_out(at: Prepared, folder: RunFolder, before: Mapping[str, Tensor], *, dry_run: bool) -> Mapping[str, Tensor]:
    """Build the model and load the weights of the phase before, if there is one; return weights of these shapes."""
    at.processes.together(lambda: at.settings.functions["lr_scheduler_type"](at.settings.train, at.plan.total_steps))
    objective = open_objective(at.settings, at.corpus.tokenizer, Start(), at.processes)
    weights = ChainMap(*full_state(objective, (), is_wanted=True))
    at.processes.together(lambda: load_full_state(objective, (), before or weights, is_whole=True))
    if not dry_run:
        at.processes.from_main(folder.hold)
    elif at.processes.is_main:
        print(yaml.safe_dump(at.settings.as_dict(), sort_keys=False))
        print_plan(at.corpus, at.plan, at.accelerator, objective.model)
        say(memory_plan(at.settings, at.plan, at.accelerator, objective), "memory   ")
    at.processes.close()
    return weights


def set_up(
    settings: Settings, folder: RunFolder, tokenizer: PreTrainedTokenizerBase | None = None, *, is_last: bool = True
) -> ReadyRun:
    """Set a run up, perhaps with a tokenizer that is open already.

    Raises AgreedError for a user error that all processes raise, ValueError for one that perhaps only this process has,
    and OSError for a file.
    """
    at = prepare(settings, folder, tokenizer, dry_run=False, skips=False)
    assert at is not None
    run = assemble(at.settings, at.accelerator, at.processes, at.corpus, at.plan, folder, at.sharing.on_saved)
    return ReadyRun(run, at, is_last)


def prepare(
    settings: Settings, folder: RunFolder, tokenizer: PreTrainedTokenizerBase | None, *, dry_run: bool, skips: bool
) -> Prepared | None:
    """All of a run but the model; with ``skips``, None for one that is resumed and finished. Raises as `set_up`."""
    if has_launcher():
        stop_with_launcher()
    show_log()
    transformers.utils.logging.disable_progress_bar()  # of its own: one bar is enough
    signals = StopSignals()
    try:
        accelerator = start_accelerator(settings.train)
        processes = Processes(accelerator, settings.train.process_timeout, lambda: signals.number is not None)
    except ValueError as error:
        raise AgreedError(error) from error
    except RuntimeError as error:
        if (problem := why_not_met(error)) is None:
            raise
        raise AgreedError(problem) from error
    is_done = skips and settings.train.resume_from_checkpoint and (folder.path / run_files.MODEL).is_dir()
    if processes.from_main(lambda: is_done):
        if processes.is_main:
            print(f"finished {folder.path}")
        processes.close()
        return None
    settings = replace(settings, train=replace(settings.train, mixed_precision=accelerator.mixed_precision))
    of_the_machine = settings.marked("of the machine")
    processes.require_same({k: v for k, v in settings.as_dict().items() if k not in of_the_machine})
    processes.together(lambda: settings.functions)  # before hours of tokenizing
    if not dry_run and (settings.train.resume_from_checkpoint or settings.train.overwrite_output_dir):
        processes.from_main(folder.hold)  # a new run asks for it last: wrong settings are told before
    suite = processes.together(lambda: open_suite(settings))
    is_sharing = accelerator.is_main_process and not dry_run
    sharing = processes.together(lambda: Sharing(settings.train, is_main=is_sharing))
    corpus = processes.first_of_machine_first(lambda: open_corpus(settings, tokenizer=tokenizer))
    settings = with_probes(settings, corpus)
    plan = processes.together(lambda: plan_batches(settings.train, corpus.blocks_per_epoch, accelerator.num_processes))
    return Prepared(settings, accelerator, processes, signals, sharing, suite, corpus, plan)


def train_to_end(ready: ReadyRun) -> None:
    """Train, print where the results are, and push the model if the settings say so.

    Raises:
        Stopped: After SIGTERM or SIGINT, and a checkpoint.
        NonFiniteError, CheckpointError: See `train_loop.loop.train`; all processes raise.
        DataError, OSError: This process cannot read or write.
        ConnectionError: Another process, or a loader worker, died or hung.
        NotPushedError: The model is complete, and not on the Hub.
    """
    run, corpus, accelerator = ready.run, ready.at.corpus, ready.run.accelerator
    if accelerator.is_main_process:
        print_plan(corpus, run.plan, accelerator, run.bare_objective.model)
    unigram = None  # when streaming: nobody has counted the tokens
    if corpus.train:
        weights_V = torch.from_numpy(corpus.token_counts() + 1)
        weights_V[torch.from_numpy(corpus.vocabulary.is_special)] = 0
        unigram = unigram_perplexity(accelerator, weights_V, run.eval_batches())
        if accelerator.is_main_process:
            print(f"unigram  perplexity {unigram:.1f} for guessing by frequency alone")
    arithmetic = measure_arithmetic(accelerator, run.bare_objective, corpus.config.block_size)
    watch = Watch(run, arithmetic, partial(_answers, run, corpus, ready.at.suite))
    with ready.at.signals.remembered():
        try:
            final = train(run, watch)
            if not ready.is_last and run.processes.stop():  # since its last update
                raise Stopped(run.state.step)
        except (RuntimeError, OSError, EOFError) as error:
            if not isinstance(error, NonFiniteError) and (loss := what_was_lost(error)):
                if run.config.save_when_lost:
                    save_alone(run)
                raise ConnectionError(loss) from error
            raise
        except Stopped as stopped:
            number = ready.at.signals.number or signal.SIGTERM  # another process's
            if accelerator.is_main_process:
                print(f"{stopped} by {signal.Signals(number).name}: go on with --resume_from_checkpoint latest")
            run.processes.close()
            accelerator.end_training()
            raise
        print_end(run, final, unigram, str(corpus.tokenizer.mask_token))
        run.processes.close()
        if ready.is_last:
            accelerator.end_training()
        else:  # the connections of the processes stay
            for tracker in accelerator.trackers:
                tracker.finish()
        ready.at.sharing.finish(run.output_dir / run_files.MODEL, ready.at.signals)


def _answers(run: Run, corpus: Corpus, suite: Suite | None) -> dict[str, Any]:
    """What the weights as they are answer to the probe sentences and, where it is due, to the suite."""
    model, step = run.bare_objective.model, run.state.step
    answers: dict[str, Any] = {}
    with run.accelerator.autocast():
        if run.config.probe:
            answers["probes"] = fill_probes(model, corpus.tokenizer, run.config.probe)
        if suite and (step % (suite.every * run.plan.eval_steps) == 0 or step == run.plan.total_steps):
            answers |= suite.row(model, corpus.tokenizer)
    return answers
