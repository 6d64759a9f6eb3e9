"""Pushes a model's folder to the Hub in one commit, and retries while the Hub is busy or cannot be reached.

huggingface_hub takes the token from the login or from ``HF_TOKEN`` at each
request. No variable, file or message of this project holds it.
"""

import contextlib
import json
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_session, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError

from train_loop import run_files
from train_loop.sharing.model_card import CARD, THIS_MODEL, build_card

logger = logging.getLogger(__name__)
T = TypeVar("T")

_TEMPORARY = {408, 429, 500, 502, 503, 504}  # HTTP statuses
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
_LONGEST_WAIT = 300.0  # seconds; the Hub counts requests in windows of five minutes
_LIMITS = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}  # seconds
_OF_THE_RUN = ("optimizer.safetensors", "data.safetensors", "state.json", "manifest.json")  # files of a checkpoint


class PublishError(Exception):
    """The Hub refused a request or did not answer; the message says why, in one line."""


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub to which a model is pushed."""

    repo_id: str  # user/name
    private: bool | None = None  # whether it must be; None: a new repository follows the account's default
    revision: str | None = None  # the branch to commit to, created if it does not exist; None: main
    create_pr: bool = False  # open a pull request instead of committing to the branch

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo_id):
            raise ValueError(f"repo_id={self.repo_id!r} must be user/name, of letters, digits, '-', '_' and '.'")
        if self.create_pr and self.revision is not None:
            raise ValueError(f"create_pr needs main, and revision={self.revision!r} names a branch: give one")


def limit_waiting() -> None:
    """Give every request of this process to the Hub a timeout, where huggingface_hub sets none.

    Call it once, before the first request: it replaces the client that all requests share.
    """
    usual = get_session()
    hooks = {"request": [*usual.event_hooks["request"], _limit]}
    set_client_factory(lambda: type(usual)(event_hooks=hooks, follow_redirects=True, timeout=None))


def _limit(request: Any) -> None:
    given = request.extensions.get("timeout", {})  # its values are None where the caller sets no timeout
    request.extensions["timeout"] = {name: given.get(name) or limit for name, limit in _LIMITS.items()}


def open_repository(repository: Repository, waits: Sequence[float] = _WAITS) -> None:
    """Create the repository if it does not exist, and check that this login may write to it.

    Raises PublishError if there is no token, the Hub cannot be reached, or it does not allow this.
    """
    if get_token() is None:
        raise PublishError("there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    repo_id = repository.repo_id

    def open_it() -> None:
        api.create_repo(repo_id, private=repository.private, exist_ok=True)
        api.auth_check(repo_id, write=not repository.create_pr)
        if repository.private and not api.repo_info(repo_id).private:
            raise PublishError(f"{repo_id} exists already and is public: make it private on the Hub, or choose another")
        if repository.revision is not None:
            api.create_branch(repo_id, branch=repository.revision, exist_ok=True)

    _persist(open_it, waits)


def check_licence(name: str, waits: Sequence[float] = _WAITS) -> None:
    """Raise PublishError if the Hub does not know a licence, whose card it would refuse, or cannot be reached."""

    def check() -> None:
        try:
            ModelCard(f"---\nlicense: {name}\n---\n").validate()
        except ValueError as error:
            raise PublishError(
                f"the Hub knows no licence {name!r}: it takes those of https://hf.co/docs/hub/repositories-licenses"
            ) from error

    _persist(check, waits)


def push_model(model: Path, repository: Repository, *, message: str) -> str:
    """Push a model's files and its card as one commit; return the address of the commit or pull request.

    A retry does not upload again what is on the Hub already, and finds a commit whose answer was lost. Raises
    PublishError if the model was not pushed, after all retries.
    """
    api = HfApi()
    repo_id, card_file = repository.repo_id, model / CARD

    def pull_requests() -> set[str]:
        found = api.get_repo_discussions(repo_id, discussion_type="pull_request")
        return {request.url for request in found if request.title == message}

    earlier = _persist(pull_requests) if repository.create_pr else set()

    def push() -> str:
        if repository.create_pr and (created := pull_requests() - earlier):
            return created.pop()
        card = card_file.read_text(encoding="utf-8") if card_file.is_file() else build_card(model, repo_id)
        card = card.replace(THIS_MODEL, repo_id)  # the card may be older than the id
        files = [p for p in sorted(model.iterdir()) if p.is_file() and p.name not in {*_OF_THE_RUN, CARD}]
        additions = [CommitOperationAdd(path.name, str(path)) for path in files]
        commit = api.create_commit(
            repo_id,
            [*additions, CommitOperationAdd(CARD, card.encode())],
            commit_message=message,
            revision=repository.revision,
            create_pr=repository.create_pr,
        )
        return commit.pr_url or commit.commit_url

    return _persist(push)


class BackgroundPush:
    """Pushes the model of each checkpoint while training goes on, one at a time.

    Training never waits for the Hub: while one push runs, only the newest of the other checkpoints waits. A push uses
    links to the checkpoint's files, so the checkpoint may be deleted meanwhile.
    """

    def __init__(self, output_dir: Path, repository: Repository) -> None:
        self._folder = output_dir / run_files.HUB
        self._repository = repository
        self._waiting: queue.Queue[Path | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._work, name="push", daemon=True)  # does not hold up an exit
        self._thread.start()

    def push(self, checkpoint: Path) -> None:
        """Push the model of a checkpoint soon; a failure is a warning, because the next push brings all files."""
        staged = self._folder / checkpoint.name
        try:
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(checkpoint, staged, copy_function=_link, ignore=shutil.ignore_patterns(*_OF_THE_RUN))
        except OSError as error:
            logger.warning("%s was not pushed (%s); training goes on", checkpoint, error)
            return
        self._replace_waiting(staged)

    def finish(self) -> None:
        """Wait for the push that runs, and drop the one that waits, because the final model follows."""
        self._replace_waiting(None)
        self._thread.join()
        self.abandon()

    def abandon(self) -> None:
        """Remove the files that were to be pushed, for a process that ends now."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _replace_waiting(self, staged: Path | None) -> None:
        with contextlib.suppress(queue.Empty):
            if (replaced := self._waiting.get_nowait()) is not None:
                shutil.rmtree(replaced, ignore_errors=True)
        self._waiting.put(staged)

    def _work(self) -> None:
        while (staged := self._waiting.get()) is not None:
            try:
                push_model(staged, self._repository, message=f"Model after {staged.name}")
            except PublishError as error:
                logger.warning("%s was not pushed (%s); training goes on", staged.name, error)
            shutil.rmtree(staged, ignore_errors=True)


def _link(path: str, target: str) -> None:
    try:
        os.link(path, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(path, target)


def _persist(action: Callable[[], T], waits: Sequence[float] = _WAITS) -> T:
    """Call ``action``, and call it again after each wait while it fails for a temporary reason.

    Raises PublishError if it failed for another reason, or after the last wait too.
    """
    num_retries = 0
    while True:
        try:
            return action()
        except PublishError:
            raise
        except Exception as error:  # the client, its HTTP library and its uploaders have no common class of errors
            cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
            if num_retries == len(waits) or not _is_temporary(cause):
                raise PublishError(_reason(cause)) from error
            asked = cause.response.headers.get("Retry-After", "") if isinstance(cause, HfHubHTTPError) else ""
            seconds = min(float(asked), _LONGEST_WAIT) if asked.isdigit() else waits[num_retries]
            num_retries += 1
            logger.warning("%s; trying again in %.0f s (%d of %d)", _reason(cause), seconds, num_retries, len(waits))
        time.sleep(seconds)


def _is_temporary(error: BaseException) -> bool:
    """Whether the Hub is busy or cannot be reached, rather than refusing."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TEMPORARY
    is_transport = any(family.__name__ == "TransportError" for family in type(error).__mro__)  # httpx, or its successor
    return is_transport or isinstance(error, json.JSONDecodeError)  # a gateway's page instead of the Hub's answer


def _reason(error: BaseException) -> str:
    """The reason of a failure on one line, without addresses and request ids."""
    kind = type(error).__name__
    if isinstance(error, HfHubHTTPError):
        said = f": {error.server_message}" if error.server_message else ""
        reason = f"the Hub answered {error.response.status_code} {error.response.reason_phrase}{said}"
    elif isinstance(error, json.JSONDecodeError):
        reason = "the Hub's answer was cut short, or is an error page"
    elif kind in ("ReadTimeout", "WriteTimeout"):
        reason = f"the Hub did not answer in time ({kind})"
    elif _is_temporary(error):
        reason = f"the Hub could not be reached ({kind})"
    else:
        reason = f"{kind}: {error}"
    return " ".join(reason.split())
