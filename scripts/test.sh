#!/usr/bin/env bash
# Lint, types, tests. Further arguments go to pytest: bash scripts/test.sh -m 'not slow'
extras="[test]"
. "$(dirname "$0")/setup.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy & # one core's work for half a minute, while the tests use all
types=$!
.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@" && tests=0 || tests=$?
wait "$types"
exit "$tests"
