"""Norms per layer against numpy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.optim.norms import layer_norms


def test_one_norm_per_layer_where_stacked() -> None:
    rng = np.random.default_rng(0)
    tree = {
        "blocks": {"norm": rng.normal(size=(3, 5)), "w": rng.normal(size=(3, 5, 7)).astype(jnp.bfloat16)},
        "head": rng.normal(size=(5, 9)).astype(np.float32),
        "scale": np.float32(-2.0),
    }
    axes = [("layers", "norm"), ("layers", "embed", "ffn"), ("embed", "vocab"), ()]
    paths = ["blocks.norm", "blocks.w", "head", "scale"]
    declared = SimpleNamespace(leaves=[SimpleNamespace(path=p, axes=a) for p, a in zip(paths, axes, strict=True)])
    got = jax.jit(lambda t: layer_norms(declared, t))(tree)
    assert list(got) == paths
    assert all(x.dtype == jnp.float32 for x in got.values())
    for path, x in zip(paths, jax.tree.leaves(tree), strict=True):
        x64 = np.asarray(x, np.float64)
        stacked = path.startswith("blocks")
        expected = np.sqrt((x64.reshape(3, -1) ** 2).sum(1)) if stacked else np.sqrt((x64**2).sum())
        assert got[path].shape == ((3,) if stacked else ())
        np.testing.assert_allclose(got[path], expected, rtol=1e-6)
