"""A training run from its settings: put together, trained, and told of."""

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import transformers
import yaml
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from data import DataError, MaskedBatch, eval_batches, tokenizer_fingerprint, vocab_size
from launch.cli import Settings, fail
from launch.corpus import Corpus, open_corpus
from launch.environment import record_start
from launch.loaders import eval_dataset, train_loader
from launch.run_folder import check_output_dir, open_output_dir
from launch.sharing import Sharing
from launch.signals import StopSignals, stop_with_launcher
from launch.summary import print_end, print_plan, show_log
from launch.world import (
    check_compiler,
    has_launcher,
    main_process_first,
    start_accelerator,
    what_was_lost,
)
from train_loop import (
    BatchPlan,
    MaskedLMObjective,
    ModelConfig,
    NonFiniteError,
    Run,
    Stopped,
    TrainState,
    build_optimizers,
    build_schedule,
    check_document_attention,
    freeze_unused,
    gather_in_last_layer,
    open_model,
    open_trackers,
    plan_batches,
    train,
    unigram_perplexity,
)
from train_loop.arithmetic import measure_arithmetic
from train_loop.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    find_checkpoint,
    load_data_state,
    load_optimizers,
    load_state,
)
from train_loop.compilation import compile_layers
from train_loop.fit import fewest_micro_batches
from train_loop.probes import check_probes

_IDENTITY = (
    "streaming",
    "block_size",
    "grouping",
    "document_attention",
    "masking",
    "mlm_probability",
    "mlm_probability_schedule",
    "mlm_probability_end",
    "mask_replace_prob",
    "random_replace_prob",
)
_STREAM_IDENTITY = ("num_streams", "shuffle_buffer_size")


def run_training(settings: Settings, *, dry_run: bool) -> None:
    """Set up, train, and say where everything is; exit 2 with one line for what the user can mend."""
    if has_launcher():
        stop_with_launcher()
    show_log()
    transformers.utils.logging.disable_progress_bar()  # of its own: one bar is enough
    try:
        accelerator = start_accelerator(settings.train)
        check_output_dir(settings)
        sharing = main_process_first(
            accelerator, lambda: Sharing(settings.train, is_main=accelerator.is_main_process and not dry_run)
        )
        corpus = main_process_first(accelerator, lambda: open_corpus(settings))
        plan = plan_batches(settings.train, corpus.blocks_per_epoch, accelerator.num_processes)
        if dry_run:
            if accelerator.is_main_process:
                print(yaml.safe_dump(settings.as_dict(), sort_keys=False))
                print_plan(corpus, plan, accelerator)
            return
        signals = StopSignals()
        run = assemble(settings, accelerator, corpus, plan, signals, sharing)
    except (ValueError, OSError) as error:
        fail(error)
    if accelerator.is_main_process:
        print_plan(corpus, run.plan, accelerator)
    unigram = None  # when streaming: nobody has counted the tokens
    if corpus.train:
        unigram = unigram_perplexity(accelerator, unigram_weights(corpus), run.eval_batches())
        accelerator.print(f"unigram  perplexity {unigram:.1f} for guessing by frequency alone")
    signals.listen()
    try:
        final = train(run)
    except (NonFiniteError, CheckpointError) as error:
        fail(error, code=1)
    except (DataError, RuntimeError, OSError, EOFError) as error:  # of one process: the launcher ends the others
        if not isinstance(error, DataError) and (loss := what_was_lost(error)):
            print(f"error: process {accelerator.process_index}: {loss}", file=sys.stderr)
        elif isinstance(error, DataError | OSError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            raise
        sys.exit(1)
    except Stopped as stopped:
        number = signals.number or signal.SIGTERM  # another process's
        accelerator.print(f"{stopped} by {signal.Signals(number).name}: go on with --resume_from_checkpoint latest")
        accelerator.end_training()
        sharing.leave(128 + number)
    print_end(run, final, unigram)
    accelerator.end_training()
    sharing.finish(run.output_dir / "model")


def assemble(
    settings: Settings,
    accelerator: Accelerator,
    corpus: Corpus,
    plan: BatchPlan,
    signals: StopSignals,
    sharing: Sharing,
) -> Run:
    """Model, optimizers and loaders, from the start or from a checkpoint; then open the run's folder."""
    config = settings.train
    output_dir = Path(config.output_dir)
    identity = run_identity(settings, corpus, plan)
    checkpoint = None
    if config.resume_from_checkpoint is not None:
        checkpoint = find_checkpoint(config.resume_from_checkpoint, output_dir)
    state = TrainState() if checkpoint is None else load_state(checkpoint, identity)
    lr_factor = build_schedule(config, plan.total_steps)
    objective = open_objective(settings, accelerator, corpus.tokenizer, checkpoint)
    if accelerator.device.type == "cuda":
        objective.pad_vocabulary_to = config.pad_vocabulary_to
    model = objective.model
    objective, *optimizers = accelerator.prepare(objective, *build_optimizers(model, config))
    bare = accelerator.unwrap_model(objective)
    if config.per_device_train_batch_size == "auto":
        plan = plan.cut(micro_batches_that_fit(settings, accelerator, bare, plan))
    if config.torch_compile:
        check_compiler()
        compile_layers(bare)
    if checkpoint is not None:
        load_optimizers(checkpoint, model, optimizers)
        if accelerator.scaler is not None and state.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)
        accelerator.print(f"resumed  {checkpoint}, after step {state.step}")

    world = {
        "rank": accelerator.process_index,
        "num_processes": accelerator.num_processes,
        "device": accelerator.device,
    }
    data_state = {} if checkpoint is None else load_data_state(checkpoint)
    loader = train_loader(settings, corpus, plan, state=data_state, **world)
    probability = settings.data.eval_mlm_probability or settings.data.mlm_probability
    held_out = eval_dataset(corpus, config.eval_seed)

    def evaluation() -> Iterator[MaskedBatch]:
        batch_size = config.per_device_eval_batch_size
        return eval_batches(held_out, batch_size, probability, config=corpus.config, **world)

    def tokens_by_source(step: int) -> dict[str, int]:
        names = [source.name for source in corpus.documents]
        return dict(zip(names, loader.tokens_by_source(step).tolist(), strict=True))

    if accelerator.is_main_process:
        open_output_dir(settings)
        record_start(output_dir, accelerator, step=state.step)
    open_trackers(accelerator, config, settings.as_dict(), step=state.step)
    return Run(
        config=config,
        accelerator=accelerator,
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
        identity=identity,
        arithmetic=measure_arithmetic(accelerator, bare, settings.data.block_size),
        state=state,
        writer=CheckpointWriter(model, on_error=config.on_save_error) if accelerator.is_main_process else None,
        stop_requested=lambda: signals.number is not None,
        on_saved=sharing.on_saved,
    )


def open_objective(
    settings: Settings, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, checkpoint: Path | None
) -> MaskedLMObjective:
    """The model, as the settings or a checkpoint have it, with what is tried out on it before it is prepared.

    It is tried out as it will be trained, on the device and at the precision of the run: some attention has no other.
    """
    model = open_model(
        settings.model if checkpoint is None else _of_checkpoint(settings.model, checkpoint),
        tokenizer,
        vocab_size=vocab_size(tokenizer),
        block_size=settings.data.block_size,
        seed=settings.train.seed,
    )
    check_probes(model, tokenizer, settings.train.probe)
    objective = MaskedLMObjective(model).to(accelerator.device)
    with accelerator.autocast():
        freeze_unused(objective)
        if settings.train.masked_last_layer:
            gather_in_last_layer(objective)
        if settings.data.document_attention:
            check_document_attention(objective, settings.data.block_size)
    return objective


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


def _of_checkpoint(config: ModelConfig, checkpoint: Path) -> ModelConfig:
    """The same settings with the checkpoint's model."""
    return replace(config, model_name_or_path=str(checkpoint), model_revision=None, model_type=None, model_config={})


def run_identity(settings: Settings, corpus: Corpus, plan: BatchPlan) -> dict[str, object]:
    """What makes the next step what it is: a checkpoint of another value of one of these is refused."""
    data, train = settings.data, settings.train
    return {
        "tokenizer (SHA-256)": tokenizer_fingerprint(corpus.tokenizer),
        **{name: getattr(data, name) for name in (*_IDENTITY, *(_STREAM_IDENTITY if data.streaming else ()))},
        "seed": train.seed,
        "global_batch_size": plan.global_batch_size,
        "optimizer": train.optimizer,
        "mixture weights": list(corpus.weights),
        "training tokens (SHA-256)": [source.sha256 for source in corpus.train],
        **({"training files (SHA-256)": [source.identity for source in corpus.documents]} if data.streaming else {}),
    }


def unigram_weights(corpus: Corpus) -> torch.Tensor:
    """``[V]``: how often each token occurs in the training text, plus one; 0 for special tokens."""
    weights = torch.from_numpy(corpus.token_counts() + 1)
    weights[torch.from_numpy(corpus.vocabulary.is_special)] = 0
    return weights
