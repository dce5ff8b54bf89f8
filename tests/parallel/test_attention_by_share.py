"""A kernel that the compiler cannot split is called by every device for its own rows and heads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.assembly import attention_by_share
from jaxllm.core.errors import LayoutError
from jaxllm.ops.attention import Kernel, Scoring, attention
from jaxllm.parallel.config import Mesh
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.shard import Sharder
from tests.ops.test_attention import draw
from tests.simulated import run_simulated


def worst_difference(kernel: Kernel, mesh: dict[str, Any]) -> float:
    """Between one device with the reference and 8 with the kernel, in the result and its gradients."""
    q, k, v, segments = draw((4, 32, 8, 4, 8))

    def pulled(kernel: Kernel, attend: object, **how: bool) -> list[np.ndarray]:
        def call(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend(q, k, v, segments, kernel=kernel, scoring=Scoring(3.0), **how)  # type: ignore[operator]

        out, pull = jax.jit(lambda *x: jax.vjp(call, *x))(q, k, v)
        return [np.asarray(x) for x in (out, *jax.jit(pull)(jnp.cos(out)))]

    by_share = attention_by_share(Sharder(make_mesh(Mesh(**mesh))))
    ours, theirs = pulled(kernel, by_share, interpret=True), pulled("reference", attention)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_eight_devices_attend_as_one() -> None:
    assert run_simulated(worst_difference, kernel="pallas_gpu", mesh={"dp": 1, "fsdp": 2, "tp": 4}) < 3e-6


def uneven() -> str:
    by_share = attention_by_share(Sharder(make_mesh(Mesh(dp=1, tp=8))))
    with pytest.raises(LayoutError) as caught:
        by_share(*draw((4, 32, 8, 4, 8)), kernel="cudnn", scoring=Scoring(3.0))
    return str(caught.value)


def test_heads_that_do_not_divide_are_refused() -> None:
    said = run_simulated(uneven)
    assert "attention_of_a_share, array (4, 32, 4, 8): axis 'kv_heads' of size 4 is not divisible by tp=8" in said
