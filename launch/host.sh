#!/usr/bin/env bash
# One process of a run on many machines, as Slurm, a TPU VM pod or GKE start it on each of them.
#
#   bash launch/host.sh --setup                           make this host's environment
#   bash launch/host.sh train configs/x.py seed=2         jaxllm in it: its output and exit code also go to LOGS/HOST/
#   bash launch/host.sh --stop                            end what an attempt before this one left running here
#
# --stop and --setup may also stand before a command. Variables:
ENVIRONMENT=${ENVIRONMENT:-}  # the environment's folder; empty: .venv in the checkout
EXTRAS=${EXTRAS:-}            # what it needs beside the base: cuda12, cuda13, tpu
LOGS=${LOGS:-}                # where logs lie, a folder per host; empty: runs/logs in the checkout
ATTEMPT=${ATTEMPT:-1}         # the launcher's count of starts
PROCESS=${PROCESS:-${SLURM_PROCID:-${JOB_COMPLETION_INDEX:-0}}}  # for the name of the log
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
: "${ENVIRONMENT:=$root/.venv}" "${LOGS:=$root/runs/logs}"
mkdir -p "$LOGS/$(uname -n)"
log=$LOGS/$(uname -n)/attempt-$ATTEMPT.process-$PROCESS
pid_file=$LOGS/$(uname -n)/process-$PROCESS.pid

setup() {
  # Hosts may share the folder: one makes it, the others wait and find it current.
  exec 8>"$ENVIRONMENT.lock"
  flock 8
  ensure_environment "$ENVIRONMENT" "$EXTRAS"
  exec 8>&-
}

stop() {
  local old waited=0
  old=$(cat "$pid_file" 2>/dev/null) || return 0
  is_ours() { { tr '\0' ' ' <"/proc/$old/cmdline"; } 2>/dev/null | grep -q jaxllm; }
  is_ours || return 0
  say "$(uname -n): process $old of an earlier attempt still runs; it is asked to save and leave"
  kill -TERM "$old" 2>/dev/null || return 0
  while is_ours && [ "$waited" -lt 300 ]; do
    sleep 1
    waited=$((waited + 1))
  done
  ! is_ours || kill -KILL "$old" 2>/dev/null || true
}

run() {
  local job='' early=no passed_on=yes status=0
  [ -x "$ENVIRONMENT/bin/jaxllm" ] || fail "$(uname -n): no environment at $ENVIRONMENT; run launch/host.sh --setup first"
  set_process_environment
  # Set before jaxllm is there: a signal in between would end us and leave it behind.
  pass_on() {
    passed_on=yes
    if [ -z "$job" ]; then early=yes; else early=no && kill -TERM "$job" 2>/dev/null || true; fi
  }
  trap pass_on HUP INT TERM USR1
  rm -f "$log.exit"
  # tee lives until jaxllm has closed its output, whatever signal the whole group gets in between.
  exec 9> >(trap '' HUP INT TERM USR1 && exec tee -a "$log.log")
  local tee=$!
  set -m  # a process group of its own: a signal to the group reaches jaxllm once, by way of us
  "$ENVIRONMENT/bin/jaxllm" "$@" >&9 2>&1 8>&- </dev/null 9>&- &
  job=$!
  set +m
  [ "$early" = no ] || pass_on
  echo "$job" >"$pid_file"
  while [ "$passed_on" = yes ]; do  # a signal ends the wait, not the process
    passed_on=no status=0
    wait "$job" || status=$?
  done
  trap '' HUP INT TERM USR1  # the code is known: nothing is to come in between any more
  kill -KILL -- "-$job" 2>/dev/null || true  # what it started and did not end would hold its output open, and us
  exec 9>&-
  wait "$tee" || true
  printf '%s\n' "$status" >"$log.exit"
  rm -f "$pid_file"
  return "$status"
}

while [ $# -gt 0 ]; do
  case $1 in
    --setup)
      if [ $# -eq 1 ]; then
        setup
      else  # a package index that was away for a moment is no reason for a launcher to give up the run
        bash "${BASH_SOURCE[0]}" --setup || exit 75
      fi
      ;;
    --stop) stop ;;
    *) break ;;
  esac
  shift
done
[ $# -eq 0 ] || run "$@"
