#!/usr/bin/env bash
# Lint, types, tests. Further arguments go to pytest: bash scripts/test.sh -m 'not slow'
. "$(dirname "$0")/setup.sh" "[test]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
