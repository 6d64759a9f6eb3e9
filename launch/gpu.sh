#!/usr/bin/env bash
# What only a GPU can show, in one table at the end of nine minutes at most: bash launch/gpu.sh [FOLDER] [DATASET]
# Each check has a time limit and needs no other one. Their output is in FOLDER (runs/gpu), the table in FOLDER/table.md.
# Without a GPU, the same commands run in tiny sizes, so that they work the first time.
# It takes the environment of launch/setup.sh, or where there is none that of python3.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-runs/gpu}
text=(--dataset "${2:-python-docs}")
[ -x .venv/bin/python ] && export PATH="$PWD/.venv/bin:$PATH"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$folder"
limit=530 patience=1

if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    half=bf16 fp16=fp16
    roberta=(--batch 64) modernbert=(--model_type modernbert --batch 32) long=(512 8192)
    lengths=(128 1024 8192) updates=(--steps 10 --warm_up 5 --repeats 1)
else
    export ACCELERATE_USE_CPU=true
    half=no fp16=no limit=3000 patience=4
    tiny=(--shape hidden_size=32 num_hidden_layers=2 num_attention_heads=4 intermediate_size=48 vocab_size=300)
    tiny=(--vocab_size 300 --batch 4 "${tiny[@]}")
    roberta=("${tiny[@]}") modernbert=(--model_type modernbert "${tiny[@]}") long=(64)
    lengths=(16) updates=(--steps 2 --warm_up 1 --repeats 1 --copies 1)
fi
train=(python3 -m launch.train --recipe quickstart "${text[@]}" --eval_on_start false --eval_steps 1000000)
train+=(--max_eval_blocks 32 --overwrite_output_dir --max_steps 20)
benchmark=(python3 -m launch.benchmark)
one_process=(python3 -m torch.distributed.run --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint localhost:0)

table=$folder/table.md
printf '| check | result | seconds | figure |\n| --- | --- | --- | --- |\n' > "$table"

# check NAME SECONDS PATTERN COMMAND...: one row, with the last line of the output that has the pattern.
check() {
    local name=$1 seconds=$2 pattern=$3 start=$SECONDS log result figure
    shift 3
    log="$folder/${name//[^a-zA-Z0-9]/_}.log"
    seconds=$((patience * seconds < limit - SECONDS ? patience * seconds : limit - SECONDS))
    if [ "$seconds" -lt 5 ]; then
        result="no time left" figure=""
    else
        timeout --kill-after 5 "$seconds" "$@" > "$log" 2>&1
        case $? in 0) result=ok ;; 124 | 137) result="over $seconds s" ;; *) result=failed ;; esac
        figure=$(grep -E "$pattern" "$log" | tail -n 1)
        [ "$result" = failed ] && figure=$(grep -E 'rror' "$log" | tail -n 1)
    fi
    figure=$(tr '|' ',' <<< "$figure" | cut -c 1-160)
    printf '| %s | %s | %s | %s |\n' "$name" "$result" "$((SECONDS - start))" "$figure" | tee -a "$table"
}

fp16_and_resume() {
    local run=("${train[@]}" --output_dir "$folder/fp16" --optimizer muon --mixed_precision "$fp16" --save_steps 10)
    "${run[@]}" && "${run[@]}" --overwrite_output_dir false --resume_from_checkpoint latest --max_steps 30
}

check "losses, waits, kernels (tests)" 120 'passed|failed' python3 -m pytest -q tests/train_loop/test_gpu.py
check "fp16, Muon, overflow, resume" 90 'perplexity' bash -c "$(declare -p train folder fp16); $(declare -f fp16_and_resume); fp16_and_resume"
for length in "${lengths[@]}"; do
    check "RoBERTa at 128, ModernBERT beyond: $length" 100 'this project' \
        "${benchmark[@]}" train "${text[@]}" --precision "$half" --length "$length" "${updates[@]}" \
        $([ "$length" -gt 128 ] && echo "${modernbert[@]}" || echo "${roberta[@]}")
done
for length in "${long[@]}"; do
    check "documents by kernel at $length" 60 'this project' \
        "${benchmark[@]}" train --grouping pack "${text[@]}" --precision "$half" --length "$length" "${updates[@]}" \
        "${modernbert[@]}" --batch $((length > 512 ? 1 : 4))
done
check "compiled layers" 80 'this project' \
    "${benchmark[@]}" train "${text[@]}" --precision "$half" "${updates[@]}" "${roberta[@]}" --torch_compile
check "auto batch" 60 '^batch' "${train[@]}" --output_dir "$folder/auto" --per_device_train_batch_size auto
check "DDP on one rank" 40 'perplexity' "${one_process[@]}" -m "${train[@]:2}" --output_dir "$folder/ddp"
check "FSDP2 on one rank" 40 'perplexity' "${one_process[@]}" -m "${train[@]:2}" --output_dir "$folder/fsdp" --shard true
check "trace of three updates" 40 '^profile' "${train[@]}" --output_dir "$folder/trace" --profile_steps 10:12
check "flash attention" 40 'perplexity' \
    "${train[@]}" --output_dir "$folder/flash" --mixed_precision "$half" --attn_implementation flash_attention_2

python3 -c 'from launch.run.environment import versions; import torch, datetime; print("\n" + ", ".join(
    [f"{datetime.date.today()}", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: tiny sizes",
     *(f"{name} {version}" for name, version in versions().items())]))' >> "$table"
echo && cat "$table"
