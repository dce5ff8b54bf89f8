"""The job file, run with stand-ins for Slurm's programs: two nodes, a process on each."""

import argparse
import os
import re
import signal
from pathlib import Path

import pytest

from tests.launch.stand_ins import ROOT, Stage, codes

JOB = ROOT / "launch/slurm.sbatch"

# Runs every task here, with what Slurm tells a task; leaves with the highest code, as srun does.
SRUN = """
asked = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
command = arguments[[a.startswith("--") for a in arguments].index(False):]
tasks, nodes = int(asked.get("ntasks", os.environ["SLURM_NTASKS"])), int(os.environ["SLURM_JOB_NUM_NODES"])
running = []
for task in range(tasks):
    node, local = divmod(task, tasks // nodes)
    told = {
        "SLURM_PROCID": task, "SLURM_LOCALID": local, "SLURM_NODEID": node, "SLURM_NTASKS": tasks,
        "SLURM_STEP_NODELIST": f"node[01-{nodes:02}]", "SLURM_STEP_NUM_NODES": nodes,
    }
    env = os.environ | {k: str(v) for k, v in told.items()}
    running.append(subprocess.Popen(command, env=env, start_new_session=True))
(book / "groups").write_text(" ".join(str(r.pid) for r in running))
sys.exit(max(128 - c if c < 0 else c for c in (r.wait() for r in running)))
"""

# As Slurm does it: the signal goes to every process of a task's group.
SCANCEL = """
for group in (book / "groups").read_text().split():
    os.killpg(int(group), signal.SIGTERM)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.python("srun", SRUN)
    made.python("scancel", SCANCEL)
    made.python("scontrol", "")
    made.python("sbatch", "")
    return made


def job(stage: Stage, **more: str) -> dict[str, str]:
    """The environment in which Slurm starts the file."""
    told = {"SLURM_JOB_ID": "4242", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}
    ours = {"ENVIRONMENT": str(stage.environment), "LOGS": str(stage.folder / "logs"), "EXTRAS": ""}
    return {
        **told,
        **ours,
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
        **more,
    }


@pytest.mark.parametrize(
    ("starts", "code", "made"),
    [
        (["0 0"], 0, 1),
        (["75 75", "KILL 1", "0 0"], 0, 3),
        (["75 2"], 2, 1),
        (["KILL 3"], 3, 1),
        (["1 1"], 1, 1),
    ],
)
def test_a_job_starts_its_run_again_until_it_is_finished(
    stage: Stage, tmp_path: Path, starts: list[str], code: int, made: int
) -> None:
    stage.plan(*starts)
    done = stage.run("bash", str(JOB), "train", "configs/x.py", "name=a b", cwd=tmp_path, **job(stage))
    assert (done.returncode, stage.starts(0), stage.starts(1)) == (code, made, made), done.stderr
    words = [("137" if w == "KILL" else w) for line in starts for w in line.split()]
    names = [f"host{p}/attempt-0-{a + 1}.process-{p}" for a in range(made) for p in range(2)]
    assert codes(stage.folder / "logs") == dict(zip(names, words, strict=True))
    assert stage.calls("scontrol") == []
    assert (stage.book / "arguments.1").read_text().splitlines() == ["train", "configs/x.py", "name=a b"]
    assert stage.seen_environment(1)["SRUN_CPUS_PER_TASK"] == "64"


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_is_about_to_end_saves_and_queues_again(stage: Stage, tmp_path: Path, code: int) -> None:
    """Whatever scancel makes of it."""
    stage.plan("WAIT WAIT")
    stage.python("scancel", f"{SCANCEL}\nsys.exit({code})")
    process = stage.start("bash", str(JOB), "train", "x.py", cwd=tmp_path, **job(stage, SLURM_RESTART_COUNT="2"))
    stage.wait_for("waits.0", "waits.1")
    process.send_signal(signal.SIGUSR1)  # to the batch shell alone: --signal=B:USR1@300
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert stage.calls("scancel") == [["--signal=TERM", "4242"]]
    assert stage.calls("scontrol") == [["requeue", "4242"]]
    assert out.count("asked 1 times") == 2 and stage.starts(0) == 1
    assert codes(stage.folder / "logs") == {f"host{p}/attempt-2-1.process-{p}": "75" for p in range(2)}


@pytest.mark.parametrize(("per_node", "devices"), [("1", [0, 1, 2, 3, 4, 5, 6, 7]), ("8", [3])])
def test_jax_finds_its_place(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_node: str, devices: list[int]
) -> None:
    """Asked for its own detection, with what a task sees, jax comes to the right process and the right devices."""
    from jax._src.clusters import ClusterEnv

    tasks = 2 * int(per_node)
    stage.plan(" ".join(["0"] * tasks))
    done = stage.run(
        "bash", str(JOB), "train", cwd=tmp_path, **job(stage, SLURM_NTASKS_PER_NODE=per_node, SLURM_NTASKS=str(tasks))
    )
    assert done.returncode == 0, done.stderr
    last = tasks - 1 if per_node == "1" else 11
    seen = stage.seen_environment(last)
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "JAX", "OMPI")):
            monkeypatch.delenv(name)
    for name, value in seen.items():
        if name.startswith(("SLURM_", "JAX")):
            monkeypatch.setenv(name, value)
    # As jax.distributed.initialize has it before it looks around.
    told = [int(i) for i in seen["JAX_LOCAL_DEVICE_IDS"].split(",")] if "JAX_LOCAL_DEVICE_IDS" in seen else None
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, told, None, 5)
    assert found == (f"node01:{61440 + 4242 % 4096}", tasks, last, devices)
    assert seen["JAXLLM_DISTRIBUTED"] == "auto"
    binding = [c for c in stage.calls("srun") if "--gpu-bind=none" in c]
    assert len(binding) == 1  # a task that saw one GPU alone would not find the one that is its own


OPTIONS = ("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "output", "open-mode")


def header(text: str) -> argparse.Namespace:
    """The #SBATCH lines as sbatch reads them: up to the first command, options it knows. SystemExit otherwise."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in (*OPTIONS, "signal"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--requeue", action="store_true")
    words = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        words += line.removeprefix("#SBATCH ").split() if line.startswith("#SBATCH ") else []
    return parser.parse_args(words)


def test_the_header_asks_to_be_warned_and_to_queue_again() -> None:
    asked = header(JOB.read_text())
    assert asked.requeue and asked.open_mode == "append"
    said = re.fullmatch(r"B:(\w+)@(\d+)", asked.signal)
    assert said is not None
    assert f"trap leave {said[1]}" in JOB.read_text() and int(said[2]) >= 120


@pytest.mark.parametrize("wrong", ["#SBATCH --nodse=8", "#SBATCH --signal"])
def test_a_wrong_header_is_seen(wrong: str) -> None:
    with pytest.raises(SystemExit):
        header(JOB.read_text().replace("#SBATCH --requeue", wrong))


def test_a_header_behind_a_command_does_not_count() -> None:
    with pytest.raises(SystemExit):
        header(JOB.read_text().replace("#SBATCH --time", "true\n#SBATCH --time"))


def test_dry_run_prints_the_commands_and_does_nothing(stage: Stage) -> None:
    done = stage.run("bash", str(JOB), "--dry-run", "train", "configs/x.py", "name=a b", LOGS="/logs")
    place = (
        "env JAXLLM_DISTRIBUTED=auto EXTRAS=cuda12 LOGS=/logs SRUN_CPUS_PER_TASK=64 "
        "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"
    )
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "sbatch launch/slurm.sbatch train configs/x.py 'name=a b'",
            f"{place} srun --ntasks=8 --ntasks-per-node=1 bash launch/host.sh --setup",
            f"{place} ATTEMPT=0-1 srun --kill-on-bad-exit=0 --wait=120 --gpu-bind=none "
            "bash launch/host.sh train configs/x.py 'name=a b'",
        ],
    )
    assert not (stage.book / "calls").exists()


@pytest.mark.parametrize(
    ("arguments", "told", "says"),
    [
        ([], {}, "say what to run"),
        (["train", "x.py"], {}, "this is a job: sbatch launch/slurm.sbatch train x.py"),
        (["train"], {"SLURM_SUBMIT_DIR": "/tmp"}, "is no checkout of jaxllm"),
    ],
)
def test_what_cannot_be_a_job_is_one_line(stage: Stage, arguments: list[str], told: dict[str, str], says: str) -> None:
    done = stage.run("bash", str(JOB), *arguments, **told)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
