"""What the processes of a run, and a checkpoint and the run that goes on from it, must have in common."""

import hashlib
import platform
from pathlib import Path

import torch
from torch import nn

from data.blocks.tokenization import tokenizer_fingerprint
from data.functions import OwnFunction
from launch.run.corpus import Corpus
from launch.run.settings import Settings
from train_loop.plan import BatchPlan
from train_loop.processes import AgreedError, Processes
from train_loop.run_files import checkpoints


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
    """Check that no machine has a newer checkpoint of the run than the main process's, whose place may change.

    Raises:
        AgreedError: One has; the error names it.
    """
    newest = max((folder.name for folder in checkpoints(output_dir)), default="")
    (main, mains), *others = processes.gather((platform.node(), newest))
    for machine, name in others:
        if name > mains:
            raise AgreedError(
                f"resume_from_checkpoint=latest: {machine} has {name} in {output_dir}, and {main}, where process 0 "
                f"reads them, has {mains or 'no checkpoint'}: copy it there, or use a folder that all machines share"
            )
