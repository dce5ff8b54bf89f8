#!/usr/bin/env bash
# jaxllm on this machine, in an environment of its own: .venv/ in the checkout.
#
#   bash launch/local.sh                                  the quickstart: prepare data, train, show what was made
#   bash launch/local.sh train configs/x.py seed=2        any jaxllm command
#   PYTHON=python3.12 bash launch/local.sh                with another Python (3.11 or 3.12)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment "$root/.venv"

if [ $# -eq 0 ]; then
  cd "$root"  # so that the run lies in runs/ of the checkout
  set -- train configs/quickstart.py
fi
exec "$root/.venv/bin/jaxllm" "$@"
