# Sourced by demo.sh and test.sh: makes .venv at the top of the clone, once, and installs the project into it.
# $extras names the extras to install, e.g. "[test]".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=".venv/.installed${extras:-}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "installing into .venv (torch is large: a minute or two)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:-}"
    touch "$stamp"
fi
