#!/bin/sh
# Installs grpcio (from PyPI, in the version that is pinned beside this file) into the folder given, unless it is there.
set -eu
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
if ! cmp -s "$here/requirements.txt" "$folder/installed"; then
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$folder/installed"
fi
