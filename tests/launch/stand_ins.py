"""Programs of clusters, as stand-ins on the PATH: they write down how they were called and do what can be done here."""

import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Process `me` in its n-th start does what line n, word me of the plan says: leaves with that code, dies of SIGKILL, or
# waits to be asked, which it may be once, and for a minute, so that a test that fails leaves nothing behind.
JAXLLM = """
me=${SLURM_PROCID:-${WORKER:-0}}
n=$(($(cat "$BOOK/starts.$me" 2>/dev/null || echo 0) + 1))
echo "$n" >"$BOOK/starts.$me"
env >"$BOOK/env.$me"
printf '%s\\n' "$@" >"$BOOK/arguments.$me"
echo "process $me, start $n"
code=$(awk "NR == $n { print \\$($me + 1) }" "$BOOK/plan")
case $code in
  KILL) kill -KILL $$ ;;
  WAIT)
    asked=0
    trap 'asked=$((asked + 1))' TERM
    touch "$BOOK/waits.$me"
    until [ "$asked" -gt 0 ] || [ "$SECONDS" -gt 60 ]; do sleep 0.05; done
    sleep 0.3
    echo "process $me, asked $asked times"
    exit $((asked == 1 ? 75 : 143))
    ;;
  *) exit "$code" ;;
esac
"""

# Each stand-in of a host or a node has its own name.
UNAME = """
[ "${1:-}" = -n ] || exec /bin/uname "$@"
echo "host${SLURM_NODEID:-${WORKER:-0}}"
"""

NOTE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

book = Path(os.environ["BOOK"])
name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
with open(book / "calls", "a") as calls:
    calls.write(json.dumps([name, *arguments]) + "\\n")
"""


@dataclass
class Stage:
    """A folder with stand-ins: their PATH, the book they write into, and what they are told to do."""

    folder: Path
    book: Path = field(init=False)
    bin: Path = field(init=False)

    def __post_init__(self) -> None:
        self.book, self.bin = self.folder / "book", self.folder / "bin"
        self.environment = self.folder / "environment"  # found as made by other hands: it holds a jaxllm
        for made in (self.book, self.bin, self.environment / "bin"):
            made.mkdir(parents=True)
        self.shell("jaxllm", JAXLLM, self.environment / "bin")
        self.shell("uname", UNAME)

    def shell(self, name: str, text: str, folder: Path | None = None) -> None:
        self._write((folder or self.bin) / name, f"#!/usr/bin/env bash\n{textwrap.dedent(text)}")

    def python(self, name: str, text: str) -> None:
        self._write(self.bin / name, f"#!{sys.executable} -S\n{NOTE}{textwrap.dedent(text)}")

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def plan(self, *starts: str) -> None:
        """One line per start: what each process does in it."""
        (self.book / "plan").write_text("".join(f"{line}\n" for line in starts))

    def env(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR")}
        path = f"{self.bin}:{os.environ['PATH']}"
        return {**kept, "PATH": path, "BOOK": str(self.book), "PAUSE": "0", "POLL": "0", **more}

    def start(self, *command: str, cwd: Path = ROOT, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=cwd, env=self.env(**more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *command: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, cwd=cwd, **more)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of every call of one stand-in, in order."""
        if not (self.book / "calls").exists():
            return []
        found = [json.loads(line) for line in (self.book / "calls").read_text().splitlines()]
        return [words[1:] for words in found if words[0] == name]

    def starts(self, process: int) -> int:
        path = self.book / f"starts.{process}"
        return int(path.read_text()) if path.exists() else 0

    def seen_environment(self, process: int) -> dict[str, str]:
        lines = (self.book / f"env.{process}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def wait_for(self, *names: str) -> None:
        """Until these files are there; names are of the book, or lead out of it."""
        end = time.monotonic() + 30
        while not all((self.book / name).exists() for name in names):
            assert time.monotonic() < end, f"{names} did not appear"
            time.sleep(0.02)


def codes(logs: Path) -> dict[str, str]:
    """'HOST/FILE' -> the exit code written there."""
    return {f"{p.parent.name}/{p.stem}": p.read_text().strip() for p in sorted(logs.glob("*/*.exit"))}
