"""The muP preset: published numbers of Crystal, BTLM and SlimPajama-DC, and a coordinate check that can fail."""

import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllm.models.attention import scoring_of
from jaxllm.models.config import Attention, LayerNorm, Model, NormalInit, Rope, SwiGlu
from jaxllm.models.context import Context
from jaxllm.models.declare import Leaf, Params, init
from jaxllm.models.decoder import Decoder, describe
from jaxllm.models.mup import Mup
from jaxllm.models.position import placed, turn_of
from jaxllm.ops.attention import attention
from jaxllm.optim import adamw
from jaxllm.optim.config import AdamW, LrMultiplier, Piece
from jaxllm.optim.groups import roles_of

Array = np.ndarray[Any, Any]


def model_of(width: int, layers: int, *, heads: int = 4, vocab_size: int = 16) -> Model:
    return Model(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        attention=Attention(heads=heads, kv_heads=heads, head_width=width // heads, biases=("q", "k", "v", "o")),
        ffn=SwiGlu(width=width * 8 // 3, bias=True),
        norm=LayerNorm(),
        position=Rope(fraction=0.5, pairs="adjacent"),
        tied_embeddings=True,
    )


def once(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), compiled without LLVM's optimizations: for a single small run they cost more than they
    save."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


# ---- published numbers -----------------------------------------------------------------------------------------------


def test_crystal() -> None:
    model = Mup().apply(model_of(4096, 32, heads=32, vocab_size=32_032))
    assert (model.embedding_scale, model.logit_scale, model.attention.scale) == (14.6, 0.13875, "linear")
    assert scoring_of(model, model.kind(0)).divisor == 128
    assert 0.012 * Mup().matrix_lr(4096) == 7.5e-4
    declared = {leaf.path: leaf.declaration for leaf in describe(model).leaves}
    std = {path: d.std for path, d in declared.items() if d.init == "normal"}
    assert std.pop("embed.table") == 0.073
    assert [std.pop(path) for path in ("blocks.attention.o", "blocks.mlp.down")] == pytest.approx([0.00228125] * 2)
    assert len(std) == 5 and set(std.values()) == {0.01825}
    ends = {d.std * d.cut for d in declared.values() if d.init == "normal" and d.cut is not None}
    assert sorted(ends) == pytest.approx([0.0045625, 0.0365, 0.146])


def test_slimpajama_dc_and_btlm() -> None:
    """width_scale 0.2775 of SlimPajama-DC; the mup_width_scale 0.1 of BTLM's 2560."""
    assert Mup().apply(model_of(2048, 24, heads=16)).logit_scale == pytest.approx(0.2775)
    assert Mup().matrix_lr(2560) == 0.1


def test_at_the_base_width_nothing_is_scaled() -> None:
    model = Mup(base_width=256).apply(model_of(256, 2))
    assert (model.logit_scale, model.init.std, Mup().matrix_lr(256)) == (2.22, 0.073, 1.0)


def test_initial_values_have_the_published_spread() -> None:
    """Crystal's standard deviations, of its width and depth, on few heads: within 2% of what a normal distribution cut
    at two deviations keeps (they are those before the cut), and nothing beyond the cut."""
    wide = Mup().apply(model_of(4096, 32, heads=32))
    declared = describe(
        replace(wide, attention=replace(wide.attention, heads=1, kv_heads=1, head_width=4), ffn=SwiGlu(width=4))
    )
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    kept = math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))
    assert kept == pytest.approx(0.8796, rel=1e-4)
    stds = {
        "embed.table": 0.073,
        "blocks.attention.q": 0.01825,
        "blocks.mlp.up": 0.01825,
        "blocks.attention.o": 0.00228125,
        "blocks.mlp.down": 0.00228125,
    }
    drawn = once(lambda: {path: x for path, x in declared.named(init(declared, 3)).items() if path in stds})
    for path, std in stds.items():
        x = np.asarray(drawn[path])
        assert x.std() == pytest.approx(kept * std, rel=0.02), path
        assert 0.98 * 2 * std < np.abs(x).max() <= 2.0001 * std, path


# ---- coordinate check ------------------------------------------------------------------------------------------------

BASE, LAYERS, STEPS = Mup(base_width=32), 2, 5
B, S, V = 2, 8, 16


def unscaled(width: int) -> Model:
    """The recipe of the base width on a wider model: standard parametrization, equal to muP at the base width."""
    model = Mup(base_width=width).apply(model_of(width, LAYERS))
    K, base_K = model.attention.head_width, BASE.base_width // model.attention.heads
    return replace(model, attention=replace(model.attention, scale=1 / math.sqrt(K * base_K)))


@dataclass(frozen=True)
class Course:
    """Mean |x| before updates 0..4, by what was looked at."""

    stream: Array  # the residual stream after each layer [STEPS, L]
    scores: Array  # attention logits of each layer [STEPS, L]
    logits: Array  # [STEPS]


def course(model: Model, matrix_lr: float) -> Course:
    """Five updates of Adam on one batch, with what activations do meanwhile; the mean over four draws."""
    declared = describe(model)
    multipliers = (LrMultiplier(role="matrix", value=matrix_lr),)
    schedule = (Piece(steps=1, start=0.02, end=0.02),)
    optimizer = adamw.make(
        AdamW(schedule=schedule, weight_decay=0.0, eps=1e-12, lr_multipliers=multipliers), roles_of(declared)
    )
    tokens_BS = np.random.default_rng(0).integers(0, V, (B, S + 1)).astype(np.int32)
    loss = jax.grad(functools.partial(_loss_of, declared, model), has_aux=True)

    def update(state: Any, _: None) -> Any:
        params, opt = state
        grads, sizes = loss(params, tokens_BS)
        updates, opt = optimizer.update(grads, opt, params, lr=0.02)
        return (jax.tree.map(jnp.add, params, updates), opt), sizes

    def run(params: Any) -> Any:
        return jax.lax.scan(update, (params, optimizer.init(params)), None, length=STEPS)[1]

    sizes = once(jax.vmap(run), declared.tree(_draw))
    return Course(*(np.asarray(x).mean(0) for x in sizes))


def _loss_of(declared: Params[Decoder], model: Model, params: Any, tokens_BS: Array) -> Any:
    """Loss of one batch, and the sizes: of the stream and of the scores [L], of the logits []."""
    decoder, context = declared.bind(params), Context()
    scoring = scoring_of(model, model.kind(0))
    same_BS, positions_BS = jnp.zeros((B, S), jnp.int32), jnp.broadcast_to(jnp.arange(S), (B, S))
    turn = turn_of(model.position, positions_BS, model.attention.head_width)
    x_BSD = decoder.embed(tokens_BS[:, :-1], context)

    def place(x_BSHK: jax.Array) -> jax.Array:
        return placed(model.position, x_BSHK, turn)

    def attend(q_BSHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> Any:
        size = jnp.abs(jnp.einsum("BSHK,BTHK->BHST", q_BSHK, k_BSHK) / scoring.divisor).mean()
        return attention(q_BSHK, k_BSHK, v_BSHK, same_BS, kernel="reference", scoring=scoring), size

    graph, blocks = nnx.split(decoder.blocks)

    def layer(x_BSD: jax.Array, block: Any) -> Any:
        x_BSD, size, _ = nnx.merge(graph, block)(x_BSD, place, attend, None, context)
        return x_BSD, (jnp.abs(x_BSD).mean(), size)

    x_BSD, (stream, scores) = jax.lax.scan(layer, x_BSD, blocks)
    logits_BSV = decoder.norm(x_BSD) * model.logit_scale @ decoder.head_VD().T
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits_BSV), tokens_BS[:, 1:, None], -1)
    return -chosen.mean(), (stream, scores, jnp.abs(logits_BSV).mean())


def _draw(leaf: Leaf) -> Array:
    """Four draws as declared, in numpy: compiling the draws would cost more than all the rest."""
    shape = (4, *leaf.shape)
    if leaf.declaration.init != "normal":
        return np.full(shape, float(leaf.declaration.init == "ones"), np.float32)
    cut, dice = leaf.declaration.cut or math.inf, np.random.default_rng(zlib.crc32(leaf.path.encode()))
    return (leaf.declaration.std * np.clip(dice.normal(size=shape), -cut, cut)).astype(np.float32)


def growth(narrow: Array, wide: Array) -> Array:
    """The power of the width with which a size grows from width 32 to 128."""
    return np.log(wide / narrow) / np.log(4)


@pytest.fixture(scope="module")
def courses() -> dict[int, Course]:
    return {w: course(BASE.apply(model_of(w, LAYERS)), BASE.matrix_lr(w)) for w in (32, 64, 128)}


def test_sizes_do_not_move_with_width(courses: dict[int, Course]) -> None:
    """The residual stream at every step; logits and attention once they are learned. What random values give those two
    at the start falls like 1/sqrt(width) and no faster: that is muP's 1/d. Nothing grows."""
    narrow, middle, wide = (courses[w] for w in (32, 64, 128))
    assert np.abs(growth(narrow.stream, wide.stream)).max() < 0.1
    np.testing.assert_allclose(middle.stream, narrow.stream, rtol=0.1)
    assert np.abs(growth(narrow.logits, wide.logits)[2:]).max() < 0.1
    assert growth(narrow.logits, wide.logits).min() > -0.5
    scores = growth(narrow.scores, wide.scores)
    assert scores.min() > -0.6 and scores.max() < 0.0
    assert (scores[-1] > scores[0] + 0.1).all()  # what is learned does not fall
    assert narrow.stream[-1, -1] > 2 * narrow.stream[0, -1]  # and the updates are not too small to see


def test_without_the_preset_they_move(courses: dict[int, Course]) -> None:
    """The check can fail: the recipe of width 32 as it stands, on width 128."""
    narrow, wide = courses[32], course(unscaled(128), 1.0)
    assert growth(narrow.stream, wide.stream)[-1].min() > 1.0
    assert growth(narrow.scores, wide.scores)[-1].min() > 1.0
    assert growth(narrow.logits, wide.logits)[1:].min() > 0.4


def test_both_are_the_same_recipe_at_the_base_width() -> None:
    ours, theirs = BASE.apply(model_of(32, LAYERS)), unscaled(32)
    assert replace(theirs, attention=ours.attention) == ours
    assert scoring_of(theirs, theirs.kind(0)).divisor == pytest.approx(scoring_of(ours, ours.kind(0)).divisor)
    assert isinstance(ours.init, NormalInit) and ours.init.cut == 2.0
