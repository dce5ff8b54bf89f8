"""AdamW against a float64 reference and against optax; what a refused update leaves alone; averages."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.core.errors import ConfigError
from jaxllm.optim import adamw
from jaxllm.optim.config import AdamW, Ema, LrMultiplier, Piece
from jaxllm.optim.groups import decay_mask, multipliers, roles_of

SCHEDULE = (Piece(steps=10, start=1e-2, end=1e-3),)
ROLES = {"embedding": "embedding", "blocks": {"w": "matrix", "norm": "norm"}, "head": "head"}
RATES = [0.0, 1e-3, 1e-2, 5e-3, 2e-3, 1e-3]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    params: Any
    opt: Any
    ema: Any = None


def some_params(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    return {"embedding": draw(9, 4), "blocks": {"w": draw(2, 4, 4), "norm": draw(2, 4)}, "head": draw(4, 9)}


def some_grads(step: int) -> dict[str, Any]:
    return jax.tree.map(lambda x: x * 0.1, some_params(100 + step))


def run(optimizer: AdamW, steps: int = len(RATES), **changes: Any) -> State:
    transform = adamw.make(optimizer, ROLES)
    params = some_params()
    state = State(params, transform.init(params), transform.start_average(params))
    advance = jax.jit(transform.apply)
    for k in range(steps):
        if k == changes.get("forget_moments_at"):
            state = dataclasses.replace(state, opt=transform.init(params))
        if k == changes.get("lose_count_at"):
            state = dataclasses.replace(state, opt=state.opt | {"count": jnp.int32(0)})
        state = advance(state, some_grads(k), np.float32(RATES[k]))
    return state


def reference(optimizer: AdamW, decays: set[str], speeds: dict[str, float]) -> dict[str, Any]:
    """AdamW as in the paper, float64, one array at a time."""

    def one(path: Any, p: Any) -> np.ndarray:
        name = str(path[-1].key)
        p = np.asarray(p, np.float64)
        m, v = np.zeros_like(p), np.zeros_like(p)
        for k, rate in enumerate(RATES):
            g = some_grads(k)
            for key in path:
                g = g[key.key]
            g64 = np.asarray(g, np.float64)
            m = optimizer.beta1 * m + (1 - optimizer.beta1) * g64
            v = optimizer.beta2 * v + (1 - optimizer.beta2) * g64**2
            m_hat, v_hat = m / (1 - optimizer.beta1 ** (k + 1)), v / (1 - optimizer.beta2 ** (k + 1))
            decay = optimizer.weight_decay * p if name in decays else 0.0
            p = p - rate * speeds.get(name, 1.0) * (m_hat / (np.sqrt(v_hat) + optimizer.eps) + decay)
        return p

    return jax.tree_util.tree_map_with_path(one, some_params())


def close(a: Any, b: Any, rtol: float = 2e-6) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=rtol, atol=1e-6) for x, y in pairs)


def same_bits(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


PLAIN = AdamW(schedule=SCHEDULE)
GROUPED = AdamW(
    schedule=SCHEDULE,
    beta1=0.8,
    eps=1e-5,
    weight_decay=0.3,
    decay_roles=("matrix", "norm"),
    lr_multipliers=(LrMultiplier(role="matrix", value=0.0625), LrMultiplier(role="head", value=3.0)),
)


def test_equals_the_paper_in_float64() -> None:
    assert close(run(PLAIN).params, reference(PLAIN, {"embedding", "w", "head"}, {}))
    assert close(run(GROUPED).params, reference(GROUPED, {"w", "norm"}, {"w": 0.0625, "head": 3.0}))


def test_reference_sees_every_setting() -> None:
    """The comparison above can fail: each of these is another optimizer, or a resume that lost something."""
    expected = reference(GROUPED, {"w", "norm"}, {"w": 0.0625, "head": 3.0})
    others = [
        dataclasses.replace(GROUPED, eps=1e-2),
        dataclasses.replace(GROUPED, beta1=0.9),
        dataclasses.replace(GROUPED, beta2=0.96),
        dataclasses.replace(GROUPED, weight_decay=0.25),
        dataclasses.replace(GROUPED, decay_roles=("matrix",)),
        dataclasses.replace(GROUPED, lr_multipliers=()),
    ]
    assert not any(close(run(other).params, expected) for other in others)
    assert not close(run(GROUPED, forget_moments_at=3).params, expected)
    assert not close(run(GROUPED, lose_count_at=3).params, expected)


def test_equals_optax_to_the_bit() -> None:
    config = dataclasses.replace(PLAIN, decay_roles=("embedding", "matrix", "norm", "head", "bias"))
    params = some_params()
    tx = optax.inject_hyperparams(optax.adamw, static_args=("b1", "b2", "eps", "weight_decay"))(
        learning_rate=0.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1
    )
    state = tx.init(params)

    @jax.jit
    def advance(params: Any, state: Any, grads: Any, rate: jax.Array) -> Any:
        state.hyperparams["learning_rate"] = rate
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for k, rate in enumerate(RATES):
        params, state = advance(params, state, some_grads(k), jnp.float32(rate))
    assert same_bits(run(config).params, params)
    assert not same_bits(run(PLAIN).params, params)


def test_state_is_plain_and_float32() -> None:
    state = run(dataclasses.replace(PLAIN, ema=Ema(decay=0.9)), steps=2)
    paths = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree.leaves_with_path(state.opt)]
    assert paths[0] == "count" and "mu.blocks.w" in paths and "nu.embedding" in paths and len(paths) == 9
    assert state.opt["count"].dtype == jnp.int32 and int(state.opt["count"]) == 2
    moving = (state.params, state.opt["mu"], state.opt["nu"], state.ema)
    assert {str(x.dtype) for x in jax.tree.leaves(moving)} == {"float32"}
    mirrored = optax.tree_map_params(
        adamw.make(PLAIN, ROLES), lambda x: "p", state.opt, transform_non_params=lambda x: "-"
    )
    assert mirrored == {
        "count": "-",
        "mu": jax.tree.map(lambda _: "p", ROLES),
        "nu": jax.tree.map(lambda _: "p", ROLES),
    }


def test_bias_correction_counts_applied_updates_and_the_rate_comes_from_the_step() -> None:
    """A refused update at step 1: what follows is an optimizer that has seen one update less, at the later rates."""
    transform = adamw.make(PLAIN, ROLES)
    state = State(some_params(), transform.init(some_params()))

    def step(state: State, grads: Any, rate: jax.Array) -> State:
        fine = jnp.isfinite(adamw.global_norm(grads))
        return jax.lax.cond(fine, lambda: transform.apply(state, grads, rate), lambda: state)

    for k in range(4):
        grads = jax.tree.map(lambda g: g * jnp.nan, some_grads(k)) if k == 1 else some_grads(k)
        state = jax.jit(step)(state, grads, np.float32(RATES[k]))
    assert int(state.opt["count"]) == 3
    expected = State(some_params(), transform.init(some_params()))
    for k in (0, 2, 3):
        expected = jax.jit(transform.apply)(expected, some_grads(k), np.float32(RATES[k]))
    assert close(state, expected, rtol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def clip(grads: Any, clip_norm: float | None) -> tuple[Any, jax.Array]:
    norm = adamw.global_norm(grads)
    scale = adamw.clip_scale(norm, clip_norm)
    return jax.tree.map(lambda g: g * scale, grads), norm


def test_clip() -> None:
    grads = some_grads(0)
    norm = np.sqrt(sum(float(np.sum(np.asarray(g, np.float64) ** 2)) for g in jax.tree.leaves(grads)))
    clipped, seen = jax.jit(lambda g: clip(g, 0.25))(grads)
    assert norm > 0.25 and float(seen) == pytest.approx(norm, rel=1e-6)
    assert float(adamw.global_norm(clipped)) == pytest.approx(0.25, rel=1e-6)
    expected, _ = optax.clip_by_global_norm(0.25).update(grads, optax.EmptyState())
    assert close(clipped, expected)
    for roomy in (None, norm * 1.01):
        untouched, seen = clip(grads, roomy)
        assert same_bits(untouched, grads) and float(seen) == pytest.approx(norm, rel=1e-6)


def test_norm_of_many_small_numbers_does_not_stall() -> None:
    """Float32 addition one by one would stop at 2^24 equal terms."""
    x = jnp.full((6_000, 6_000), 0.1, jnp.float32)
    assert float(jax.jit(adamw.global_norm)({"x": x})) == pytest.approx(600.0, rel=1e-5)


def test_scale_folds_clipping_into_the_update() -> None:
    transform = adamw.make(PLAIN, ROLES)
    state, grads = State(some_params(), transform.init(some_params())), some_grads(0)

    def apart(state: State) -> State:
        return transform.apply(state, clip(grads, 0.25)[0], np.float32(1e-2))

    def folded(state: State) -> State:
        scale = adamw.clip_scale(adamw.global_norm(grads), 0.25)
        return transform.apply(state, grads, np.float32(1e-2), scale=scale)

    assert same_bits(jax.jit(apart)(state), jax.jit(folded)(state))
    assert float(adamw.clip_scale(jnp.float32(0.1), 0.25)) == 1.0 == float(adamw.clip_scale(jnp.float32(9), None))


def test_average_of_parameters() -> None:
    assert run(PLAIN).ema is None
    decay, average = 0.75, jax.tree.map(lambda x: np.asarray(x, np.float64), some_params())
    config = dataclasses.replace(PLAIN, ema=Ema(decay=decay))
    for k in range(len(RATES)):
        params = run(PLAIN, steps=k + 1).params
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * np.asarray(p, np.float64), average, params)
    assert close(run(config).ema, average)
    assert same_bits(run(config).params, run(PLAIN).params)
    assert not close(run(config).ema, run(config).params)


def test_groups() -> None:
    assert decay_mask(PLAIN, ROLES) == {"embedding": True, "blocks": {"w": True, "norm": False}, "head": True}
    assert multipliers(GROUPED, ROLES) == {"embedding": 1.0, "blocks": {"w": 0.0625, "norm": 1.0}, "head": 3.0}
    leaves = {"w": SimpleNamespace(path="blocks.w", declaration=SimpleNamespace(role="matrix"))}
    declared = SimpleNamespace(tree=lambda fn: jax.tree.map(fn, leaves))
    assert roles_of(declared) == {"w": "matrix"}
    leaves["w"].declaration.role = "matrx"
    with pytest.raises(ConfigError, match=r"blocks\.w: role 'matrx' is unknown; did you mean 'matrix'\?"):
        roles_of(declared)
