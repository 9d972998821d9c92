#!/usr/bin/env bash
# Build the image: docker/build.sh [name]
set -eu
cd "$(dirname "$0")/.."
docker build -f docker/Dockerfile -t "${1:-txl}" .
