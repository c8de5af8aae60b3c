#!/usr/bin/env bash
# Lint, types, tests. Further arguments go to pytest: bash scripts/test.sh -m 'not slow'
extras="[test]"
. "$(dirname "$0")/setup.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
