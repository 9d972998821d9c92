#!/usr/bin/env bash
# Build the image: docker/build.sh [docker's options], such as --build-arg BASE=... or -t NAME.
# Its user has the number of the one who builds, so that mounted folders can be written.
set -eu
cd "$(dirname "$0")/.."
exec docker build -f docker/Dockerfile -t txl --build-arg UID="$(id -u)" "$@" .
