#!/bin/sh
# Installs this project, editable, into a virtual environment, which is made first where there is none.
# Usage: [PYTHON=python3] .ci/venv.sh FOLDER EXTRA [REQUIREMENT...]
set -eu
cd "$(dirname "$0")/.."
folder=$1 extra=$2
shift 2
python=${PYTHON:-python3}

if [ ! -x "$folder/bin/pip" ]; then
    if ! found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
        echo "There is no $python here. Install Python 3.10 or newer, or say which: make PYTHON=/path/to/python3 ..." >&2
        exit 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "$python is Python $found; 3.10 or newer is needed. Say which: make PYTHON=python3.12 ..." >&2
        exit 1
    fi
    # Debian and Ubuntu ship Python without what makes a virtual environment.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make a virtual environment. On Debian or Ubuntu: sudo apt-get install python$found-venv" >&2
        exit 1
    fi
    "$python" -m venv "$folder"
fi
echo "installing into $folder ..."
exec "$folder/bin/python" -m pip --quiet --disable-pip-version-check install -e ".[$extra]" "$@"
