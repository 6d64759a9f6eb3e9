#!/usr/bin/env bash
# Lint, types and the quick tests: bash launch/test.sh. Further words go to pytest: bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy
if [ $# -eq 0 ]; then set -- -m "not slow" -n 3 --dist worksteal; fi  # most of it is starting processes
pytest "$@"
