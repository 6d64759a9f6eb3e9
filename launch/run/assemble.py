"""A training run from its settings: put together, trained, and told of."""

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import NoReturn

import torch
import transformers
import yaml
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from data.batch import MaskedBatch
from data.batches.loader import eval_batches
from data.blocks.tokenization import tokenizer_fingerprint
from data.blocks.vocabulary import vocab_size
from data.documents.ranges import DataError
from data.functions import OwnFunction
from launch.run.corpus import Corpus, open_corpus
from launch.run.environment import record_start
from launch.run.folder import RunFolder
from launch.run.hub import Sharing
from launch.run.loaders import eval_dataset, train_loader
from launch.run.processes import check_compiler, has_launcher, start_accelerator, what_was_lost
from launch.run.settings import Settings, fail
from launch.run.signals import StopSignals, stop_with_launcher
from launch.run.summary import print_end, print_plan, show_log
from train_loop.checkpoint import CheckpointError, TrainState, load_optimizers
from train_loop.config import BatchPlan, plan_batches
from train_loop.evaluate import EvalMetrics, unigram_perplexity
from train_loop.inference.probes import check_probes
from train_loop.loop import Run, Stopped, train
from train_loop.model import open_model
from train_loop.objective import MaskedLMObjective, check_document_attention, freeze_unused, gather_in_last_layer
from train_loop.processes import AgreedError, Processes, weights_digest
from train_loop.run_checkpoints import Resumed, RunCheckpoints
from train_loop.speed.compile import compile_layers
from train_loop.speed.flops import measure_arithmetic
from train_loop.speed.memory import fewest_micro_batches
from train_loop.step import NonFiniteError
from train_loop.watching.trackers import open_trackers

# What may differ from machine to machine: places, how fast it goes, and names of what is compared by its content.
_OF_THE_MACHINE = {
    "output_dir",
    "cache_dir",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "cpu_threads",
    "dataloader_num_workers",
    "dataloader_timeout",
    "dataset",
    "mixture",
    "eval_dataset",
    "tokenizer_name_or_path",
    "model_name_or_path",
}


def run_training(settings: Settings, *, dry_run: bool) -> None:
    """Set up, train, and say where everything is; exit 2 with one line for what the user can mend."""
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
        processes = Processes(accelerator, settings.train.process_timeout)
        processes.require_same({k: v for k, v in settings.as_dict().items() if k not in _OF_THE_MACHINE})
        processes.together(lambda: (settings.build_optimizers, settings.build_schedule))  # before hours of tokenizing
        folder = RunFolder(settings)
        processes.from_main(folder.hold)
        is_sharing = accelerator.is_main_process and not dry_run
        sharing = processes.together(lambda: Sharing(settings.train, is_main=is_sharing))
        corpus = processes.first_of_machine_first(lambda: open_corpus(settings))
        plan = processes.together(
            lambda: plan_batches(settings.train, corpus.blocks_per_epoch, accelerator.num_processes)
        )
        if dry_run:
            if accelerator.is_main_process:
                print(yaml.safe_dump(settings.as_dict(), sort_keys=False))
                print_plan(corpus, plan, accelerator)
            return
        run = assemble(settings, accelerator, processes, corpus, plan, signals, sharing, folder)
    except AgreedError as error:
        fail(error)
    except (ValueError, OSError) as error:
        _fail_alone(error, accelerator, code=2)
    if accelerator.is_main_process:
        print_plan(corpus, run.plan, accelerator)
    unigram = None  # when streaming: nobody has counted the tokens
    if corpus.train:
        unigram = unigram_perplexity(accelerator, unigram_weights(corpus), run.eval_batches())
        accelerator.print(f"unigram  perplexity {unigram:.1f} for guessing by frequency alone")
    final = _train_or_exit(run, signals, sharing)
    print_end(run, final, unigram)
    accelerator.end_training()
    sharing.finish(run.output_dir / "model")


def _train_or_exit(run: Run, signals: StopSignals, sharing: Sharing) -> EvalMetrics:
    """Train; exit with 1 and one line for what goes wrong, with 128 and the number for a signal."""
    accelerator = run.accelerator
    signals.listen()
    try:
        return train(run)
    except (NonFiniteError, CheckpointError) as error:
        fail(error, code=1)
    except (DataError, RuntimeError, OSError, EOFError) as error:  # of one process: the launcher ends the others
        if not isinstance(error, DataError) and (loss := what_was_lost(error)):
            _fail_alone(f"process {accelerator.process_index}: {loss}", accelerator, code=1)
        if isinstance(error, DataError | OSError):
            _fail_alone(error, accelerator, code=1)
        raise
    except Stopped as stopped:
        number = signals.number or signal.SIGTERM  # another process's
        accelerator.print(f"{stopped} by {signal.Signals(number).name}: go on with --resume_from_checkpoint latest")
        accelerator.end_training()
        sharing.leave(128 + number)


def _fail_alone(error: object, accelerator: Accelerator, *, code: int) -> NoReturn:
    """Print an error of this process, perhaps of no other, and exit; the launcher ends the others."""
    text = " ".join(str(error).split())
    if accelerator.num_processes > 1 and not text.startswith("process "):
        text = f"process {accelerator.process_index}: {text}"
    print(f"error: {text}", file=sys.stderr)
    sys.exit(code)


def assemble(
    settings: Settings,
    accelerator: Accelerator,
    processes: Processes,
    corpus: Corpus,
    plan: BatchPlan,
    signals: StopSignals,
    sharing: Sharing,
    folder: RunFolder,
) -> Run:
    """Model, optimizers and loaders, from the start or from a checkpoint; then open the run's folder."""
    config = settings.train
    identity = run_identity(settings, corpus, plan)
    checkpoints = RunCheckpoints(config, identity=identity, settings=settings.as_dict(), on_saved=sharing.on_saved)
    resumed = processes.from_main(checkpoints.resume)
    state = TrainState() if resumed is None else resumed.state
    lr_factor = processes.together(lambda: settings.build_schedule(config, plan.total_steps))
    objective = open_objective(settings, corpus.tokenizer, resumed, processes)
    processes.require_same(
        {
            **identity,
            "evaluation tokens (SHA-256)": corpus.eval.sha256,
            "batches": plan,
            "step": state.step,
            "weights (SHA-256)": weights_digest(objective.model),
        }
    )
    processes.together(lambda: try_out(objective, accelerator, corpus.tokenizer, settings))
    if accelerator.device.type == "cuda":
        objective.pad_vocabulary_to = config.pad_vocabulary_to
    model = objective.model
    objective, *optimizers = accelerator.prepare(objective, *settings.build_optimizers(model, config))
    bare = accelerator.unwrap_model(objective)
    if config.per_device_train_batch_size == "auto":
        plan = plan.cut(micro_batches_that_fit(settings, accelerator, bare, plan))
    if config.torch_compile:
        processes.together(check_compiler)
        compile_layers(bare)
    if resumed is not None:
        load_optimizers(processes.tensors_from_main(resumed.optimizer_tensors), model, optimizers)
        if accelerator.scaler is not None and state.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)

    world = {
        "rank": accelerator.process_index,
        "num_processes": accelerator.num_processes,
        "device": accelerator.device,
    }
    loader = train_loader(settings, corpus, plan, state={} if resumed is None else resumed.data_state, **world)
    probability = settings.data.eval_mlm_probability or settings.data.mlm_probability
    held_out = eval_dataset(corpus, config.eval_seed)

    def evaluation() -> Iterator[MaskedBatch]:
        batch_size = config.per_device_eval_batch_size
        return eval_batches(held_out, batch_size, probability, config=corpus.config, **world)

    def tokens_by_source(step: int) -> dict[str, int]:
        names = [source.name for source in corpus.documents]
        return dict(zip(names, loader.tokens_by_source(step).tolist(), strict=True))

    arithmetic = measure_arithmetic(accelerator, bare, settings.data.block_size)

    def open_folder() -> None:
        folder.open()
        record_start(folder.path, accelerator, step=state.step)
        lines = [] if resumed is None else [f"resumed  {resumed.folder}, after step {state.step}", *resumed.changed]
        print("\n".join([*lines, *checkpoints.begin(resumed)]), end="\n" if lines else "")

    processes.from_main(open_folder)
    open_trackers(accelerator, config, settings.as_dict(), step=state.step)
    return Run(
        config=config,
        accelerator=accelerator,
        processes=processes,
        objective=objective,
        optimizers=optimizers,
        lr_factor=lr_factor,
        plan=plan,
        train_steps=loader.steps,
        data_state=loader.state,
        tokens_by_source=tokens_by_source,
        bad_rows=lambda: loader.bad_rows if settings.data.on_bad_row == "skip" else None,
        eval_batches=evaluation,
        tokenizer=corpus.tokenizer,
        arithmetic=arithmetic,
        state=state,
        checkpoints=checkpoints,
        stop_requested=lambda: signals.number is not None,
    )


def open_objective(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, resumed: Resumed | None, processes: Processes
) -> MaskedLMObjective:
    """The model, as the settings have it, or the main process's checkpoint."""
    config = settings.model
    if resumed is not None:
        # The others may not see the checkpoint: they build its model, and the weights come from the main process.
        kind, shape = resumed.model_config["model_type"], resumed.model_config
        config = replace(
            config,
            model_name_or_path=str(resumed.folder) if processes.is_main else None,
            model_revision=None,
            model_type=None if processes.is_main else kind,
            model_config={} if processes.is_main else {k: v for k, v in shape.items() if k != "model_type"},
        )
    model = processes.together(
        lambda: open_model(
            config,
            tokenizer,
            vocab_size=vocab_size(tokenizer),
            block_size=settings.data.block_size,
            seed=settings.train.seed,
        )
    )
    if resumed is not None:
        processes.weights_from_main(model)
    return MaskedLMObjective(model)


def try_out(
    objective: MaskedLMObjective, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> None:
    """Try out what the model allows, as it will be trained: on the device and at the precision of the run.

    Raises:
        ValueError: A setting asks for something that it does not allow.
    """
    check_probes(objective.model, tokenizer, settings.train.probe)
    objective.to(accelerator.device)
    with accelerator.autocast():
        freeze_unused(objective)
        if settings.train.masked_last_layer:
            gather_in_last_layer(objective)
        if settings.data.document_attention:
            check_document_attention(objective, settings.data.block_size)


def micro_batches_that_fit(
    settings: Settings, accelerator: Accelerator, objective: MaskedLMObjective, plan: BatchPlan
) -> int:
    """Into how few micro-batches the run's updates can be cut on these devices."""
    data = settings.data
    return fewest_micro_batches(
        accelerator,
        objective,
        plan.micro_batch_size,
        length=data.block_size,
        masked_share=max(data.mlm_probability, data.mlm_probability_end or 0),
        has_attention_mask=data.document_attention or data.grouping != "concatenate",
    )


def run_identity(settings: Settings, corpus: Corpus, plan: BatchPlan) -> dict[str, object]:
    """What makes the next step what it is: a checkpoint of another value of one of these is refused."""
    data, is_streaming = corpus.config, settings.data.streaming
    functions: dict[str, object] = {
        "masking": data.choose,
        "mlm_probability_schedule": data.mask_rate,
        "grouping": data.group,
        "optimizer": settings.build_optimizers,
        "lr_scheduler_type": settings.build_schedule,
    }
    own = {name: function.sha256 for name, function in functions.items() if isinstance(function, OwnFunction)}
    return {
        "tokenizer (SHA-256)": tokenizer_fingerprint(corpus.tokenizer),
        **settings.marked("identity"),
        **(settings.marked("identity of a stream") if is_streaming else {}),
        "global_batch_size": plan.global_batch_size,  # also where the setting leaves it open
        "mixture weights": list(corpus.weights),
        "training tokens (SHA-256)": [source.sha256 for source in corpus.train],
        **({"training files (SHA-256)": [source.identity for source in corpus.documents]} if is_streaming else {}),
        **{f"{name} (SHA-256 of the file)": sha256 for name, sha256 in own.items()},
    }


def unigram_weights(corpus: Corpus) -> torch.Tensor:
    """``[V]``: how often each token occurs in the training text, plus one; 0 for special tokens."""
    weights = torch.from_numpy(corpus.token_counts() + 1)
    weights[torch.from_numpy(corpus.vocabulary.is_special)] = 0
    return weights
