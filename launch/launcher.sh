# shellcheck shell=bash
# Sourced by the launchers of runs on many machines: to do or only to print, what exit codes mean, when to start again.
# The codes are those of `jaxllm train`: 0 done, 2 usage or config, 3 the guard stopped the run, 75 saved, start me again.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

dry_run=no
leaving=no  # yes, set by a trap at whatever moment: no other attempt

# The command given, or with --dry-run a line that says it, ready to be pasted into a shell.
act() {  # act COMMAND...
  local word line='' quote="'\\''"
  if [ "$dry_run" = no ]; then
    "$@"
    return
  fi
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) line="$line '${word//\'/$quote}'" ;;
      *) line="$line $word" ;;
    esac
  done
  printf '%s\n' "${line# }"
}

# Other machines get a commit, so that a run says which code it ran.
only_commits() {
  [ "$dry_run" = yes ] || [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] ||
    fail "the checkout has changes that are not committed; commit them, since other machines get the commit"
}

# The exit code of every process of an attempt, 'lost' where it left none: its host went away. One word each.
codes_of() {  # codes_of LOGS ATTEMPT
  local log code
  for log in "$1"/*/"attempt-$2.process-"*.log; do
    [ -e "$log" ] || { echo lost && return; }
    code=$(cat "${log%.log}.exit" 2>/dev/null) || true
    echo "${code:-lost}"
  done
}

# What an attempt came to, from the codes of its processes: the code of a verdict that holds for all of them.
#   0          all of them are done
#   2, 3       one of them said never again
#   75         one of them saved and asks to be started again, died of a signal, or went away with its host
#   another    they failed, and not because of one that went away: the same would come again
verdict_of() {  # verdict_of CODE...
  local code never='' again='' failed=''
  for code in "$@"; do
    case $code in
      0) ;;
      2 | 3) never=$code ;;
      75 | lost) again=75 ;;
      *) if [ "$code" -gt 128 ]; then again=75; else failed=$code; fi ;;
    esac
  done
  echo "${never:-${again:-${failed:-0}}}"
}

# Calls FUNCTION, which makes one attempt and sets `codes`, until that comes to something else than 75; returns that.
# It gives up after five attempts in a row that took less than five minutes each.
until_finished() {  # until_finished FUNCTION ARGUMENTS...
  local started verdict short=0
  attempt=0
  while [ "$leaving" = no ]; do
    attempt=$((attempt + 1)) started=$SECONDS codes=(lost)
    "$@"
    [ "$dry_run" = no ] || return 0
    verdict=$(verdict_of "${codes[@]:-lost}")
    say "attempt $attempt: exit codes ${codes[*]:-lost}"
    [ "$verdict" -eq 75 ] || return "$verdict"
    if [ $((SECONDS - started)) -lt 300 ]; then short=$((short + 1)); else short=0; fi
    if [ "$short" -ge 5 ]; then
      say "five attempts in a row ended within five minutes; the logs say why"
      return 75
    fi
    [ "$leaving" = yes ] || sleep "${PAUSE:-10}"
  done
  return 75
}
