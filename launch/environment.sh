# shellcheck shell=bash
# Sourced by launch/*.sh and tools/*.sh: finds a Python, makes an environment with the tested versions, keeps it current.
# Nothing here writes to stdout, so that `launch/local.sh ... --json` stays readable by machines. Bash 3.2 will do (macOS).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf 'jaxllm: %s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 2
}

# "3.11.7 /usr/bin/python3.11" for a Python command; inside a virtual environment, the interpreter it was made from, since
# that environment may be the one to be made anew.
describe_python() {
  local version ask='import sys
print("%d.%d.%d" % sys.version_info[:3], getattr(sys, "_base_executable", None) or sys.executable)'
  "$1" -c "$ask" 2>/dev/null && return
  # A stand-in of pyenv runs only the versions that are switched on; an installed one will do.
  version=$(pyenv whence "$1" 2>/dev/null | tail -n 1)
  [ -n "$version" ] && PYENV_VERSION=$version "$1" -c "$ask" 2>/dev/null
}

# Sets python (path), python_full (3.11.7) and python_minor (3.11). PYTHON chooses; otherwise python3 if its version is a
# tested one, then the tested ones by name, then a newer python3.
find_python() {
  local command found chosen='' newer='' refused=''
  if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.12 python3.11; fi
  for command in "$@"; do
    found=$(describe_python "$command") || continue
    case $found in
      3.11.* | 3.12.*) chosen=$found && break ;;
      2.* | 3.[0-9].* | 3.10.*) refused="$command is Python ${found%% *}" ;;
      *) newer=${newer:-$found} ;;
    esac
  done
  chosen=${chosen:-$newer}
  [ -n "$chosen" ] ||
    fail "${refused:-no command $1 that runs}; install Python 3.11 or 3.12 and name it: PYTHON=python3.12 bash $0"
  python_full=${chosen%% *}
  python=${chosen#* }
  python_minor=${python_full%.*}
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python (Python $python_full) cannot make environments: venv or ensurepip is missing; on Debian and Ubuntu: apt install python$python_minor-venv"
}

# Sets constraints: the tested versions for this Python; newer Pythons get those of the newest tested one.
find_constraints() {
  constraints=$root/launch/constraints-$python_minor.txt
  [ -f "$constraints" ] && return
  constraints=$root/launch/constraints-3.12.txt
  say "Python $python_minor is not tested; using the versions tested with Python 3.12"
}

# What an environment depends on, as one hash. The place of the checkout counts: scripts in an environment name it.
stamp_of() {  # stamp_of EXTRAS
  "$python" - "$root" "$python_full" "$1" "$root/pyproject.toml" "$constraints" <<'EOF'
import hashlib, sys
texts = [a.encode() for a in sys.argv[1:4]] + [open(f, "rb").read() for f in sys.argv[4:]]
print(hashlib.sha256(b"\0".join(hashlib.sha256(t).digest() for t in texts)).hexdigest())
EOF
}

install_packages() {  # install_packages ENVIRONMENT EXTRAS
  export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  "$python" -m venv "$1" &&
    # The build tool first, at its tested version: an isolated build would fetch whatever is newest today.
    "$1/bin/python" -m pip install --constraint "$constraints" setuptools &&
    "$1/bin/python" -m pip install --constraint "$constraints" --no-build-isolation --editable "$root${2:+[$2]}"
}

# Runs install_packages, whose output goes to the log, of which a terminal shows the last line.
install_with_progress() {  # install_with_progress ENVIRONMENT EXTRAS LOG
  local started=$SECONDS job status=0
  say "making ${1##*/}/ with Python $python_full and the tested versions (minutes, once)"
  set -m  # a process group of its own, so that an interrupt can end pip with everything it started
  install_packages "$1" "$2" >"$3" 2>&1 </dev/null &
  job=$!
  set +m
  trap 'kill -- "-$job" 2>/dev/null; say "interrupted; the same command starts again"; exit 130' HUP INT TERM
  if [ -t 2 ]; then
    while kill -0 "$job" 2>/dev/null; do
      printf '\r\033[Kjaxllm: %4d s  %.60s' $((SECONDS - started)) "$(tail -n 1 "$3" 2>/dev/null)" >&2
      sleep 1
    done
    printf '\r\033[K' >&2
  fi
  wait "$job" || status=$?
  trap - HUP INT TERM
  if [ "$status" -ne 0 ]; then
    tail -n 15 "$3" >&2
    fail "could not make ${1##*/}/ (last lines above, all of it in $3); the same command tries again"
  fi
  say "made ${1##*/}/ in $((SECONDS - started)) s"
}

# Makes the environment, or keeps it if it was made from the same pyproject.toml, constraints and Python.
ensure_environment() {  # ensure_environment FOLDER [EXTRAS]
  local environment=$1 extras=${2:-} mark=$1/.jaxllm stamp
  if [ -e "$environment" ] && [ ! -e "$mark" ]; then
    # Made by other hands (uv, the user): theirs to keep current, never ours to delete.
    [ -x "$environment/bin/jaxllm" ] && return
    fail "$environment was not made by jaxllm and holds no jaxllm; run 'pip install -e $root' in it or remove it"
  fi
  find_python
  find_constraints
  stamp=$(stamp_of "$extras")
  [ -x "$environment/bin/python" ] && [ "$(cat "$mark" 2>/dev/null)" = "$stamp" ] && return
  # Moved aside and into place whole, so that at whatever moment this ends, the folder is known to be ours. The mark
  # holds the stamp only when all is installed.
  rm -rf "$environment-old" "$environment-new"
  mkdir "$environment-new"
  : >"$environment-new/.jaxllm"
  [ ! -e "$environment" ] || mv "$environment" "$environment-old"
  mv "$environment-new" "$environment"
  rm -rf "$environment-old"
  install_with_progress "$environment" "$extras" "$environment/install.log"
  printf '%s\n' "$stamp" >"$mark.new"
  mv "$mark.new" "$mark"
}

# Process settings that make a run faster and change no number. What the user has set stays.
set_process_environment() {
  local version
  [ -z "${GLIBC_TUNABLES+set}" ] || return 0
  version=$(getconf GNU_LIBC_VERSION 2>/dev/null) || return 0
  case $version in
    "glibc 2."*) version=${version#glibc 2.} ;;
    *) return 0 ;;
  esac
  [ "${version%%.*}" -ge 35 ] || return 0
  export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
  say "GLIBC_TUNABLES=$GLIBC_TUNABLES (huge pages for host memory; set it yourself to change that)"
}
