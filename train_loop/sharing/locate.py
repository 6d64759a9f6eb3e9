"""Where a model is: in a run's folder, in the cache, or on the Hub, whose client would retry for half a minute."""

import logging
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

from train_loop import run_files
from train_loop.run_files import checkpoints

logger = logging.getLogger(__name__)


def model_folder(name: str) -> str:
    """The folder of the model of a run or its last phase: the final one, or the newest checkpoint. Other names stay."""
    run = Path(name)
    if (run / run_files.MODEL).is_dir():
        return str(run / run_files.MODEL)
    for phase in sorted(run.glob(f"{run_files.PHASE}[0-9]*"), key=lambda p: (len(p.name), p.name), reverse=True):
        if (found := model_folder(str(phase))) != str(phase):
            return found
    if not (saved := checkpoints(run)):
        return name
    logger.warning("%s has no final model yet: %s is used", name, saved[-1])
    return str(saved[-1])


def require_hub(name: str, repo_type: str = "model") -> None:
    """Raise ValueError if the Hub does not answer and a name can only be the id of a repository outside the cache."""
    if constants.HF_HUB_OFFLINE or Path(name).expanduser().exists():
        return
    try:
        validate_repo_id(name)
    except ValueError:  # a path that does not exist
        return
    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=repo_type)
    if cached.exists():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # its class depends on the HTTP library
        problem = f"{constants.ENDPOINT} does not answer ({type(error).__name__}): local files and the cache work"
        raise ValueError(f"{repo_type} {name!r} is neither a local path nor in the cache, and {problem}") from error
