#!/usr/bin/env bash
# From a fresh clone to a trained model that fills masks: bash launch/quickstart.sh
# Further words go to the training: bash launch/quickstart.sh --max_steps 300
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

accelerate launch --config_file accelerate_config.yaml -m launch.train \
    --recipe quickstart --output_dir runs/quickstart --overwrite_output_dir "$@"
echo
mlm fill --model runs/quickstart/model --top_k 3 \
    "The default <mask> is None." \
    "A <mask> is a sequence of characters." \
    "If the file does not exist, an <mask> is raised."
cat <<'END'

runs/quickstart/model          opened by AutoModelForMaskedLM.from_pretrained
runs/quickstart/report.html    curves, settings and probes; open it in a browser
runs/quickstart/metrics.jsonl  every loss, perplexity and probe
runs/quickstart/config.yaml    every setting of this run
launch/recipes/                other recipes; your own text is in README.md
END
