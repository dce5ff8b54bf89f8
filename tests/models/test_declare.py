"""One declaration per parameter: what derives from it, and initial values by name."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllm.models.config import Attention, Model, NormalInit, SwiGlu
from jaxllm.models.declare import Declaration, Params, init, param, stack
from jaxllm.models.decoder import describe
from tests.models.small import MODEL

Array = np.ndarray[Any, Any]

# path: axes, role, what a token is multiplied with
EXPECTED = {
    "embed.table": (("vocab", "embed"), "embedding"),
    "blocks.attention_norm.scale": (("layers", "norm"), "norm"),
    "blocks.attention.q": (("layers", "embed", "heads", "head"), "matrix"),
    "blocks.attention.k": (("layers", "embed", "kv_heads", "head"), "matrix"),
    "blocks.attention.v": (("layers", "embed", "kv_heads", "head"), "matrix"),
    "blocks.attention.o": (("layers", "heads", "head", "embed"), "matrix"),
    "blocks.mlp_norm.scale": (("layers", "norm"), "norm"),
    "blocks.mlp.gate": (("layers", "embed", "ffn"), "matrix"),
    "blocks.mlp.up": (("layers", "embed", "ffn"), "matrix"),
    "blocks.mlp.down": (("layers", "ffn", "embed"), "matrix"),
    "norm.scale": (("norm",), "norm"),
    "head.kernel": (("embed", "vocab"), "head"),
}


def test_what_the_decoder_declares() -> None:
    declared = {leaf.path: (leaf.axes, leaf.declaration.role) for leaf in describe(MODEL).leaves}
    assert declared == EXPECTED
    tied = describe(dataclasses.replace(MODEL, tied_embeddings=True))
    assert {leaf.path for leaf in tied.leaves} == set(EXPECTED) - {"head.kernel"}


def test_sizes_follow_the_axes() -> None:
    sizes = {"layers": 3, "embed": 20, "norm": 20, "heads": 6, "kv_heads": 2, "head": 8, "ffn": 44, "vocab": 61}
    for leaf in describe(MODEL).leaves:
        assert leaf.shape == tuple(sizes[axis] for axis in leaf.axes), leaf.path
        assert (leaf.dtype, leaf.nbytes) == (jnp.float32, 4 * math.prod(leaf.shape))
        assert leaf.stacked == leaf.path.startswith("blocks.")


def test_fan_in_is_what_an_output_sums_over() -> None:
    fan_in = {leaf.path: leaf.declaration.fan_in for leaf in describe(MODEL).leaves}
    assert fan_in["blocks.attention.q"] == fan_in["blocks.mlp.gate"] == fan_in["head.kernel"] == MODEL.width
    assert fan_in["blocks.attention.o"] == 6 * 8
    assert fan_in["blocks.mlp.down"] == 44


def test_nothing_is_allocated() -> None:
    giant = Model(
        vocab_size=32_032,
        width=8192,
        layers=80,
        attention=Attention(heads=64, kv_heads=64, head_width=128),
        ffn=SwiGlu(width=22_016),
    )
    assert sum(leaf.nbytes for leaf in describe(giant).leaves) > 2**37


def test_trees_of_all_kinds_have_the_shape_of_the_params() -> None:
    declared = describe(MODEL)
    params = jax.jit(lambda: init(declared, 0))()
    paths = declared.tree(lambda leaf: leaf.path)
    assert jax.tree.structure(paths) == jax.tree.structure(params)
    assert paths["blocks"]["attention"]["q"] == "blocks.attention.q"
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), declared.abstract()
    )
    assert list(declared.named(params)) == [leaf.path for leaf in declared.leaves]
    assert declared.named(params)["norm.scale"] is params["norm"]["scale"]


def test_params_find_their_place_in_the_module() -> None:
    declared = describe(MODEL)
    numbered = declared.tree(lambda leaf: jnp.full(leaf.shape, float(declared.leaves.index(leaf))))
    model = declared.bind(numbered)
    for i, leaf in enumerate(declared.leaves):
        module: Any = model
        for name in leaf.path.split("."):
            module = getattr(module, name)
        assert float(module[...].ravel()[0]) == i, leaf.path


def test_a_tree_of_another_model_is_refused() -> None:
    tied = describe(dataclasses.replace(MODEL, tied_embeddings=True))
    with pytest.raises(ValueError, match=r"[Dd]ict"):
        describe(MODEL).bind(tied.tree(lambda leaf: jnp.zeros(leaf.shape)))


# ---- initial values --------------------------------------------------------------------------------------------------


def values(declared: Params[Any], seed: int = 5) -> dict[str, Array]:
    params = jax.jit(lambda: init(declared, seed))()
    return {path: np.asarray(x) for path, x in declared.named(params).items()}


def test_initial_values_are_drawn_as_declared() -> None:
    wide = dataclasses.replace(MODEL, width=256, init=NormalInit(std=0.1, residual="depth_scaled"))
    declared = describe(wide)
    by_path = values(declared)
    for leaf in declared.leaves:
        x = by_path[leaf.path]
        if leaf.declaration.role == "norm":
            assert (x == 1).all()
            continue
        written = leaf.path in ("blocks.attention.o", "blocks.mlp.down")
        std = 0.1 / math.sqrt(2 * 3) if written else 0.1
        assert x.std() == pytest.approx(std, rel=0.02), leaf.path
        assert abs(x.mean()) < 4 * std / math.sqrt(x.size)
        assert (x**4).mean() / x.var() ** 2 == pytest.approx(3, rel=0.1)  # as a normal distribution has it
    plain = values(describe(dataclasses.replace(wide, init=NormalInit(std=0.1))))
    np.testing.assert_allclose(plain["blocks.mlp.down"], by_path["blocks.mlp.down"] * math.sqrt(6), rtol=1e-6)


def test_no_two_arrays_and_no_two_layers_are_equal() -> None:
    by_path = values(describe(MODEL))
    assert not np.array_equal(by_path["blocks.mlp.gate"], by_path["blocks.mlp.up"])
    assert not np.array_equal(by_path["blocks.mlp.gate"][0], by_path["blocks.mlp.gate"][1])
    assert not np.array_equal(values(describe(MODEL), seed=6)["embed.table"], by_path["embed.table"])


class Some(nnx.Module):
    """A module whose parameters bear the given names."""

    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, param((40, 8), ("embed", "ffn"), Declaration(role="matrix", std=1.0)))


def test_what_else_there_is_changes_no_bit() -> None:
    alone = values(Params(lambda: Some("b")))
    beside = values(Params(lambda: Some("a", "b", "c")))
    np.testing.assert_array_equal(alone["b"], beside["b"])
    assert not np.array_equal(values(Params(lambda: Some("d")))["d"], alone["b"])  # a new name is a new draw
    tied = values(describe(dataclasses.replace(MODEL, tied_embeddings=True)))
    untied = values(describe(MODEL))
    for path, x in tied.items():
        np.testing.assert_array_equal(x, untied[path], err_msg=path)


def test_stacking_is_the_module_with_one_axis_more() -> None:
    one, three = Params(lambda: Some("a")).leaves[0], Params(lambda: stack(lambda: Some("a"), 3)).leaves[0]
    assert three.shape == (3, *one.shape)
    assert three.axes == ("layers", *one.axes)
    assert three.declaration == one.declaration


@pytest.mark.parametrize("axes", [("embed",), ("embed", "fnn"), ("embed", "batch")], ids=str)
def test_a_wrong_declaration_is_an_error(axes: Any) -> None:
    with pytest.raises(AssertionError, match="axes"):
        param((4, 4), axes, Declaration(role="matrix"))
