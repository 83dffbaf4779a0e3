#!/bin/sh
# Puts schemathesis into the folder that is named, unless it is there already.
set -eu
folder=$1
wanted="$(dirname "$0")/requirements.txt"
if ! cmp -s "$wanted" "$folder/installed.txt"; then
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$wanted"
    cp "$wanted" "$folder/installed.txt"
fi
