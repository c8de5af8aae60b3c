#!/usr/bin/env bash
# From nothing to a trade-off curve on the embedded digits: some 80 seconds on 2 cores, installation apart. A claim takes
# three seeds: bash scripts/demo.sh seed=0,1,2
. "$(dirname "$0")/setup.sh"
.venv/bin/mad-run -m defense=mad defense.epsilon=0.5,0.8,0.95 attack=knockoff "$@"
