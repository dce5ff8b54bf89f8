"""The driver of TPU VM pods, with a stand-in for gcloud: two hosts that are folders, taken away when told."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.stand_ins import ROOT, Stage, codes

# A queue of machines: `states` holds what describe says next. Hosts are folders; ssh runs the command there.
GCLOUD = """
command, told = arguments[3], dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
assert arguments[:3] == ["compute", "tpus", "queued-resources"] and told["zone"] == "zone-a", arguments
hosts = [book / f"home{w}" for w in (range(2) if told.get("worker") == "all" else [int(told.get("worker", 0))])]
states = book / "states"
if command == "describe":
    assert arguments[4] == "pod" and told["format"] == "value(state.state)"
    first, *rest = states.read_text().split()
    states.write_text(" ".join(rest or [first]))
    if first == "NONE":
        sys.exit("NOT_FOUND")
    print(first)
elif command == "create":
    for host in (book / "home0", book / "home1"):
        host.mkdir()
elif command == "delete":
    for host in (book / "home0", book / "home1"):
        host.rename(book / f"gone{len(list(book.glob('gone*')))}")
elif command == "scp":
    source, target = [a for a in arguments[4:] if not a.startswith("--")]
    for host in hosts:
        to = str(host / target.removeprefix("pod:")) if target.startswith("pod:") else target
        subprocess.run(["cp", "-r", source.removeprefix("pod:"), to], check=True)
elif command == "ssh":
    running = []
    for host in hosts:
        env = os.environ | {"HOME": str(host), "WORKER": host.name[-1]}
        print("Welcome to", host.name, flush=True)
        running.append(subprocess.Popen(["bash", "-c", told["command"]], cwd=host, env=env))
    sys.exit(max(128 - c if c < 0 else c for c in [r.wait() for r in running]))
else:
    sys.exit(f"unknown command {command}")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own, with launch/ in it and one commit."""
    folder = tmp_path_factory.mktemp("tpu") / "checkout"
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / ".gitignore").write_text("runs/\n.venv/\n.venv.lock\n")
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "one"], check=True)
    return folder


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.python("gcloud", GCLOUD)
    return made


def drive(stage: Stage, checkout: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    told = {"NAME": "pod", "ZONE": "zone-a", "TYPE": "v5p-16", "SHARED": str(stage.folder / "shared")}
    # In place of a Python: the environment as made by other hands.
    told |= {"PREPARE": f"ln -sfn {stage.environment} .venv", "PYTHON": "python3"}
    return stage.run("bash", str(checkout / "launch/tpu_vm.sh"), *arguments, cwd=stage.folder, **(told | more))


def commands(stage: Stage) -> list[str]:
    return [c[3] for c in stage.calls("gcloud") if c[3] != "describe"]


def test_from_nothing_to_a_finished_run(stage: Stage, checkout: Path) -> None:
    """Not there, so created; waited for; saved and started again; logs fetched; given back."""
    (stage.book / "states").write_text("NONE PROVISIONING ACTIVE")
    stage.plan("75 KILL", "0 0")
    done = drive(stage, checkout, "train", "configs/x.py", "name=a b", DELETE="yes", MOUNT="touch mounted")
    assert done.returncode == 0, done.stderr
    attempt = ["scp", "ssh", "ssh", "ssh"]  # the commit, the environment, the run, its codes
    assert commands(stage) == ["create", *attempt, *attempt, "scp", "delete"]
    assert (stage.book / "gone0/mounted").exists()
    assert (stage.book / "arguments.1").read_text().splitlines() == ["train", "configs/x.py", "name=a b"]
    assert stage.seen_environment(0)["JAXLLM_DISTRIBUTED"] == "auto"
    found = codes(checkout / "runs/logs/pod")
    shutil.rmtree(checkout / "runs")
    assert {(k.split("/")[0], k.rpartition("-1.")[1] != "", v) for k, v in found.items()} == {
        ("host0", True, "75"),
        ("host1", True, "137"),
        ("host0", False, "0"),
        ("host1", False, "0"),
    }
    assert (stage.folder / "shared/runs").is_dir()
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert (
        head
        == subprocess.run(
            ["git", "-C", str(stage.book / "gone0/jaxllm"), "rev-parse", "HEAD"], capture_output=True, text=True
        ).stdout
    )


def test_machines_that_were_taken_away_are_created_anew(stage: Stage, checkout: Path) -> None:
    (stage.book / "states").write_text("NONE ACTIVE SUSPENDING SUSPENDED NONE ACTIVE")
    stage.plan("KILL KILL", "0 0")
    done = drive(stage, checkout, "train", "configs/x.py")
    shutil.rmtree(checkout / "runs")
    assert done.returncode == 0, done.stderr
    attempt = ["scp", "ssh", "ssh", "ssh"]
    assert commands(stage) == ["create", *attempt, "delete", "create", *attempt, "scp"]


@pytest.mark.parametrize(("plan", "code"), [("0 2", 2), ("3 75", 3)])
def test_what_would_only_come_again_is_not_started_again(stage: Stage, checkout: Path, plan: str, code: int) -> None:
    (stage.book / "states").write_text("ACTIVE")
    for host in ("home0", "home1"):
        (stage.book / host).mkdir()
    stage.plan(plan)
    done = drive(stage, checkout, "train", "configs/x.py", DELETE="yes")
    shutil.rmtree(checkout / "runs")
    assert (done.returncode, stage.starts(0)) == (code, 1)
    assert "delete" not in commands(stage)  # somebody will want to look


def test_a_cloud_that_gives_nothing_is_not_asked_for_ever(stage: Stage, checkout: Path) -> None:
    stage.python("gcloud", "sys.exit('no such zone')")
    done = drive(stage, checkout, "train", "configs/x.py")
    shutil.rmtree(checkout / "runs")
    assert done.returncode == 75 and done.stderr.count("no such zone") < 20
    assert commands(stage).count("create") == 5


def test_changes_that_are_not_committed_stay_at_home(stage: Stage, checkout: Path) -> None:
    before = (checkout / "launch/local.sh").read_text()
    try:
        (checkout / "launch/local.sh").write_text(before + "# more\n")
        done = drive(stage, checkout, "train", "configs/x.py")
    finally:
        (checkout / "launch/local.sh").write_text(before)
    assert done.returncode == 2 and "not committed" in done.stderr and stage.calls("gcloud") == []


def test_dry_run_prints_the_commands_and_does_nothing(stage: Stage, checkout: Path) -> None:
    done = drive(
        stage, checkout, "--dry-run", "train", "configs/x.py", "name=a b", SLICES="2", PREPARE="true", SHARED="/s"
    )
    commit = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    lines = done.stdout.splitlines()
    pod = "gcloud compute tpus queued-resources"
    every = "--zone=zone-a --worker=all --node=all --batch-size=all"
    stamp = lines[5].partition("ATTEMPT=")[2].partition(" ")[0]
    assert lines == [
        f"{pod} create pod --zone=zone-a --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --node-count=2 "
        "--node-prefix=pod --spot",
        "mkdir -p runs",
        "git bundle create --quiet runs/jaxllm.bundle HEAD",
        f"{pod} scp runs/jaxllm.bundle pod:jaxllm.bundle {every}",
        f"{pod} ssh pod {every} '--command=set -e; mkdir -p /s/runs; git init --quiet jaxllm; cd jaxllm; git fetch "
        f"--quiet ../jaxllm.bundle HEAD; git checkout --quiet --force --detach {commit.strip()}; ln -sfn /s/runs runs; "
        "true; EXTRAS=tpu LOGS=/s/logs/pod PYTHON=python3 bash launch/host.sh --setup'",
        f"{pod} ssh pod {every} '--command=cd jaxllm && JAXLLM_DISTRIBUTED=auto LOGS=/s/logs/pod ATTEMPT={stamp} "
        "bash launch/host.sh --stop train configs/x.py name=a\\ b'",
        f"{pod} ssh pod --zone=zone-a --worker=0 --node=0 '--command=source jaxllm/launch/launcher.sh && codes_of "
        f"/s/logs/pod {stamp}'",
        "mkdir -p runs/logs",
        f"{pod} scp --recurse pod:/s/logs/pod runs/logs --zone=zone-a --worker=0 --node=0",
    ]
    assert done.returncode == 0 and not (stage.book / "calls").exists() and not (checkout / "runs").exists()
