"""A stand-in for the Hugging Face Hub on loopback: folders as repositories, for the real, unchanged client."""

import base64
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.cards import metadata_errors

COMMIT = "0" * 39 + "1"
TOKEN = "hf_" + "".join(chr(ord("A") + (7 * i) % 26) for i in range(34))
USER = "user"


@dataclass
class Hub:
    """What the stand-in holds and has met.

    Attributes:
        repositories: ``{"datasets/user/name": folder, "models/user/name": folder}``; a branch is ``name@branch``.
        root: Where the folders of new repositories are made.
        requests: ``"METHOD path"`` of each request.
        tokens: What each request had for authorization.
        commits: ``(repository, summary, paths)`` of each commit.
        private: Repositories that were made private.
        read_only: Repositories that this user may read and not write.
        refusals: Statuses to answer with before anything else, by a part of ``"METHOD path"``; the first goes first.
            429 and 503 ask to come back at once.
        before: Called before a request is answered, by a part of ``"METHOD path"``.
        silent: Parts of ``"METHOD path"`` that are heard and never answered.
        lost: The same of what is done once without an answer: the connection breaks.
        pull_requests: Titles of the pull requests that were opened.
    """

    repositories: dict[str, Path]
    root: Path
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    commits: list[tuple[str, str, list[str]]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)
    refusals: dict[str, list[int]] = field(default_factory=dict)
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    pull_requests: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)

    def environment(self, tmp_path: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process whose Hub this is."""
        kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        told = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return kept | told | ({} if token is None else {"HF_TOKEN": token})

    def count(self, part: str) -> int:
        """How many requests had this in them."""
        return sum(part in request for request in self.requests)


@contextmanager
def serve(repositories: dict[str, Path], root: Path = Path("/nowhere")) -> Iterator[Hub]:
    """Serve these, and those that are made in ``root``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(dict(repositories), root, f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.hub.is_over.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.tokens.append(self.headers["Authorization"])

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if is_lost := {part for part in self.hub.lost if part in f"{self.command} {self.path}"}:
            self.hub.lost -= is_lost
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _is_refused(self) -> bool:
        for part, action in self.hub.before.items():
            if part in f"{self.command} {self.path}":
                action()
        if any(part in f"{self.command} {self.path}" for part in self.hub.silent):
            self.log_message("")
            self.hub.is_over.wait()
            self.close_connection = True
            return True
        for part, statuses in self.hub.refusals.items():
            if part in f"{self.command} {self.path}" and statuses:
                status = statuses.pop(0)
                asked = {"Retry-After": "0"} if status in (429, 503) else {}
                self._send(b"<html>no</html>", status, {"Content-Type": "text/html", **asked})
                return True
        return False

    def _repository(self) -> tuple[str, list[str]] | None:
        """The repository of the path, and the words after its name: of the API, or of a file."""
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        is_api = words[0] == "api"
        words = words[is_api:]
        kind = words.pop(0) if words[0] in ("models", "datasets") else "models"
        for size in (2, 1):
            name = "/".join(words[:size]).removesuffix(".git")
            if f"{kind}/{name}" in self.hub.repositories:
                return f"{kind}/{name}", words[size:]
        return None

    def _folder(self, repository: str, revision: str) -> Path | None:
        if revision in ("main", COMMIT):
            return self.hub.repositories[repository]
        return self.hub.repositories.get(f"{repository}@{revision}")

    def do_GET(self) -> None:
        if self._is_refused():
            return None
        found = self._repository()
        if found is None or (found[0] in self.hub.private and not self._is_user()):
            return self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound" if found is None else "EntryNotFound"})
        repository, words = found
        action, revision, *rest = [*words, "", ""] if len(words) < 2 else words
        if action == "discussions":
            return self._discussions(repository.partition("/")[2])
        if action == "auth-check":
            is_fine = self._is_user() and not (revision == "write" and repository in self.hub.read_only)
            return self._json({}, 200 if is_fine else 403)
        folder = self._folder(repository, revision or "main")
        if folder is None:
            return self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        if action in ("", "revision"):
            siblings = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
            name, private = repository.partition("/")[2], repository in self.hub.private
            return self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": private})
        if action == "tree":
            return self._json([_entry(p) for p in sorted(folder.iterdir())])
        file = folder / "/".join(rest)
        if action == "resolve" and file.is_file():
            return self._file(file)
        return self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _file(self, file: Path) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}
        if (wanted := self.headers["Range"]) is None:
            return self._send(content, headers=headers)
        first, last = (int(bound) for bound in wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self._send(part, 206, headers)

    def _is_user(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_refused():
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(content).hexdigest() == oid
            self.hub.uploads[oid] = content
            self._send(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self._is_refused():
            return None
        if self.path == "/api/validate-yaml":  # anyone may ask
            errors = metadata_errors(json.loads(body)["content"])
            return self._json({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)
        if not self._is_user():
            return self._send(b"{}", 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        found = self._repository()
        if found is None:
            return self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        repository, (action, *rest) = found
        if action == "info":  # /info/lfs/objects/batch; anyone may, for a pull request
            return self._lfs(json.loads(body))
        if repository in self.hub.read_only and "create_pr=1" not in self.path:
            return self._send(b"{}", 403, {"X-Error-Message": "this token may only read"})
        if action == "branch":
            return self._branch(repository, rest[0])
        if action == "preupload":
            return self._preupload(repository, rest[0], json.loads(body))
        assert action == "commit"
        return self._commit(repository, rest[0], [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> None:
        namespace = wanted["organization"] or USER
        name = f"{namespace}/{wanted['name']}"
        if namespace != USER:
            return self._send(b"{}", 403, {"X-Error-Message": f"You don't have the rights to create under {namespace}"})
        is_new = f"models/{name}" not in self.hub.repositories
        if is_new:
            folder = self.hub.root / name
            folder.mkdir(parents=True)
            self.hub.repositories[f"models/{name}"] = folder
            if wanted.get("visibility") == "private":
                self.hub.private.add(f"models/{name}")
        return self._json({"url": f"{self.hub.endpoint}/{name}"}, 200 if is_new else 409)

    def _branch(self, repository: str, branch: str) -> None:
        if is_new := f"{repository}@{branch}" not in self.hub.repositories:
            folder = self.hub.repositories[repository]
            copy = folder.with_name(f"{folder.name}@{branch.replace('/', '-')}")
            self.hub.repositories[f"{repository}@{branch}"] = Path(shutil.copytree(folder, copy))
        self._json({}, 200 if is_new else 409)

    def _preupload(self, repository: str, revision: str, wanted: dict[str, Any]) -> None:
        if (folder := self._folder(repository, revision)) is None:
            return self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        files = []
        for path in (file["path"] for file in wanted["files"]):
            is_large = path.endswith((".safetensors", "tokenizer.json"))
            content = (folder / path).read_bytes() if (folder / path).is_file() else None
            git_blob = None if content is None else _etag(b"blob %d\0" % len(content) + content)
            oid = git_blob if content is None or not is_large else hashlib.sha256(content).hexdigest()
            mode = "lfs" if is_large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._json({"files": files})

    def _lfs(self, wanted: dict[str, Any]) -> None:
        def answer(item: dict[str, Any]) -> dict[str, Any]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}
            return item | ({} if item["oid"] in self.hub.uploads else {"actions": upload})

        self._json({"transfer": "basic", "objects": [answer(item) for item in wanted["objects"]]})

    def _commit(self, repository: str, revision: str, lines: list[dict[str, Any]]) -> None:
        is_request = parse_qs(urlsplit(self.path).query).get("create_pr") == ["1"]
        folder = self.hub.repositories[repository]
        if is_request:
            self.hub.pull_requests.append(lines[0]["value"]["summary"])
            number = len(self.hub.pull_requests)
            folder = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}@pr-{number}")))
            self.hub.repositories[f"{repository}@refs/pr/{number}"] = folder
        elif (branch := self._folder(repository, revision)) is not None:
            folder = branch
        paths = []
        for value in (line["value"] for line in lines if line["key"] in ("file", "lfsFile")):
            content = base64.b64decode(value["content"]) if "content" in value else self.hub.uploads[value["oid"]]
            (folder / value["path"]).write_bytes(content)
            paths.append(value["path"])
        self.hub.commits.append((repository, lines[0]["value"]["summary"], paths))
        address = f"{self.hub.endpoint}/{repository.removeprefix('models/')}"
        discussion = f"{address}/discussions/{number}" if is_request else None
        self._json({"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT, "pullRequestUrl": discussion})

    def _discussions(self, name: str) -> None:
        common = {"createdAt": "2026-01-01T00:00:00.000Z", "status": "open", "isPullRequest": True}
        common |= {"author": {"name": USER}, "repo": {"name": name, "type": "model"}}
        found = [{"num": i, "title": title} | common for i, title in enumerate(self.hub.pull_requests, 1)]
        self._json({"discussions": found, "count": len(found), "start": 0})


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(content), "oid": _etag(content)}
