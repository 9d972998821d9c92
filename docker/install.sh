#!/usr/bin/env bash
# What the image needs of pip: this project as it lies here, and the extras named in EXTRAS.
# TORCH_INDEX: where torch comes from, if not from pip's usual index. A torch that is there already is kept.
set -eu
cd "$(dirname "$0")/.."
project=".${EXTRAS:+[$EXTRAS]}"
install() { python -m pip install --no-cache-dir --disable-pip-version-check "$@"; }
if python -c 'import torch' 2>/dev/null; then
    install -e "$project"
else
    if [ -n "${TORCH_INDEX:-}" ]; then
        install -c constraints.txt torch --index-url "$TORCH_INDEX"
    fi
    install -c constraints.txt -e "$project"
fi
