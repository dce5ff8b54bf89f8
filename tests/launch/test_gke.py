"""The manifest, filled in, is what Kubernetes and JobSet take; the driver applies it and waits."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.decode import DecodeError, check_jobset, decode
from tests.launch.stand_ins import ROOT, Stage

KUBECTL = """
told = {"jobset": "jsonpath={.status.terminalState}", "pods": "name"}
verb, *rest = arguments[1:]
if verb == "apply":
    (book / "applied").write_text(sys.stdin.read())
elif verb == "get" and rest[0] == "jobset":
    states = book / "states"
    first, *later = states.read_text().split()
    states.write_text(" ".join(later or [first]))
    if first == "away":
        sys.exit("no answer")
    print("" if first == "running" else first, end="")
elif verb == "get" and rest[-1] == "--output=name":
    print("pod/pod-hosts-0-0-abcde pod/pod-hosts-0-1-fghij".replace(" ", chr(10)))
elif verb == "get":
    print((book / "exits").read_text(), end="")
elif verb == "logs":
    print("said by", rest[0])
elif verb != "delete":
    sys.exit(f"unknown command {verb}")
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.python("kubectl", KUBECTL)
    # Whatever state this checkout is in, the driver finds a commit in it.
    made.shell(
        "git", 'case "$*" in *rev-parse*) echo 0123abc ;; *"remote get-url"*) echo https://example.org/r ;; esac'
    )
    return made


def drive(stage: Stage, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return stage.run("bash", "launch/gke.sh", *arguments, **({"NAME": "pod"} | more))


def dry(stage: Stage, *arguments: str, **more: str) -> tuple[str, dict[str, Any]]:
    """The command that a dry run prints, and the manifest it would be given."""
    done = drive(stage, "--dry-run", *arguments, **more)
    assert done.returncode == 0 and not (stage.book / "calls").exists(), done.stderr
    first, *text, last = done.stdout.splitlines()
    assert last == "EOF" and "${" not in done.stdout
    return first, yaml.safe_load("\n".join(text))


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def variables(manifest: dict[str, Any]) -> dict[str, Any]:
    [container] = pod_of(manifest)["containers"]
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


@pytest.mark.parametrize("spot", ["yes", "no"])
@pytest.mark.parametrize("machines", ["tpu", "gpu"])
def test_the_manifest_is_what_the_cluster_takes(stage: Stage, machines: str, spot: str) -> None:
    words = ["train", "configs/x.py", 'name="a&b"\\', "note=: #"]
    command, manifest = dry(stage, *words, MACHINES=machines, SPOT=spot)
    assert command == "kubectl --namespace=default apply --filename=- <<'EOF'"
    check_jobset(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    pod = pod_of(manifest)
    [container] = pod["containers"]
    assert container["command"] + container["args"] == ["bash", "launch/host.sh", "--setup", *words]
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == (spot == "yes")
    [kind] = container["resources"]["limits"]
    assert kind == {"tpu": "google.com/tpu", "gpu": "nvidia.com/gpu"}[machines]
    assert any("gke-tpu" in label for label in pod["nodeSelector"]) == (machines == "tpu")
    mounts = {m["name"] for c in pod["containers"] + pod["initContainers"] for m in c["volumeMounts"]}
    assert mounts == {v["name"] for v in pod["volumes"]}


def test_exit_codes_are_the_protocol(stage: Stage) -> None:
    """2 and 3 fail the job by its pod policy, which fails the set; all else fails it too, and the set starts again."""
    _, manifest = dry(stage, "train", "x.py")
    job = decode("V1JobTemplateSpec", manifest["spec"]["replicatedJobs"][0]["template"], "template").spec
    [rule] = job.pod_failure_policy.rules
    assert (rule.action, rule.on_exit_codes.operator, rule.on_exit_codes.values) == ("FailJob", "In", [2, 3])
    assert rule.on_exit_codes.container_name == job.template.spec.containers[0].name
    assert job.template.spec.restart_policy == "Never"  # a pod policy asks for it
    assert (job.backoff_limit, job.completion_mode, job.parallelism) == (0, "Indexed", job.completions)
    policy = manifest["spec"]["failurePolicy"]
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    assert policy["maxRestarts"] > 0


def test_gpu_processes_are_told_their_place(stage: Stage) -> None:
    """The coordinator's name is the one that JobSet gives its first pod: SET-JOB-INDEX-INDEX.SUBDOMAIN."""
    _, manifest = dry(stage, "train", "x.py", MACHINES="gpu", HOSTS="4", NAME="run-7")
    found, spec = variables(manifest), manifest["spec"]
    [job] = spec["replicatedJobs"]
    assert found["JAXLLM_COORDINATOR"] == f"run-7-{job['name']}-0-0.{spec['network']['subdomain']}:8476"
    assert spec["network"]["enableDNSHostnames"] and job["replicas"] == 1
    assert found["JAXLLM_PROCESSES"] == "4" == str(job["template"]["spec"]["parallelism"])
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert found["JAXLLM_PROCESS"] == {"fieldRef": {"fieldPath": index}}
    assert "JAXLLM_DISTRIBUTED" not in found


def test_tpu_processes_let_jax_look(stage: Stage) -> None:
    _, manifest = dry(stage, "train", "x.py", SLICES="2", HOSTS="16")
    found = variables(manifest)
    assert found["JAXLLM_DISTRIBUTED"] == "auto" and not any(n.startswith("JAXLLM_PROC") for n in found)
    [job] = manifest["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 16)
    assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in manifest["metadata"]["annotations"]


def misspell(manifest: dict[str, Any]) -> None:
    pod_of(manifest)["containers"][0]["imagePulPolicy"] = "Always"


def drop(manifest: dict[str, Any]) -> None:
    del pod_of(manifest)["containers"][0]["name"]


def retype(manifest: dict[str, Any]) -> None:
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] = "4"


def outer(manifest: dict[str, Any]) -> None:
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3


def action(manifest: dict[str, Any]) -> None:
    manifest["spec"]["failurePolicy"]["rules"][0]["action"] = "Fail"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (misspell, r"containers\[0\] has no field 'imagePulPolicy'"),
        (drop, r"(?s)containers\[0\].*name.*required"),
        (retype, "parallelism: '4' is not of type int"),
        (outer, "failurePolicy has no field 'maxRestart'"),
        (action, "action: 'Fail' is none of"),
    ],
)
def test_a_wrong_manifest_is_seen(stage: Stage, damage: Callable[[dict[str, Any]], None], says: str) -> None:
    _, manifest = dry(stage, "train", "x.py")
    damage(manifest)
    with pytest.raises(DecodeError, match=says):
        check_jobset(manifest)


@pytest.mark.parametrize(
    ("states", "exits", "code"),
    [("running away away Completed", "", 0), ("Failed", "2 143", 2), ("running Failed", "75 75", 75)],
)
def test_it_applies_waits_and_gathers_logs(stage: Stage, tmp_path: Path, states: str, exits: str, code: int) -> None:
    (stage.book / "states").write_text(states)
    (stage.book / "exits").write_text(exits)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "launch").symlink_to(ROOT / "launch")
    done = stage.run("bash", "launch/gke.sh", "train", "x.py", cwd=checkout, NAME="pod")
    assert done.returncode == code, done.stderr
    check_jobset(yaml.safe_load((stage.book / "applied").read_text()))
    for pod in ("pod-hosts-0-0-abcde", "pod-hosts-0-1-fghij"):
        assert (checkout / f"runs/logs/pod/{pod}/last.log").read_text() == f"said by pod/{pod}\n"


def test_a_cluster_that_does_not_answer_is_no_failed_run(stage: Stage) -> None:
    (stage.book / "states").write_text("running away")
    done = drive(stage, "train", "x.py")
    assert done.returncode == 75 and "has not told the state of pod five times" in done.stderr
    assert "failed" not in done.stderr


def test_delete_and_dry_commands(stage: Stage) -> None:
    assert drive(stage, "--dry-run", "delete").stdout == (
        "kubectl --namespace=default delete jobset pod --ignore-not-found\n"
    )
    assert drive(stage, "--dry-run", "logs").stdout == (
        "kubectl --namespace=default logs --selector=jobset.sigs.k8s.io/jobset-name=pod --container=jaxllm --prefix "
        "--tail=-1\n"
    )
    assert not (stage.book / "calls").exists()


@pytest.mark.parametrize(
    ("arguments", "told", "says"),
    [([], {}, "say what to run"), (["train", "x.py"], {"MACHINES": "cpu"}, "MACHINES=cpu: tpu or gpu")],
)
def test_what_cannot_be_is_one_line(stage: Stage, arguments: list[str], told: dict[str, str], says: str) -> None:
    done = drive(stage, *arguments, **told)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
