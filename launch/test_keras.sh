#!/usr/bin/env bash
# The tests against KerasHub, in an environment of their own, on both backends: bash launch/test_keras.sh
# Further words go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh .venv-keras keras,test
export PATH="$PWD/.venv-keras/bin:$PATH"

for backend in tensorflow torch; do
    echo "Keras on $backend"
    KERAS_BACKEND=$backend pytest -m keras tests/keras "$@"
done
