#!/usr/bin/env bash
# jaxllm on a TPU VM pod, or on several slices of them, driven from here by gcloud.
#
#   bash launch/tpu_vm.sh train configs/k2_65b.py mesh.fsdp=64    create, set up, train, start again until it is finished
#   bash launch/tpu_vm.sh logs                                    fetch the logs: runs/logs/NAME/HOST/
#   bash launch/tpu_vm.sh delete                                  give the machines back
#   bash launch/tpu_vm.sh --dry-run train configs/k2_65b.py       print the commands, do nothing
#
# The same command takes up what it finds: machines, environments, a run. It stays here while the run trains: use tmux.
NAME=${NAME:-jaxllm}
ZONE=${ZONE:-us-east5-a}
TYPE=${TYPE:-v5p-512}                          # v5p-512 is 256 chips: the name counts cores
SLICES=${SLICES:-1}                            # pods, joined over the data-centre network
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}             # the image of the machines; v5e: v2-alpha-tpuv5-lite, v6e: v2-alpha-tpuv6e
SPOT=${SPOT:-yes}                              # cheaper, and taken away at any time: then created anew
DELETE=${DELETE:-no}                           # yes: give the machines back when the run is finished
SHARED=${SHARED:-/mnt/jaxllm}                  # a folder that all hosts see: runs/ and logs/ lie in it
MOUNT=${MOUNT:-}                               # run on every host, e.g. 'sudo mount -t nfs 10.0.0.2:/runs /mnt/jaxllm'
# The machines' own Python is older than 3.11.
PREPARE=${PREPARE:-'python3 -m pip install --user --quiet uv && ~/.local/bin/uv python install --quiet 3.12'}
# shellcheck disable=SC2016  # the host's shell reads it
PYTHON=${PYTHON:-'$(~/.local/bin/uv python find 3.12)'}

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
if [ "${1:-}" = --dry-run ]; then dry_run=yes && shift; fi
[ $# -gt 0 ] || fail "say what to run: bash launch/tpu_vm.sh train configs/x.py"
cd "$root"
tpus=(gcloud compute tpus queued-resources)
where=("$NAME" "--zone=$ZONE")
every=(--worker=all --node=all --batch-size=all)  # all at once: with batches the first would wait for the last
logs=$SHARED/logs/$NAME

create() {
  local size=("--node-id=$NAME")
  [ "$SLICES" -eq 1 ] || size=("--node-count=$SLICES" "--node-prefix=$NAME")
  [ "$SPOT" = no ] || size+=(--spot)
  act "${tpus[@]}" create "${where[@]}" "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" "${size[@]}"
}

delete() { act "${tpus[@]}" delete "${where[@]}" --force --quiet; }

state() { "${tpus[@]}" describe "${where[@]}" '--format=value(state.state)' 2>/dev/null || echo NONE; }

on_every_host() { act "${tpus[@]}" ssh "${where[@]}" "${every[@]}" "--command=$1"; }

on_first_host() { act "${tpus[@]}" ssh "${where[@]}" --worker=0 --node=0 "--command=$1"; }

# Until the machines are there, however long the queue; those that were taken away are created anew.
wait_for_machines() {
  if [ "$dry_run" = yes ]; then create && return; fi
  local found
  while found=$(state) && [ "$found" != ACTIVE ]; do
    case $found in
      NONE) create || return ;;
      SUSPENDED | FAILED) say "$NAME is $found: created anew" && delete || return ;;
      *) say "$NAME is $found" && sleep "${POLL:-60}" ;;
    esac
  done
}

# The commit that is checked out here goes to the hosts with its history, so that the run records it. May be done twice.
setup() {
  local bundle=jaxllm.bundle commit mount=''
  [ -z "$MOUNT" ] || mount="mountpoint -q $SHARED || $MOUNT; "
  commit=$(git rev-parse HEAD)
  act mkdir -p runs
  act git bundle create --quiet "runs/$bundle" HEAD
  act "${tpus[@]}" scp "runs/$bundle" "$NAME:$bundle" "--zone=$ZONE" "${every[@]}"
  on_every_host "set -e; ${mount}mkdir -p $SHARED/runs; \
git init --quiet jaxllm; cd jaxllm; git fetch --quiet ../$bundle HEAD; git checkout --quiet --force --detach $commit; \
ln -sfn $SHARED/runs runs; $PREPARE; EXTRAS=tpu LOGS=$logs PYTHON=$PYTHON bash launch/host.sh --setup"
}

one_attempt() {  # one_attempt COMMAND...
  wait_for_machines || return 0
  setup || return 0
  on_every_host "cd jaxllm && JAXLLM_DISTRIBUTED=auto LOGS=$logs ATTEMPT=$stamp-$attempt \
bash launch/host.sh --stop$(printf ' %q' "$@")" || true
  local ask="source jaxllm/launch/launcher.sh && codes_of $logs $stamp-$attempt"
  if [ "$dry_run" = yes ]; then on_first_host "$ask" && return; fi
  # shellcheck disable=SC2207  # codes are words
  codes=($(on_first_host "$ask" | grep -xE '[0-9]+|lost')) || codes=(lost)
}

fetch_logs() {
  act mkdir -p runs/logs
  act "${tpus[@]}" scp --recurse "$NAME:$logs" runs/logs "--zone=$ZONE" --worker=0 --node=0
}

case $1 in
  logs) fetch_logs ;;
  delete) delete ;;
  *)
    only_commits
    stamp=$(date -u +%Y%m%d-%H%M%S) status=0
    until_finished one_attempt "$@" || status=$?
    fetch_logs || say "the logs stay in $logs"
    if [ "$DELETE" = yes ] && [ "$status" -eq 0 ]; then delete; fi
    exit "$status"
    ;;
esac
