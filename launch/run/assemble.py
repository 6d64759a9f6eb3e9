"""A run put together from its settings: model, optimizers and loader, from the start or from a checkpoint.

What the processes, and a checkpoint and the run that goes on from it, must have in common is compared before.
"""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from data.batches.loader import Place
from data.blocks.tokenization import tokenizer_fingerprint
from data.blocks.vocabulary import vocab_size
from data.functions import OwnFunction
from launch.run.corpus import Corpus
from launch.run.environment import record_start
from launch.run.folder import RunFolder
from launch.run.loaders import eval_loader, train_loader
from launch.run.processes import check_compiler
from launch.run.settings import Settings
from train_loop.checkpoint import Start, load_tensors
from train_loop.inference.probes import check_probes
from train_loop.model import open_model
from train_loop.objective import Objective, freeze_unused
from train_loop.parallel import load_full_state, prepare
from train_loop.plan import BatchPlan
from train_loop.processes import AgreedError, Processes
from train_loop.run import Run
from train_loop.run_checkpoints import RunCheckpoints, load_whole
from train_loop.run_files import checkpoints as checkpoint_folders
from train_loop.speed.compile import compile_layers
from train_loop.speed.memory import fewest_micro_batches
from train_loop.watching.trackers import open_trackers


def assemble(
    settings: Settings,
    accelerator: Accelerator,
    processes: Processes,
    corpus: Corpus,
    plan: BatchPlan,
    folder: RunFolder,
    on_saved: Callable[[Path], None],
) -> Run:
    """Put a run together, make sure that all processes hold the same, and open the run's folder.

    ``on_saved`` is told of each checkpoint that is on the disk. Raises ValueError for a setting that does not fit the
    model, the text, the checkpoint or the machine, and OSError if the folder cannot be opened.
    """
    config = settings.train
    identity = run_identity(settings, corpus, plan)
    checkpoints = RunCheckpoints(
        config, corpus.tokenizer, identity=identity, settings=settings.as_dict(), on_saved=on_saved
    )
    start = processes.from_main(checkpoints.start)
    if config.resume_from_checkpoint == "latest":
        require_newest(processes, Path(config.output_dir))
    lr_factor = processes.together(lambda: settings.functions["lr_scheduler_type"](config, plan.total_steps))
    objective = open_objective(settings, corpus.tokenizer, Start() if start.is_branch else start, processes)
    if processes.number > 1:  # for one, a second of hashing for nothing
        held = {"evaluation tokens (SHA-256)": corpus.eval.sha256, "batches": plan, "step": start.state.step}
        processes.require_same({**identity, **held, "weights (SHA-256)": weights_digest(objective)})
    processes.together(lambda: try_out(objective, accelerator, corpus.tokenizer, settings))
    prepared, optimizers = processes.together(
        lambda: prepare(accelerator, objective, settings.functions["optimizer"], config)
    )
    if config.per_device_train_batch_size == "auto":
        plan = plan.cut(micro_batches_that_fit(settings, accelerator, objective, plan))
    if config.torch_compile:
        processes.together(check_compiler)
        compile_layers(objective)
    if (other := start.folder) is not None:
        load = partial(load_whole, objective=objective) if start.is_branch else load_tensors
        tensors = processes.tensors_from_main(lambda: load(other))
        processes.together(lambda: load_full_state(objective, optimizers, tensors, is_whole=start.is_branch))
    if accelerator.scaler is not None and start.state.scaler is not None:
        accelerator.scaler.load_state_dict(start.state.scaler)
    place, is_flat = Place(processes.rank, processes.number, accelerator.device), objective.takes_documents
    loader = train_loader(settings, corpus, plan, place, state=start.data_state, is_flat=is_flat)
    processes.from_main(lambda: open_folder(folder, settings, accelerator, checkpoints, start))
    open_trackers(accelerator, config, settings.as_dict(), step=start.state.step)
    return Run(
        config=config,
        accelerator=accelerator,
        processes=processes,
        objective=prepared,
        optimizers=optimizers,
        lr_factor=lr_factor,
        plan=plan,
        loader=loader,
        eval_batches=partial(eval_loader, settings, corpus, place, is_flat=is_flat),
        eval_tokens_per_byte=corpus.eval_tokens_per_byte,
        state=start.state,
        checkpoints=checkpoints,
    )


def run_identity(settings: Settings, corpus: Corpus, plan: BatchPlan) -> dict[str, object]:
    """What makes the next step what it is: a checkpoint of another value of one of these is refused."""
    data, is_streaming = corpus.config, settings.data.streaming
    functions: dict[str, object] = {
        "masking": data.choose,
        "mlm_probability_schedule": data.mask_rate,
        "grouping": data.group,
        **settings.functions,
    }
    own = {name: function.sha256 for name, function in functions.items() if isinstance(function, OwnFunction)}
    return {
        "tokenizer (SHA-256)": tokenizer_fingerprint(corpus.tokenizer),
        **settings.marked("identity"),
        **(settings.marked("identity of a stream") if is_streaming else {}),
        "global_batch_size": plan.global_batch_size,  # also where the setting leaves it open
        **({"batch_warmup_steps": plan.batch_warmup_steps} if plan.batch_warmup_steps else {}),
        "mixture weights": list(corpus.weights),
        "training tokens (SHA-256)": [source.sha256 for source in corpus.train],
        **({"training files (SHA-256)": [source.identity for source in corpus.documents]} if is_streaming else {}),
        **{f"{name} (SHA-256 of the file)": sha256 for name, sha256 in own.items()},
    }


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def require_newest(processes: Processes, output_dir: Path) -> None:
    """Raise AgreedError if a machine has a newer checkpoint than the main process, which may be another one now."""
    newest = max((folder.name for folder in checkpoint_folders(output_dir)), default="")
    (main, mains), *others = processes.gather((platform.node(), newest))
    for machine, name in others:
        if name > mains:
            raise AgreedError(
                f"resume_from_checkpoint=latest: {machine} has {name} in {output_dir}, and {main}, where process 0 "
                f"reads them, has {mains or 'no checkpoint'}: copy it there, or use a folder that all machines share"
            )


def open_objective(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, start: Start, processes: Processes
) -> Objective:
    """The objective with its model: as the settings have it, or with the weights of the main process's checkpoint."""
    config = settings.model
    if start.folder is not None:
        # The others may not see the checkpoint: they build its model, and the weights come from the main process.
        shape = dict(start.model_config)
        source = {"model_type": shape.pop("model_type"), "model_config": shape, "model_name_or_path": None}
        if processes.is_main:
            source = {"model_type": None, "model_config": {}, "model_name_or_path": str(start.folder)}
        config = replace(config, model_revision=None, **source)
    build_objective = settings.functions["objective"]

    def build() -> Objective:
        sizes = {"vocab_size": vocab_size(tokenizer), "block_size": settings.data.block_size}
        auto_class = getattr(build_objective, "auto_class", Objective.auto_class)
        model = open_model(config, tokenizer, **sizes, seed=settings.train.seed, auto_class=auto_class)
        name, options = settings.train.objective, settings.train.objective_kwargs
        try:
            built = build_objective(model, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"objective={name!r} with objective_kwargs={options}: {error}") from error
        if not isinstance(built, Objective):
            raise ValueError(f"objective={name!r} made a {type(built).__name__}, which is no train_loop.Objective")
        return built

    objective = processes.together(build)
    if start.folder is not None and processes.number > 1:  # one has just read them
        objective.load_state_dict(processes.tensors_from_main(objective.state_dict))
    return objective


def try_out(
    objective: Objective, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> None:
    """Try out on the run's device, at its precision, what the settings ask of the model; ValueError if it fails."""
    check_probes(objective.model, tokenizer, settings.train.probe)
    objective.to(accelerator.device)
    with accelerator.autocast():
        freeze_unused(objective)
        shapes = {"document_attention": settings.data.document_attention, "has_padding": settings.data.has_padding}
        objective.adapt(settings.train, settings.data.block_size, **shapes)


def open_folder(
    folder: RunFolder, settings: Settings, accelerator: Accelerator, checkpoints: RunCheckpoints, start: Start
) -> None:
    """Open the run's folder on the main process, and say what the run goes on from."""
    folder.open(settings)
    record_start(folder.path, accelerator, step=start.state.step)
    if start.folder is not None:
        step = "with its weights and optimizer" if start.is_branch else f"after step {start.state.step}"
        print(f"{'begun' if start.is_branch else 'resumed':<8} {start.folder}, {step}")
        for line in (*start.changed, *checkpoints.begin(start)):
            print(line)


def micro_batches_that_fit(settings: Settings, accelerator: Accelerator, objective: Objective, plan: BatchPlan) -> int:
    """Into how few micro-batches the run's updates can be cut on these devices."""
    data = settings.data
    return fewest_micro_batches(
        accelerator,
        objective,
        plan.micro_batch_size,
        length=data.block_size,
        masked_share=data.most_masked,
        has_attention_mask=(data.document_attention or data.has_padding) and not objective.takes_documents,
        num_slots=2 if settings.train.ema_decay is None else 3,
    )
