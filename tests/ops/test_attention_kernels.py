"""Kernels for accelerators, imitated on the CPU, against the reference; what each can do, and the choice among them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.core.errors import ConfigError
from jaxllm.ops.attention import ABILITIES, Choice, Kernel, Scoring, Wanted, attention, choose
from jaxllm.ops.attention.pallas_gpu import _block as gpu_block
from jaxllm.ops.attention.splash import _block as splash_block
from tests.ops.test_attention import draw

Arrays = tuple[jax.Array, ...]
# (kernel, (B, S, H, G, K), scoring). Splash: five blocks of queries, the last one padded; Pallas: two blocks, and a
# width that is no power of two.
CASES: list[tuple[Kernel, tuple[int, int, int, int, int], Scoring]] = [
    ("splash", (1, 530, 6, 2, 8), Scoring(0.5, softcap=1.5, window=70)),
    ("pallas_gpu", (2, 150, 6, 2, 24), Scoring(5.0)),
    ("cudnn", (2, 80, 6, 2, 16), Scoring(5.0, window=30)),
]
# What another kernel than the one meant would compute.
CHANGES = {"divisor": 3.3, "softcap": 1.6, "window": 29}


def inputs(kernel: Kernel, shape: tuple[int, int, int, int, int], dtype: str) -> Arrays:
    q, k, v, segments = draw(shape, dtype)
    dy = jnp.asarray(np.random.default_rng(0).standard_normal(q.shape), dtype)
    return q, k, v, segments if ABILITIES[kernel].documents else 0 * segments, dy


@functools.partial(jax.jit, static_argnames=("kernel", "scoring"))
def pulled(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, dy: jax.Array, *, kernel: Kernel, scoring: Scoring
) -> Arrays:
    """(result, gradients of q, k and v)."""
    call = functools.partial(attention, kernel=kernel, scoring=scoring, interpret=True)
    out, pull = jax.vjp(lambda q, k, v: call(q, k, v, segments), q, k, v)
    return out, *pull(dy)


def hold(ours: Arrays, reference: Arrays, tolerance: float) -> None:
    for got, expected in zip(ours, reference, strict=True):
        scale = max(1.0, float(jnp.abs(expected.astype(jnp.float32)).max()))
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(
            np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=tolerance * scale, rtol=0
        )


@pytest.mark.parametrize(("kernel", "shape", "scoring"), CASES, ids=str)
def test_result_and_gradients_are_those_of_the_reference(
    kernel: Kernel, shape: tuple[int, int, int, int, int], scoring: Scoring
) -> None:
    arrays = inputs(kernel, shape, "float32")
    ours = pulled(*arrays, kernel=kernel, scoring=scoring)
    hold(ours, pulled(*arrays, kernel="reference", scoring=scoring), 3e-6)
    q, k, v, segments, dy = arrays
    others = [(arrays, Scoring(**{**vars(scoring), n: x})) for n, x in CHANGES.items() if vars(scoring)[n] is not None]
    if ABILITIES[kernel].documents:
        others.append(((q, k, v, segments.at[:, segments.shape[1] // 2 :].add(5), dy), scoring))
    for (q, k, v, segments, _), changed in others:
        with pytest.raises(AssertionError):
            hold(ours[:1], (attention(q, k, v, segments, kernel="reference", scoring=changed),), 3e-6)


@pytest.mark.parametrize("kernel", ["splash", "pallas_gpu", "cudnn"])
def test_bfloat16_stays_close(kernel: Kernel) -> None:
    q, k, v, segments, _ = inputs(kernel, (1, 130, 4, 2, 16), "bfloat16")
    run = functools.partial(attention, kernel=kernel, scoring=Scoring(4.0), interpret=True)
    ours = jax.jit(run)(q, k, v, segments)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    exact = attention(q, k, v, segments, kernel="reference", scoring=Scoring(4.0))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float32), exact, atol=2e-2, rtol=0)


def test_blocks_fit_the_hardware() -> None:
    for S in range(128, 4097, 128):
        assert S % splash_block(S) == 0 == splash_block(S) % 128
    assert [splash_block(S) for S in (128, 512, 640, 2048, 4096)] == [128, 512, 128, 512, 512]
    # As compiled for an H100: twice the block does not fit into its shared memory.
    assert [gpu_block(4096, K, size) for K, size in ((128, 2), (64, 4), (80, 2), (128, 4), (256, 2), (256, 4))] == [
        *[128] * 3,
        *[64] * 2,
        32,
    ]
    assert [gpu_block(S, 64, 2) for S in (5, 16, 17, 100, 5000)] == [16, 16, 32, 128, 128]


# ---- the choice ------------------------------------------------------------------------------------------------------

PLAIN = Wanted(seq_len=4096, head_width=128, dtype="bfloat16", documents=True)


def wanted(**changes: object) -> Wanted:
    return Wanted(**{**vars(PLAIN), **changes})


@pytest.mark.parametrize(
    ("platform", "changes", "chosen"),
    [
        ("cpu", {}, "blocks"),
        ("cpu", {"alibi": True, "softcap": True, "windows": True, "dtype": "float32"}, "blocks"),
        ("cpu", {"seq_len": 100}, "reference (blocks pays from 128 positions on)"),
        ("tpu", {}, "splash"),
        ("tpu", {"softcap": True, "windows": True, "dtype": "float32", "head_width": 100, "seq_len": 77}, "splash"),
        ("tpu", {"alibi": True}, "reference (splash has no ALiBi)"),
        ("gpu", {"documents": False}, "cudnn"),
        ("gpu", {"documents": False, "windows": True}, "cudnn"),
        ("gpu", {}, "pallas_gpu (cudnn does not keep documents apart (data.attention=document))"),
        ("gpu", {"documents": False, "dtype": "float32"}, "pallas_gpu (cudnn takes bfloat16, not float32)"),
        (
            "gpu",
            {"documents": False, "head_width": 100},
            "pallas_gpu (cudnn takes heads whose width is a multiple of 8, not 100)",
        ),
        (
            "gpu",
            {"documents": False, "head_width": 256},
            "pallas_gpu (cudnn takes heads up to a width of 128, not 256)",
        ),
        ("gpu", {"softcap": True}, "reference (cudnn has no softcap; pallas_gpu has no softcap)"),
        (
            "gpu",
            {"windows": True},
            "reference (cudnn does not keep documents apart (data.attention=document); "
            "pallas_gpu has no sliding window)",
        ),
    ],
)
def test_auto_takes_the_first_that_can_and_says_why(platform: str, changes: dict[str, object], chosen: str) -> None:
    assert str(choose("auto", platform, wanted(**changes))) == chosen


def test_a_named_kernel_is_taken_as_asked() -> None:
    assert choose("reference", "cpu", PLAIN) == Choice("reference")
    assert choose("blocks", "gpu", wanted(seq_len=100)) == Choice("blocks")
    assert choose("splash", "tpu", PLAIN) == Choice("splash")


@pytest.mark.parametrize(
    ("kernel", "platform", "changes", "message"),
    [
        ("splash", "cpu", {}, "compute.attention=splash: it runs on tpu, not on cpu; use blocks or reference, or auto"),
        ("splash", "tpu", {"alibi": True}, "compute.attention=splash: it has no ALiBi; use reference, or auto"),
        (
            "cudnn",
            "gpu",
            {},
            "compute.attention=cudnn: it does not keep documents apart (data.attention=document); "
            "use pallas_gpu or reference, or auto",
        ),
        ("auto", "rocm", {}, "there are no attention kernels for the platform 'rocm'; use cpu, gpu or tpu"),
    ],
)
def test_a_kernel_that_cannot_is_refused(
    kernel: Kernel, platform: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(kernel, platform, wanted(**changes))
    assert str(caught.value) == message
