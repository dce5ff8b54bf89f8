#!/usr/bin/env bash
# Make launch/constraints-*.txt anew: the newest versions that install together today, with the test extra, for each
# tested Python; then carry them into [tool.uv]. Run the whole test command on every Python afterwards.
#
#   bash tools/freeze_constraints.sh               python3.11 and python3.12 as found on PATH
#   bash tools/freeze_constraints.sh python3.12    only this one
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"

[ $# -gt 0 ] || set -- python3.11 python3.12
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# A copy, so that building does not touch the metadata of the checkout's own environments.
mkdir "$scratch/source"
cp -R "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$root/jaxllm" "$scratch/source/"

for command in "$@"; do
  PYTHON=$command
  find_python
  environment=$scratch/$python_minor
  target=$root/launch/constraints-$python_minor.txt
  say "resolving for Python $python_full"
  "$python" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --upgrade setuptools
  "$environment/bin/python" -m pip install --quiet "$scratch/source[test]"
  {
    echo "# Versions tested together on Python $python_minor. Made by tools/freeze_constraints.sh; not edited by hand."
    "$environment/bin/python" -m pip list --format=json | "$python" -c '
import json, re, sys
# A pin holds for every build of a release: no local version (torch 2.13.0+cpu), nothing that only CUDA builds bring.
found = ((re.sub("[-_.]+", "-", p["name"]).lower(), p["version"].partition("+")[0]) for p in json.load(sys.stdin))
for name, version in sorted(found):
    if name not in ("pip", "jaxllm", "wheel", "triton") and not name.startswith(("nvidia-", "cuda-")):
        print(f"{name}=={version}")'
  } >"$target.new"
  mv "$target.new" "$target"
done
"$python" "$root/tools/uv_constraints.py"
