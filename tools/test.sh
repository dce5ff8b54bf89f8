#!/usr/bin/env bash
# Every check of the project, in an environment of its own: .venv-test-3.11/ in the checkout, one per Python version.
#
#   bash tools/test.sh                         ruff, mypy and all tests; all of them run, exit 1 if one failed
#   bash tools/test.sh tests/core -k codec     pytest alone, with these arguments
#   PYTHON=python3.12 bash tools/test.sh       with another Python (3.11 or 3.12)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"

find_python
environment=$root/.venv-test-$python_minor
ensure_environment "$environment" test
bin=$environment/bin
cd "$root"

# Floating-point sums on CPU depend on the number of XLA's threads: fixed, so that the same numbers come out everywhere.
export NPROC=${NPROC:-2}

if [ $# -gt 0 ]; then
  exec "$bin/python" -m pytest "$@"
fi

results=''
failed=0
check() {  # check NAME COMMAND...
  local name=$1 started=$SECONDS verdict=ok
  shift
  printf '\n== %s\n' "$name"
  "$@" || { verdict=FAILED && failed=1; }
  results+=$(printf '%-8s %-13s %5d s' "$verdict" "$name" $((SECONDS - started)))$'\n'
}

check "ruff check" "$bin/ruff" check .
check "ruff format" "$bin/ruff" format --check .
check "mypy" "$bin/mypy" jaxllm configs tools
# A file is one worker's, so that what its tests share is made once.
workers=$(nproc)
check "pytest" "$bin/python" -m pytest -n "$((workers < 4 ? workers : 4))" --dist loadfile --durations=30

printf '\n%s' "$results"
exit "$failed"
