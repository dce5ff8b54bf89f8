"""What the numerics fingerprint sees, and what it overlooks on purpose."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from jaxllm.checkpoint.fingerprint import (
    Fingerprint,
    collect,
    cpu_isa,
    cpu_model,
    decode,
    differences,
    encode,
    xla_flags,
    xla_threads,
)
from jaxllm.core.errors import ConfigError
from tests.checkpoint.states import FINGERPRINT

SKYLAKE = "model name\t: Some Xeon\nflags\t\t: fpu sse4_2 avx fma avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
ARM = "CPU implementer\t: 0x41\nCPU part\t: 0xd4f\nFeatures\t: fp asimd sve sve2"


def test_collected_here_and_round_trip() -> None:
    found = collect(mesh={"dp": 1}, compute={"remat": "none", "micro_batch": None})
    assert found == collect(mesh={"dp": 1}, compute={"remat": "none", "micro_batch": None})
    assert found.versions.keys() == {"jax", "jaxlib", "flax", "optax", "numpy"} and found.devices >= 1
    if found.platform == "cpu":
        assert found.cpu_isa and found.cpu_model and found.threads
    again = decode(json.loads(json.dumps(encode(found))))
    assert again == found and again.sha256 == found.sha256 and differences(found, again) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": {"jax": "1"}}, ['versions.jax: "0" -> "1"']),
        ({"threads": 8}, ["threads: 2 -> 8"]),
        ({"cpu_isa": "avx512"}, ['cpu_isa: "avx2" -> "avx512"']),
        ({"mesh": {"dp": 1, "fsdp": 2, "tp": 1}}, ["mesh.fsdp: 1 -> 2"]),
        ({"compute": {"remat": "full", "micro_batch": None}}, ['compute.remat: "none" -> "full"']),
        ({"xla_flags": ("--a=1",)}, ['xla_flags: [] -> ["--a=1"]']),
    ],
)
def test_a_difference_is_named(change: dict, said: list[str]) -> None:
    changed = dataclasses.replace(FINGERPRINT, **change)
    assert differences(FINGERPRINT, changed) == said
    assert changed.sha256 != FINGERPRINT.sha256


def test_every_field_is_in_the_hash() -> None:
    other = {str: "x", int: 99, tuple: ("x",), dict: {"x": 1}}
    for field in dataclasses.fields(Fingerprint):
        kind = type(getattr(FINGERPRINT, field.name))
        change: dict[str, Any] = {field.name: {"x": "1"} if field.name in ("versions", "jax_options") else other[kind]}
        assert dataclasses.replace(FINGERPRINT, **change).sha256 != FINGERPRINT.sha256, field.name


def test_a_broken_one_is_named() -> None:
    with pytest.raises(ConfigError, match=r"fingerprint.threads='many'|fingerprint.threads=\"many\""):
        decode(encode(FINGERPRINT) | {"threads": "many"})


@pytest.mark.parametrize(
    ("cpuinfo", "cap", "isa"),
    [
        (SKYLAKE, None, "avx512"),
        (SKYLAKE + " avx512_vnni", None, "avx512_vnni"),
        (SKYLAKE + " avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16", None, "amx"),
        (SKYLAKE + " avx512_vnni", "AVX2", "avx2"),
        (SKYLAKE, "AMX", "avx512"),
        (SKYLAKE.replace("avx512vl", ""), None, "avx2"),
        (SKYLAKE.replace(" fma", "") + " avx512_vnni", None, "avx"),
        (ARM, None, "sve2"),
    ],
)
def test_instruction_sets(cpuinfo: str, cap: str | None, isa: str) -> None:
    assert cpu_isa(cpuinfo, cap) == isa


def test_models() -> None:
    assert (cpu_model(SKYLAKE), cpu_model(ARM)) == ("Some Xeon", "0x41 0xd4f")
    assert cpu_isa("") and cpu_model("")  # no /proc/cpuinfo: the machine's name


def test_threads() -> None:
    assert xla_threads({"NPROC": "32"}) == 32
    assert xla_threads({"NPROC": "x"}) == xla_threads({}) >= 1


def test_flags_are_canonical() -> None:
    assert xla_flags("--b=2  --a --b=3 --xla_dump_to=/tmp/x --xla_force_host_platform_device_count=8") == (
        "--a=true",
        "--b=3",
    )
    assert xla_flags("--b=3 --a=true") == xla_flags("--a --b=3")


@pytest.mark.slow
def test_the_environment_is_seen() -> None:
    code = (
        "from jaxllm.checkpoint.fingerprint import collect, encode; import json;"
        "print(json.dumps(encode(collect({'dp': 4}, {}))))"
    )
    flags = "--xla_force_host_platform_device_count=4 --xla_cpu_max_isa=AVX"
    env = os.environ | {"NPROC": "3", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["devices"], found["threads"], found["processes"]) == (4, 3, 1)
    assert found["xla_flags"] == ["--xla_cpu_max_isa=AVX"] and found["jax_options"]["jax_enable_x64"] == "True"


def test_reading_one_needs_no_jax() -> None:
    code = (
        "import sys, jaxllm.checkpoint.manifest, jaxllm.checkpoint.layout, jaxllm.checkpoint.disk;"
        "assert not {'jax', 'orbax', 'flax', 'optax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
