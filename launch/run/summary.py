"""Prints what a run is about to do, and its result."""

import logging

import psutil
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from launch.run.corpus import Corpus, print_corpus
from launch.run.errors import is_local_main
from launch.run.processes import device_notes, local_processes
from launch.run.settings import Settings
from train_loop import run_files
from train_loop.objective import EvalMetrics, Objective
from train_loop.objectives.masked_lm import MaskedLMMetrics
from train_loop.optim import all_optimizers
from train_loop.plan import BatchPlan
from train_loop.run import Run
from train_loop.speed.memory import SHARE_OF_MEMORY, memory_needed
from train_loop.watching.columns import say
from train_loop.watching.metrics import largest_peak_memory
from train_loop.watching.run_record import shown_perplexity


def show_log() -> None:
    """Print the log of `data` and `train_loop`, once on each machine; the libraries have their own handlers."""
    for name in ("data", "train_loop"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.StreamHandler() if is_local_main() else logging.NullHandler()]


def print_plan(corpus: Corpus, plan: BatchPlan, accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Print the corpus, the model, how a batch is divided, and the device."""
    print_corpus(corpus)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    tokens = model.get_input_embeddings().num_embeddings
    print(f"model    {model.config.model_type}, {size:,.1f} M parameters, vocabulary of {tokens:,} tokens")
    in_epoch = "" if plan.steps_per_epoch is None else f"{plan.steps_per_epoch:,} updates an epoch, "
    share = f"{plan.micro_batches_per_step} micro-batch(es) of {plan.micro_batch_size}"
    grows = f"{plan.initial_batch_size} to " if plan.batch_warmup_steps else ""
    batch = f"{grows}{plan.global_batch_size} blocks an update = {accelerator.num_processes} process(es) x {share}"
    say(f"{batch}; {in_epoch}{plan.total_steps:,} in all", "batch    ")
    device = accelerator.device.type
    threads = f", {torch.get_num_threads()} threads each" if device == "cpu" else ""
    print(f"device   {device}, precision {accelerator.mixed_precision}{threads}")
    for note in device_notes(accelerator):
        say(note, "         ")


def memory_plan(settings: Settings, plan: BatchPlan, accelerator: Accelerator, objective: Objective) -> str:
    """What an update needs on a device by DDP, FSDP2 and HSDP, and the first of these that fits.

    One process is asked what one on each GPU would need, or what eight would.
    """
    numbers = (accelerator.num_processes, torch.cuda.device_count(), 8)
    data, number = settings.data, next(n for n in numbers if n > 1)
    optimizers = all_optimizers(settings.functions["optimizer"], objective, settings.train)
    try:
        shape = (plan.micro_batch_size, data.block_size, data.most_masked)
        need = memory_needed(accelerator, objective, optimizers, *shape)
    except RuntimeError as error:  # an objective of one's own may need values
        return f"not counted: {' '.join(str(error).split()):.100}"
    hybrid = {"--shard true --replicas 2": need(number // 2)} if number % 2 == 0 and number > 2 else {}
    ways = {"DDP": need(1), **hybrid, "--shard true": need(number)}
    if accelerator.device.type == "cuda":
        room = torch.cuda.get_device_properties(accelerator.device).total_memory
    else:
        room = psutil.virtual_memory().available // local_processes()
    taken = next((way for way, size in ways.items() if size < SHARE_OF_MEMORY * room), None)
    advice = f"take {taken}" if taken else "none fits: --per_device_train_batch_size, --gradient_checkpointing true"
    needs = ", ".join(f"{way} {size / 1e9:.2f} GB" for way, size in ways.items())
    return f"for each of {number} processes about: {needs}; {room / 1e9:.1f} GB are there: {advice}"


def print_end(run: Run, final: EvalMetrics, unigram: float | None, mask_token: str) -> None:
    """Print how good the model is, the memory it took, and where the files are. All processes must call it."""
    memory = largest_peak_memory(run.accelerator)
    if not run.accelerator.is_main_process:
        return
    in_one = " in one process" if run.accelerator.num_processes > 1 else ""
    model, report = run.output_dir / run_files.MODEL, run.output_dir / run_files.REPORT
    print(f"\n{_quality(final, unigram)}")
    print(f"memory     {memory / 1e9:.2f} GB at the most{in_one}")
    print(f"metrics    {run.output_dir / run_files.METRICS}")
    if report.exists():
        print(f"report     {report}")
    print(f"model      {model}")
    if run.bare_objective.model.get_output_embeddings() is not None:
        print(f'try it     mlm fill --model {run.output_dir} "The default {mask_token} is None."')


def _quality(final: EvalMetrics, unigram: float | None) -> str:
    if not isinstance(final, MaskedLMMetrics):
        return f"loss       {final.eval_loss:.4f} on held-out text"
    perplexity = final.eval_perplexity
    text = f"perplexity {shown_perplexity(perplexity)} on held-out text"
    if unigram is None:
        return text
    if perplexity <= unigram:
        return f"{text}, 1/{unigram / perplexity:.1f} of the unigram model's"
    times = shown_perplexity(perplexity / unigram)
    return f"{text}, {times} times the unigram model's: worse than guessing by frequency alone"
