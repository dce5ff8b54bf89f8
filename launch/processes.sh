#!/usr/bin/env bash
# jaxllm in several processes on this machine, watched over and started again until the run is finished.
#
#   bash launch/processes.sh -n 8 train configs/x.py            8 processes, which share the GPUs there are
#   bash launch/processes.sh -n 2 -d 4 train configs/debug.py   2 processes with 4 simulated CPU devices each
#   bash launch/processes.sh --help                             grace time, restarts
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment "$root/.venv"
exec "$root/.venv/bin/python" "$root/launch/processes.py" "$@"
