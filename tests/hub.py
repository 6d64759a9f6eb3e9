"""A stand-in for the Hugging Face Hub on loopback: folders as repositories, for the real, unchanged client."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve ``{"datasets/user/name": folder, "models/user/name": folder}``; yield the endpoint and the requests met."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            requests.append(f"{self.command} {self.path}")

        def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, value: object) -> None:
            self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            for repository, folder in repositories.items():
                kind, name = repository.split("/", 1)
                api = f"api/{kind}/{name}"
                files = f"{name}/resolve/" if kind == "models" else f"datasets/{name}/resolve/"
                for prefix in (f"{api}/revision/", f"{api}/tree/", files):
                    revision = path.removeprefix(prefix).partition("/")[0]
                    if path.startswith(prefix) and revision not in ("main", COMMIT):
                        return self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
                if path == api or path.startswith(f"{api}/revision/"):
                    siblings = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
                    return self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
                if path.startswith(f"{api}/tree/"):
                    return self._json([_entry(p) for p in sorted(folder.iterdir())])
                if path.startswith(files):
                    file = folder / path.removeprefix(files).partition("/")[2]
                    if file.is_file():
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(content), "oid": _etag(content)}
