#!/usr/bin/env bash
# From nothing to a trade-off curve on the embedded digits: about a minute and a half on 2 cores, installation apart.
. "$(dirname "$0")/setup.sh"
.venv/bin/mad-run -m defense=mad defense.epsilon=0.5,0.8,0.95 attack=knockoff "$@"
