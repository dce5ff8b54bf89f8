#!/usr/bin/env bash
# jaxllm on Google Kubernetes Engine: launch/gke.yaml, filled in and applied. The cluster has JobSet installed.
#
#   bash launch/gke.sh train configs/k2_65b.py mesh.fsdp=64       apply, then wait until it is finished; logs to runs/logs/NAME/
#   bash launch/gke.sh logs                                       fetch the logs of the pods there are
#   bash launch/gke.sh delete                                     end it, give the machines back
#   bash launch/gke.sh --dry-run train configs/k2_65b.py          print manifest and commands, do nothing
#
# The same command takes up a job that runs already. Restarting is the JobSet's: see failurePolicy in the manifest.
NAME=${NAME:-jaxllm}
MACHINES=${MACHINES:-tpu}           # tpu or gpu
if [ "$MACHINES" = gpu ]; then
  ACCELERATOR=${ACCELERATOR:-nvidia-h100-80gb}
  HOSTS=${HOSTS:-8}                 # as a node pool has them
  DEVICES=${DEVICES:-8}             # of a host
  EXTRAS=${EXTRAS:-cuda12}
  SLICES=1 TOPOLOGY=''
else
  ACCELERATOR=${ACCELERATOR:-tpu-v5p-slice}
  TOPOLOGY=${TOPOLOGY:-4x8x8}       # of a slice
  SLICES=${SLICES:-1}
  HOSTS=${HOSTS:-64}                # of a slice: v5p 4x8x8 is 256 chips
  DEVICES=${DEVICES:-4}             # of a host
  EXTRAS=${EXTRAS:-tpu}
fi
SPOT=${SPOT:-yes}                   # yes: nodes that are cheaper and taken away at any time; no
CLAIM=${CLAIM:-jaxllm}              # a ReadWriteMany volume claim: runs/ of every pod
IMAGE=${IMAGE:-python:3.12}         # anything with bash, git and Python 3.11 or 3.12
REPOSITORY=${REPOSITORY:-}          # where pods clone from; empty: this checkout's origin
RESTARTS=${RESTARTS:-200}
NAMESPACE=${NAMESPACE:-default}

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
if [ "${1:-}" = --dry-run ]; then dry_run=yes && shift; fi
[ $# -gt 0 ] || fail "say what to run: bash launch/gke.sh train configs/x.py"
[ "$MACHINES" = tpu ] || [ "$MACHINES" = gpu ] || fail "MACHINES=$MACHINES: tpu or gpu"
cd "$root"
kube=(kubectl "--namespace=$NAMESPACE")
mine=("--selector=jobset.sigs.k8s.io/jobset-name=$NAME")

# A word as a YAML (and JSON) string.
quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {  # manifest COMMAND...
  local text word list='' variable other=gpu
  [ "$MACHINES" = tpu ] || other=tpu
  for word in "$@"; do list="$list${list:+, }$(quoted "$word")"; done
  # shellcheck disable=SC2034  # read by name below
  local COMMAND="[$list]"
  text=$(sed "/^#/d; /# $other\$/d; $([ "$SPOT" = yes ] || echo '/# spot$/d;') s/ *# \($MACHINES\|spot\)\$//" launch/gke.yaml)
  for variable in NAME ACCELERATOR TOPOLOGY SLICES HOSTS DEVICES CLAIM IMAGE EXTRAS REPOSITORY REVISION RESTARTS COMMAND; do
    text=${text//"\${$variable}"/"${!variable}"}
  done
  printf '%s\n' "$text"
}

# What became of it: Completed, Failed, or nothing yet.
state() { "${kube[@]}" get jobset "$NAME" '--output=jsonpath={.status.terminalState}'; }

# What each pod said last, to a folder per host. The logs of all attempts lie in the volume, in logs/NAME.
fetch_logs() {
  local pod folder
  if [ "$dry_run" = yes ]; then act "${kube[@]}" logs "${mine[@]}" --container=jaxllm --prefix --tail=-1 && return; fi
  for pod in $("${kube[@]}" get pods "${mine[@]}" --output=name); do
    folder=runs/logs/$NAME/${pod#pod/}
    mkdir -p "$folder"
    "${kube[@]}" logs "$pod" --container=jaxllm >"$folder/last.log" || say "$pod has no log yet"
  done
}

wait_for_end() {
  local now='' codes missed=0
  while [ -z "$now" ]; do
    if now=$(state); then missed=0; else missed=$((missed + 1)); fi
    if [ "$missed" -ge 5 ]; then  # one answer that is missing says nothing about the run
      say "the cluster has not told the state of $NAME five times; the same command takes it up again"
      return 75
    fi
    [ -n "$now" ] || sleep "${POLL:-60}"
  done
  fetch_logs
  [ "$now" != Completed ] || return 0
  # shellcheck disable=SC2207  # codes are words
  codes=($("${kube[@]}" get pods "${mine[@]}" \
    '--output=jsonpath={.items[*].status.containerStatuses[*].state.terminated.exitCode}'))
  say "$NAME failed: exit codes ${codes[*]:-lost}; the logs of all attempts lie in logs/$NAME of the volume"
  return "$(verdict_of "${codes[@]:-lost}")"
}

case $1 in
  logs) fetch_logs ;;
  delete) act "${kube[@]}" delete jobset "$NAME" --ignore-not-found ;;
  *)
    REPOSITORY=${REPOSITORY:-$(git remote get-url origin 2>/dev/null)} ||
      fail "pods clone the code: name a repository that they can reach, REPOSITORY=https://..."
    # shellcheck disable=SC2034  # read by name in manifest
    REVISION=$(git rev-parse HEAD)
    only_commits
    filled=$(manifest "$@")
    if [ "$dry_run" = yes ]; then
      printf "%s <<'EOF'\n%s\nEOF\n" "$(act "${kube[@]}" apply --filename=-)" "$filled"
      exit
    fi
    "${kube[@]}" apply --filename=- <<<"$filled"
    wait_for_end
    ;;
esac
