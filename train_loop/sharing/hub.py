"""A model's folder to the Hub: one commit, tried again while the Hub is busy or out of reach.

The token is the affair of huggingface_hub, which takes it from the login or
from ``HF_TOKEN`` at each request; it is in no variable, file or message of this
project.
"""

import json
import logging
import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_session, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError

from train_loop import run_files
from train_loop.sharing.model_card import CARD, THIS_MODEL, build_card

logger = logging.getLogger(__name__)
T = TypeVar("T")

_PASSING = {408, 429, 500, 502, 503, 504}
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_LONGEST_WAIT = 300.0  # the Hub counts requests in windows of five minutes
_LIMITS = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}  # seconds
_OF_THE_RUN = {"optimizer.safetensors", "data.safetensors", "state.json", "manifest.json"}  # in a checkpoint


class PublishError(Exception):
    """The Hub did not take it; the message says why, in one line."""


@dataclass(frozen=True)
class Repository:
    """Where a model goes to.

    Attributes:
        repo_id: ``user/name``.
        private: Whether it must be private; None leaves that to the account, and an old repository as it is.
        revision: Branch to commit to, made where it does not exist; None is main.
        create_pr: Open a pull request instead of committing.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo_id):
            raise ValueError(f"repo_id={self.repo_id!r} must be user/name, of letters, digits, '-', '_' and '.'")
        if self.create_pr and self.revision is not None:
            raise ValueError(f"create_pr is made against main, and revision={self.revision!r} names a branch: give one")


def limit_waiting() -> None:
    """Let no request of this process to the Hub wait for ever, which it does where huggingface_hub sets no limit.

    To be called once, before the first request: it replaces the client that all of them share.
    """
    usual = get_session()
    hooks = {"request": [*usual.event_hooks["request"], _limit]}
    set_client_factory(lambda: type(usual)(event_hooks=hooks, follow_redirects=True, timeout=None))


def _limit(request: Any) -> None:
    given = request.extensions.get("timeout", {})  # of None where a caller asks for no limit, as `model_info` does
    request.extensions["timeout"] = {name: given.get(name) or limit for name, limit in _LIMITS.items()}


def open_repository(repository: Repository, waits: Sequence[float] = _WAITS) -> None:
    """Create the repository where there is none, and make sure that this login may write to it.

    Raises:
        PublishError: There is no token, the Hub is out of reach, or it does not allow that.
    """
    if get_token() is None:
        raise PublishError("there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    repo_id = repository.repo_id

    def open_it() -> None:
        api.create_repo(repo_id, private=repository.private, exist_ok=True)
        api.auth_check(repo_id, write=not repository.create_pr)
        if repository.private and not api.repo_info(repo_id).private:
            raise PublishError(f"{repo_id} is there already, and public: make it private on the Hub, or choose another")
        if repository.revision is not None:
            api.create_branch(repo_id, branch=repository.revision, exist_ok=True)

    _persist(open_it, waits)


def check_licence(name: str, waits: Sequence[float] = _WAITS) -> None:
    """Ask the Hub whether it knows a licence, which a card that it takes must name by its word.

    Raises:
        PublishError: It does not, or is out of reach.
    """

    def check() -> None:
        try:
            ModelCard(f"---\nlicense: {name}\n---\n").validate()
        except ValueError as error:
            raise PublishError(
                f"the Hub knows no licence {name!r}: it takes those of https://hf.co/docs/hub/repositories-licenses"
            ) from error

    _persist(check, waits)


def push_model(model: Path, repository: Repository, *, message: str, waits: Sequence[float] = _WAITS) -> str:
    """Push the files of a model, its card too, as one commit; return the address of the commit or pull request.

    A second try finds what the first has uploaded, or even committed before its answer was lost. What is on the Hub
    already is not uploaded again.

    Raises:
        PublishError: It was not pushed, after all that could be tried.
    """

    earlier: set[str] | None = None

    def push() -> str:
        nonlocal earlier
        if repository.create_pr:
            requests = _pull_requests(repository.repo_id, message)
            earlier = requests if earlier is None else earlier
            if made := requests - earlier:
                return made.pop()
        card = _card_for(model, repository.repo_id)
        files = [p for p in sorted(model.iterdir()) if p.is_file() and p.name not in {*_OF_THE_RUN, CARD}]
        additions = [CommitOperationAdd(path.name, str(path)) for path in files]
        commit = HfApi().create_commit(
            repository.repo_id,
            [*additions, CommitOperationAdd(CARD, card.encode())],
            commit_message=message,
            revision=repository.revision,
            create_pr=repository.create_pr,
        )
        return commit.pr_url or commit.commit_url

    return _persist(push, waits)


def _pull_requests(repo_id: str, title: str) -> set[str]:
    """The addresses of those with a title."""
    found = HfApi().get_repo_discussions(repo_id, discussion_type="pull_request")
    return {request.url for request in found if request.title == title}


def publish_command(model: Path, repository: Repository) -> str:
    """The command that pushes this model again."""
    words = ["python", "-m", "launch.publish", "--model", str(model), "--repo_id", repository.repo_id]
    words += ["--private"] * bool(repository.private) + ["--create_pr"] * repository.create_pr
    if repository.revision is not None:
        words += ["--revision", repository.revision]
    return shlex.join(words)


class BackgroundPush:
    """Pushes the model of each checkpoint while training goes on, one at a time.

    While one is under way the newest of the others waits, and replaces an older
    one that still did: training never waits for the Hub. What is pushed are links
    to the checkpoint's files, so that it may be deleted meanwhile.
    """

    def __init__(self, output_dir: Path, repository: Repository) -> None:
        self._folder = output_dir / run_files.HUB
        self._repository = repository
        self._lock = threading.Lock()
        self._waiting: Path | None = None
        self._thread: threading.Thread | None = None

    def push(self, checkpoint: Path) -> None:
        """Push the model of a checkpoint, some time soon; a failure is a warning, for the next one brings all of it."""
        try:
            staged = self._stage(checkpoint)
        except OSError as error:
            logger.warning("%s was not pushed (%s); training goes on", checkpoint, error)
            return
        with self._lock:
            replaced, self._waiting = self._waiting, staged
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="push", daemon=True)  # not waited for at a stop
                self._thread.start()
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)

    def finish(self) -> None:
        """Wait for the push that is under way, and drop the one that waits: the final model follows."""
        with self._lock:
            self._waiting, thread = None, self._thread
        if thread is not None:
            thread.join()
        self.abandon()

    def abandon(self) -> None:
        """Remove what was to be pushed, for a process that ends now."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stage(self, checkpoint: Path) -> Path:
        staged = self._folder / checkpoint.name
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for path in checkpoint.iterdir():
            if path.name not in _OF_THE_RUN:
                _link(path, staged / path.name)
        return staged

    def _work(self) -> None:
        while True:
            with self._lock:
                staged, self._waiting = self._waiting, None
                if staged is None:
                    self._thread = None
                    return
            try:
                push_model(staged, self._repository, message=f"Model after {staged.name}")
            except PublishError as error:
                logger.warning("%s was not pushed (%s); training goes on", staged.name, error)
            shutil.rmtree(staged, ignore_errors=True)


def _card_for(model: Path, repo_id: str) -> str:
    """The card in the folder, with the id that it did not know when it was written; a new one if there is none."""
    path = model / CARD
    if path.is_file():
        return path.read_text(encoding="utf-8").replace(THIS_MODEL, repo_id)
    return build_card(model, repo_id)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # of a file system without hard links
        shutil.copy2(path, target)


def _persist(action: Callable[[], T], waits: Sequence[float]) -> T:
    """Call it, again after each of the waits as long as what went wrong may pass.

    Raises:
        PublishError: It went wrong for good.
    """
    for i, wait in enumerate((*waits, None)):
        try:
            return action()
        except PublishError:
            raise
        except Exception as error:  # of the client, its HTTP library and its uploaders: each has a family of its own
            cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
            if wait is None or not _may_pass(cause):
                raise PublishError(_reason(cause)) from error
            seconds = _asked_for(cause, wait)
            logger.warning("%s; trying again in %.0f s (%d of %d)", _reason(cause), seconds, i + 1, len(waits))
        time.sleep(seconds)
    raise AssertionError


def _may_pass(error: BaseException) -> bool:
    """Whether the Hub is busy or out of reach, rather than against it."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    is_of_http = any(family.__name__ == "TransportError" for family in type(error).__mro__)  # httpx or its successor
    return is_of_http or isinstance(error, json.JSONDecodeError)  # a gateway's page instead of the Hub's answer


def _asked_for(error: BaseException, wait: float) -> float:
    """Seconds that the Hub asks to wait, or ``wait`` where it asks for nothing."""
    headers = error.response.headers if isinstance(error, HfHubHTTPError) else {}
    asked = headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_WAIT) if asked.isdigit() else wait


def _reason(error: BaseException) -> str:
    """One line, without addresses and request ids."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        phrase = next((s.phrase for s in HTTPStatus if s == status), "")
        said = f": {error.server_message}" if error.server_message else ""
        return " ".join(f"the Hub answered {status} {phrase}{said}".split())
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer was cut short, or is an error page"
    if type(error).__name__ in ("ReadTimeout", "WriteTimeout"):
        return f"the Hub did not answer in time ({type(error).__name__})"
    if _may_pass(error):
        return f"the Hub could not be reached ({type(error).__name__})"
    return " ".join(f"{type(error).__name__}: {error}".split())
