"""A run with projections in float8: its loss follows that of bfloat16, it resumes to the bit; what makes no sense is
refused."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxllm.assembly import check_float8
from jaxllm.core.config import override
from jaxllm.core.errors import ConfigError
from jaxllm.ledger.records import StepRecord, read_steps
from jaxllm.plan.make import closed
from jaxllm.plan.measure import measured
from jaxllm.plan.target import target_of
from jaxllm.run import identity_changes
from tests.golden.config import golden as golden_config
from tests.trained import golden, trained

LOW = ("precision.compute=bfloat16",)
FLOAT8 = (*LOW, "precision.projections=float8")
STEPS = 20


def records(place: Path, *more: str, pauses: tuple[int, ...] = ()) -> list[StepRecord]:
    name = "-".join(["run", *map(str, pauses), *(("float8",) if more == FLOAT8 else ())])
    run, folder = golden(place, *more, root=place / name)
    for stop in (*pauses, STEPS):
        trained(run, folder, stop_at=stop)
    return list(read_steps(folder / "steps"))


@pytest.mark.slow
def test_the_loss_follows_bfloat16_and_resumes_to_the_bit(tmp_path: Path) -> None:
    low, coarse = records(tmp_path, *LOW), records(tmp_path, *FLOAT8)
    again = records(tmp_path, *FLOAT8, pauses=(11,))
    assert [r.batch for r in low] == [r.batch for r in coarse]
    a, b = (np.array([r.loss for r in each], np.float64) for each in (low, coarse))
    assert a[-1] < a[0] - 1 and (a != b).any()
    np.testing.assert_allclose(b, a, rtol=1e-2)
    assert [(r.loss_bits, r.grad_norm) for r in again] == [(r.loss_bits, r.grad_norm) for r in coarse]


def test_it_is_identity() -> None:
    run = override(golden_config(), LOW)
    assert identity_changes(run, override(run, FLOAT8)) == ['precision.projections: "compute" -> "float8"']


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("precision.projections=float8",), "give compute=bfloat16 as well"),
        ((*FLOAT8, "model.ffn.width=72"), "model.ffn.width=72 is not a multiple of 16"),
        ((*FLOAT8, "model.attention.kv_heads=1"), "kv_heads x head_width=8 is not a multiple of 16"),
    ],
)
def test_what_cannot_be_is_one_line(more: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        override(golden_config(), more)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_experts_are_refused() -> None:
    from configs.quickstart import moe

    with pytest.raises(ConfigError, match="products of experts"):
        override(moe(), FLOAT8)


def test_chips_without_it_are_refused() -> None:
    run: Any = override(golden_config(), FLOAT8)
    for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "cpu", "an unknown one"):
        check_float8(run, SimpleNamespace(device_kind=kind))  # type: ignore[arg-type]
    for kind in ("NVIDIA A100-SXM4-80GB", "TPU v5p"):
        with pytest.raises(ConfigError, match=f"{kind} has no such products.*h100"):
            check_float8(run, SimpleNamespace(device_kind=kind))  # type: ignore[arg-type]
        check_float8(golden_config(), SimpleNamespace(device_kind=kind))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax-cuda12-plugin is not installed")
def test_cublas_multiplies_in_float8(tmp_path: Path) -> None:
    """Compiled for a GPU: 7 projections, two gradients of each, and what is recomputed; the head's three stay."""
    from configs.bench_accelerator import llama_1b3_2k

    target = target_of("h100", None, 1, 1)
    found = measured(closed(override(llama_1b3_2k(), FLOAT8), target), target, keep_hlo=tmp_path / "hlo")
    assert found.problem is None
    text = (tmp_path / "hlo").read_text()
    assert text.count('custom_call_target="__cublas$lt$matmul$f8"') >= 7 * 3
    assert text.count('custom_call_target="__cublas$lt$matmul"') == 3
