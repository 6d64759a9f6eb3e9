#!/usr/bin/env bash
# Makes .venv and installs what pyproject.toml asks for, in the versions of constraints.txt.
# Does nothing, in a moment, when neither has changed. PYTHON=... chooses the interpreter.
# Another environment with other extras: bash launch/setup.sh .venv-trackers trackers,test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
extras=${2:-test}

newest_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found: install one, or name it with PYTHON=/path/to/python3" >&2
    exit 2
}

stamp=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$stamp" ]; then
    python=$(newest_python)
    echo "setting up $venv with $("$python" --version)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".[$extras]"
    echo "$stamp" > "$venv/installed"
fi
