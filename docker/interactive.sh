#!/usr/bin/env bash
# A shell in the image, with every GPU and with the checkout's data/ and runs/: docker/interactive.sh [command...]
# IMAGE, DATA and RUNS choose others; GPUS= (empty) starts it without GPUs.
set -eu
cd "$(dirname "$0")/.."
data=${DATA:-$PWD/data} runs=${RUNS:-$PWD/runs}
mkdir -p "$data" "$runs"
gpus=${GPUS-all}
# --ipc=host: processes of one run exchange data through shared memory.
exec docker run --rm -it ${gpus:+--gpus "$gpus"} --ipc=host --ulimit memlock=-1 \
    -v "$data:/data" -v "$runs:/workspace/txl/runs" "${IMAGE:-txl}" "$@"
