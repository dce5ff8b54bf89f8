"""The table of flags: known to the compilers it is for, set where the user has set nothing, harmless on a CPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from jaxllm.cli import main
from jaxllm.core.environment import Platform, expected_platform
from jaxllm.core.xla_flags import TABLE, VARIABLE, settle_flags

QUICKSTART = "configs/quickstart.py"


def test_every_row_says_why_and_where_from() -> None:
    rows = [flag for flags in TABLE.values() for flag in flags]
    assert len({flag.name for flag in rows}) == len(rows)
    assert all(flag.reason and flag.source and flag.seen and flag.value for flag in rows)
    assert all(flag.name.startswith("xla_") for flag in rows)


def test_nothing_is_set_for_a_cpu() -> None:
    """Its bits, and the fingerprints of runs so far, stay."""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    assert settle_flags("table", env, "cpu") is None
    assert env == {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_table_is_set_once_and_said(platform: Platform) -> None:
    env: dict[str, str] = {}
    said = settle_flags("table", env, platform)
    variable = VARIABLE[platform]
    assert env == {variable: " ".join(flag.text for flag in TABLE[platform])}
    assert said is not None and said.startswith(f"{variable} += {env[variable]} ") and "\n" not in said
    assert settle_flags("table", env, platform) is None


def test_what_the_user_has_set_stands() -> None:
    given = "--xla_gpu_enable_triton_gemm=true --xla_gpu_enable_pipelined_all_reduce"
    env = {"XLA_FLAGS": given}
    settle_flags("table", env, "gpu")
    assert env["XLA_FLAGS"].startswith(f"{given} --")
    assert env["XLA_FLAGS"].count("triton_gemm") == env["XLA_FLAGS"].count("pipelined_all_reduce") == 1
    assert "--xla_gpu_exclude_nondeterministic_ops=true" in env["XLA_FLAGS"]


def test_a_run_can_go_without() -> None:
    env: dict[str, str] = {}
    assert settle_flags("none", env, "tpu") is None and env == {}


def test_a_file_of_flags_stands_alone() -> None:
    env = {"XLA_FLAGS": "/etc/flags"}
    said = settle_flags("table", env, "gpu")
    assert env == {"XLA_FLAGS": "/etc/flags"} and said is not None and "names a file" in said


@pytest.mark.parametrize(
    ("env", "files", "packages", "platform"),
    [
        ({}, [], [], "cpu"),
        ({}, ["accel0"], ["libtpu"], "tpu"),
        ({}, ["vfio/0"], ["libtpu"], "tpu"),
        ({}, ["vfio/vfio"], ["libtpu"], "cpu"),  # that one is there without any device
        ({}, [], ["libtpu", "jax_cuda12_plugin"], "cpu"),
        ({}, ["nvidia0"], [], "cpu"),
        ({}, ["nvidia0"], ["jax_cuda12_plugin"], "gpu"),
        ({}, ["nvidiactl"], ["jax_cuda13_plugin"], "gpu"),
        ({}, ["accel0", "nvidia0"], ["libtpu", "jax_cuda12_plugin"], "tpu"),
        ({"JAX_PLATFORMS": "cpu"}, ["nvidia0"], ["jax_cuda12_plugin"], "cpu"),
        ({"JAX_PLATFORMS": "cuda,cpu"}, [], [], "gpu"),
        ({"JAX_PLATFORMS": "TPU"}, [], [], "tpu"),
        ({"JAX_PLATFORMS": "rocm"}, ["nvidia0"], ["jax_cuda12_plugin"], "cpu"),
        ({"JAX_PLATFORMS": ""}, ["nvidia0"], ["jax_cuda12_plugin"], "gpu"),
    ],
)
def test_the_platform_is_told_without_jax(
    env: dict[str, str], files: list[str], packages: list[str], platform: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert expected_platform(env, tmp_path, lambda name: name if name in packages else None) == platform


def test_train_sets_them_before_jax_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def flags_at_start(run: object, folder: object) -> dict[str, list[str]]:
        return {"lines": [os.environ.get("XLA_FLAGS", "none")]}

    monkeypatch.setattr("jaxllm.rehearsal.rehearse", flags_at_start)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    train = ["train", QUICKSTART, "--dry-run", f"io.root={tmp_path}"]
    for more, expected in ([], True), (["compute.xla_flags=none"], False):
        monkeypatch.setenv("XLA_FLAGS", "")
        with pytest.raises(SystemExit) as left:
            main([*train, *more])
        out, err = capsys.readouterr()
        assert left.value.code == 0
        assert ("--xla_gpu_enable_triton_gemm=false" in out) == expected == ("XLA_FLAGS +=" in err)


def started(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, timeout=120
    )


def test_jax_knows_the_flags_of_gpus() -> None:
    """XLA reads one set of flags wherever it computes: a CPU client refuses what it does not know."""
    client = "from jaxlib.xla_client import make_cpu_client; print(make_cpu_client().platform)"
    flags = " ".join(flag.text for flag in TABLE["gpu"])
    known = started(client, XLA_FLAGS=flags)
    assert known.stdout == "cpu\n", known.stderr
    unknown = started(client, XLA_FLAGS=f"{flags} --xla_gpu_enable_nothing=true")
    assert unknown.returncode != 0 and "xla_gpu_enable_nothing" in unknown.stderr


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed: it comes with the extra tpu")
def test_libtpu_knows_the_flags_of_tpus() -> None:
    look = (
        "from jax.experimental.topologies import get_topology_desc as topology\n"
        "print(len(topology(platform='tpu', topology_name='v5e:2x2').devices))"
    )
    # No device is there, and other processes may have libtpu open.
    alone = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    flags = " ".join(flag.text for flag in TABLE["tpu"])
    known = started(look, LIBTPU_INIT_ARGS=flags, **alone)
    assert known.stdout == "4\n", known.stderr
    unknown = started(look, LIBTPU_INIT_ARGS=f"{flags} --xla_tpu_enable_nothing=true", **alone)
    assert unknown.returncode != 0 and "xla_tpu_enable_nothing" in unknown.stderr + unknown.stdout
