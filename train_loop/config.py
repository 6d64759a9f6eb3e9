"""Settings of the training half: the model, its training, and the outputs."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

_TRACKERS = ("tensorboard", "wandb", "trackio")
AUTO_PROBES = ("auto",)
OVERRIDDEN_BY = {"num_train_epochs": "max_steps", "dataset": "mixture"}  # where both are set, the second counts


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model by name, or one from scratch by type."""

    model_name_or_path: Annotated[str | None, "of the machine"] = None
    """Hub id or folder of the model to go on training."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    model_type: str | None = None
    """Architecture of a model from scratch, by transformers' name: roberta, bert, modernbert, ..."""
    model_config: dict[str, Any] = field(default_factory=dict)
    """Changes to the configuration of a model from scratch: hidden_size=256 num_hidden_layers=4."""
    attn_implementation: str | None = None
    """Attention by transformers' name: sdpa, eager, flash_attention_2, ... Default: transformers' choice."""
    gradient_checkpointing: bool = False
    """Compute the layers' inner activations again in the backward pass: less memory, about a third more time."""
    resize_token_embeddings: bool = False
    """Add embeddings to a loaded model when the tokenizer has more tokens than it."""

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise ValueError(
                "give one of model_name_or_path (a trained model) and model_type (a model from scratch), not "
                + ("both; a recipe's model from scratch goes by --model_type none" if self.model_type else "none")
            )
        if self.model_config and self.model_type is None:
            raise ValueError(
                f"model_config={self.model_config} changes a model from scratch: it needs model_type, not "
                "model_name_or_path; a recipe's goes by --model_config none"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Masked batches to a trained model. Raises ValueError for a value that cannot work.

    The marks "identity" and "of the machine" are those of `data.config.DataConfig`.
    """

    output_dir: Annotated[str, "of the machine"] = "runs/mlm"
    """The run's folder: settings, metrics, checkpoints and the final model."""
    overwrite_output_dir: Annotated[bool, "of the machine"] = False
    """Delete the run that output_dir holds, and start anew."""
    resume_from_checkpoint: Annotated[str | None, "of the machine"] = None
    """A checkpoint folder, or 'latest': the newest valid one in output_dir, or the start if there is none."""
    start_from: Annotated[str | None, "of the machine"] = None
    """Begin a new run with the weights and the optimizer's state of another run: one of its checkpoints, or its folder
    for the newest. Text, batch, length and schedule may be others; with the same seed, the order begins again."""
    seed: Annotated[int, "identity"] = 0
    """Seed of initialisation, order, masks and dropout."""
    eval_seed: int = 0
    """Seed of the evaluation's masks, which are the same at every evaluation."""

    num_train_epochs: float = 3.0
    """Passes over the training blocks."""
    max_steps: int | None = None
    """Number of updates; overrides num_train_epochs."""
    global_batch_size: Annotated[int | None, "identity"] = None
    """Blocks per update, over all processes. Default: 32, unless gradient_accumulation_steps is given."""
    initial_batch_size: Annotated[int | None, "identity"] = None
    """Blocks of the first update, if the batch is to grow: evenly, to global_batch_size, in batch_warmup_steps."""
    batch_warmup_steps: float = 0
    """Updates in which the batch grows; a value below 1 is a fraction of max_steps. The learning rate is not scaled."""
    per_device_train_batch_size: int | Literal["auto"] | None = None
    """Blocks that a process takes at once; auto: as many as fit in memory, tried out at the start. Changes no update
    but for dropout's draws. Default: its whole share of the global batch."""
    gradient_accumulation_steps: int | None = None
    """Micro-batches per update; instead of global_batch_size, never beside it."""
    per_device_eval_batch_size: int = 64
    """Blocks that a process evaluates at once; changes no result."""

    objective: Annotated[str, "identity"] = "masked_lm"
    """What is trained for: masked_lm, replaced_tokens, or path/to/file.py:Name of a train_loop.objective.Objective."""
    objective_kwargs: Annotated[dict[str, Any], "identity"] = field(default_factory=dict)
    """Options of the objective: name=value name=value."""
    optimizer: Annotated[str, "identity"] = "adamw"
    """adamw; muon, on the hidden matrices, with AdamW on all other parameters; or path/to/file.py:name."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    weight_decay: float = 0.01
    """Decoupled weight decay; none on norms and biases."""
    adam_beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    adam_beta2: float = 0.999
    """AdamW's decay rate of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    ema_decay: Annotated[float | None, "identity"] = None
    """Average the weights, 0.999 over about 1,000 updates; the average is evaluated, and becomes the final model."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm; 0 does not clip."""
    lr_scheduler_type: str = "linear"
    """Schedule by transformers' name: linear, cosine, constant, ...; or path/to/file.py:name."""
    warmup_steps: float = 0
    """Updates of warmup; a value below 1 is a fraction of all updates."""
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the schedule: num_decay_steps=0.2 decay_type=linear; numbers of updates as those of warmup_steps."""

    masked_last_layer: bool = True
    """Compute the last layer's feed-forward at the masked positions only, where the model allows it: faster, with the
    same loss and gradients."""
    pad_vocabulary_to: int = 64
    """On a GPU, compute the logits as if the vocabulary were a multiple of this; changes no value and no shape."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is not finite, which changes no weight: stop at the next row of the log, or go
    on without that update."""
    max_skipped_steps: int = 10
    """With on_nonfinite=skip, stop after all when more updates than this were skipped."""

    logging_steps: int = 10
    """Updates between two training rows of metrics.jsonl."""
    eval_steps: int | None = None
    """Updates between evaluations. Default: each epoch, or a tenth of the run when streaming. The end is always
    evaluated."""
    eval_on_start: bool = False
    """Evaluate once before the first update."""
    save_steps: int | None = None
    """Updates between checkpoints. Default: at each evaluation."""
    save_when_lost: bool = False
    """Save once more when another process is lost, where the main process is left; not with shard or streaming."""
    save_total_limit: int | None = 2
    """Checkpoints to keep, the best one not counted. 'none' keeps all."""
    on_save_error: Literal["stop", "warn"] = "stop"
    """What to do when a checkpoint cannot be written, on a full disk for example: end the run, or say so and go on."""
    load_best_model_at_end: bool = False
    """Make the model with the lowest evaluation loss the final one."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a lower loss; the final model is then the best one."""
    probe: tuple[str, ...] = ()
    """Sentences with one <mask>, filled at each evaluation, to watch the model learn; or auto: sentences of the
    held-out text."""
    eval_suite: Annotated[str | None, "of the machine"] = None
    """A YAML file of minimal pairs and labelled texts to ask of the model at evaluations; see launch/README.md."""
    report_to: str | None = None
    """Trackers beside metrics.jsonl, separated by commas: tensorboard, wandb, trackio."""
    project: str = "mlm-train-loop"
    """The trackers' project."""
    process_timeout: float = 300.0
    """Seconds that a process waits for another one's part of an update before it gives the run up. Preparing the text
    and saving may take longer."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Compute in bf16, or in fp16 on GPUs without it; the weights stay in fp32. Default: as the launcher says, else
    no."""
    tf32: bool = True
    """Let fp32 matrix products use TF32 on GPUs that have it: several times faster, 10 bits of mantissa."""
    torch_compile: bool = False
    """Compile the encoder's layers in training, in a minute. On two cores, 1.12x for ModernBERT, 0.98x for RoBERTa."""
    shard: bool = False
    """Keep a share of the weights, gradients and optimizer's state on each process (FSDP2), not a copy on each."""
    replicas: int = 1
    """With shard, the number of whole copies: processes shard within a group of their number / replicas (HSDP)."""
    bf16_gradients: bool = False
    """Let processes exchange gradients in bf16: half the traffic, 8 bits of mantissa."""
    profile_steps: str | None = None
    """Updates to profile, first:last, from 1, for example 10:15; the trace is in the run's folder."""
    cpu_threads: Annotated[int | None, "of the machine"] = None
    """Threads of a process on CPU. Default: the cores, shared out."""

    push_to_hub: bool = False
    """Push the model to the Hub. Login or HF_TOKEN, and the repository, are checked before anything is trained."""
    hub_model_id: str | None = None
    """Repository of the Hub, user/name; made if there is none."""
    hub_strategy: Literal["end", "every_save"] = "end"
    """When to push: the final model, or each checkpoint's too, in the background."""
    hub_private_repo: bool | None = None
    """Whether the repository must be private. Default: as the account has it."""
    hub_license: str | None = None
    """Licence of the model for its card, by the Hub's name: apache-2.0, mit, cc-by-sa-4.0, ..."""

    def __post_init__(self) -> None:
        self._check_batch()
        for name in (
            "max_steps", "global_batch_size", "initial_batch_size", "per_device_train_batch_size", "replicas",
            "gradient_accumulation_steps", "per_device_eval_batch_size", "logging_steps", "eval_steps", "save_steps",
            "save_total_limit", "early_stopping_patience", "cpu_threads", "max_skipped_steps", "pad_vocabulary_to",
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value != "auto" and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("num_train_epochs", "process_timeout", "learning_rate", "muon_learning_rate", "adam_epsilon"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}={value} must be a positive number")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps", "batch_warmup_steps"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}={value} must be 0 or more")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ValueError(f"{name}={value} must be in [0, 1)")
        self._check_texts()
        if self.shard and (self.per_device_train_batch_size == "auto" or self.bf16_gradients):
            raise ValueError(
                "shard=true goes neither with per_device_train_batch_size=auto nor with bf16_gradients=true"
            )
        if self.replicas > 1 and not self.shard:
            raise ValueError(f"replicas={self.replicas} is of a sharded run: add --shard true")

    def _check_texts(self) -> None:
        if self.profile_steps is not None and self.profiled is None:
            raise ValueError(f"profile_steps={self.profile_steps!r} must be first:last, for example 10:15")
        for name in self.trackers:
            if name not in _TRACKERS:
                raise ValueError(f"report_to={self.report_to!r}: the trackers are {', '.join(_TRACKERS)}")
        for probe in self.probe if self.probe != AUTO_PROBES else ():
            if probe.count("<mask>") != 1:
                raise ValueError(f"probe {probe!r} must have one <mask>, where a word is missing")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise ValueError("overwrite_output_dir deletes the run that resume_from_checkpoint goes on with: give one")
        if self.start_from and Path(self.start_from).resolve().is_relative_to(Path(self.output_dir).resolve()):
            raise ValueError(f"start_from={self.start_from!r} is in output_dir: a new run needs a folder of its own")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub does not say where to: add --hub_model_id user/name")

    def _check_batch(self) -> None:
        grows = (self.initial_batch_size is not None, self.batch_warmup_steps > 0)
        if any(grows) and not (all(grows) and self.max_steps):
            raise ValueError("a batch that grows needs initial_batch_size, batch_warmup_steps and max_steps: give all")
        if self.global_batch_size is not None and self.gradient_accumulation_steps is not None:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} and gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} say the same thing twice: give one of them"
            )
        if self.per_device_train_batch_size == "auto" and self.gradient_accumulation_steps is not None:
            raise ValueError(
                f"per_device_train_batch_size=auto finds how to cut the global batch, and gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} says it: give global_batch_size instead"
            )

    @property
    def profiled(self) -> tuple[int, int] | None:
        """``profile_steps`` as two numbers; None where there is none, or it is not right."""
        first, _, last = (self.profile_steps or "").partition(":")
        is_right = first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)
        return (int(first), int(last)) if is_right else None

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in ``report_to``."""
        return tuple(name.strip() for name in (self.report_to or "").split(",") if name.strip())

    @property
    def keeps_best(self) -> bool:
        """Whether the final model is the best one rather than the last one."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None
