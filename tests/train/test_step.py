"""The step: accumulation, refusal, masks, averages."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.debug import debug
from jaxllm.assembly import Assembly, assemble
from jaxllm.core.errors import LayoutError
from jaxllm.models.config import Moe, SwiGlu
from jaxllm.optim.config import Ema
from jaxllm.parallel.config import Compute, Mesh
from jaxllm.run import RunConfig
from jaxllm.train.config import Loss
from jaxllm.train.state import State

LR = np.float32(1e-2)


@functools.cache
def small() -> RunConfig:
    """debug(), small enough that compiling is what takes time."""
    run = debug()
    model = dataclasses.replace(run.model, vocab_size=256, layers=1)
    return dataclasses.replace(run, model=model, data=dataclasses.replace(run.data, seq_len=32), mesh=Mesh(dp=1))


@functools.cache
def parts_of(run: RunConfig | None = None, **compute: Any) -> Assembly:
    """The same parts for the same question, so that each step is compiled once in this file."""
    run = run or small()
    return assemble(dataclasses.replace(run, compute=dataclasses.replace(run.compute, **compute)))


def batch_of(parts: Assembly, rows: int = 8, seed: int = 0) -> dict[str, jax.Array]:
    dice = np.random.default_rng(seed)
    S, V = parts.run.data.seq_len, parts.run.model.vocab_size
    tokens = dice.integers(0, V, (rows, S + 1), dtype=np.int32)
    opens = dice.random((rows, S)) < 0.05
    opens[:, 0] = False
    segments = np.cumsum(opens, axis=1, dtype=np.int32)
    column = np.arange(S, dtype=np.int32)
    positions = column - np.maximum.accumulate(np.where(opens, column, 0), axis=1).astype(np.int32)
    # Sequences differ in how many labels count: a mean over slices would not be the mean over the batch.
    mask = dice.random((rows, S)) < np.linspace(0.2, 1.0, rows)[:, None]
    return parts.place(
        {
            "inputs": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "segments": segments,
            "positions": positions,
            "loss_mask": mask,
        }
    )


def run_step(parts: Assembly, batch: dict[str, jax.Array], state: State | None = None) -> tuple[State, Any]:
    return parts.step(parts.initial_state() if state is None else state, batch, LR)


def worst(a: Any, b: Any) -> float:
    """Largest difference of any array, relative to the largest number in it."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max() / max(np.abs(np.asarray(y)).max(), 1e-30)) for x, y in pairs
    )


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulation_is_one_larger_batch(micro_batch: int) -> None:
    whole, sliced = parts_of(), parts_of(micro_batch=micro_batch)
    state, metrics = run_step(whole, batch_of(whole))
    other, same = run_step(sliced, batch_of(sliced))
    np.testing.assert_array_equal(same.tokens_B, metrics.tokens_B)
    np.testing.assert_allclose(same.loss_B, metrics.loss_B, rtol=2e-6)
    np.testing.assert_allclose(same.loss, metrics.loss, rtol=1e-6)
    np.testing.assert_allclose(same.grad_norm, metrics.grad_norm, rtol=2e-5)
    assert worst(other.opt["mu"], state.opt["mu"]) < 1e-5


def test_a_mean_over_slices_would_be_seen() -> None:
    parts = parts_of()
    _, metrics = run_step(parts, batch_of(parts))
    means = np.asarray(metrics.loss_B) / np.asarray(metrics.tokens_B)
    assert abs(means.mean() / float(metrics.loss) - 1) > 1e-6


@functools.cache
def mixed(**changes: Any) -> RunConfig:
    """small() with experts; penalties so large that leaving them out is seen."""
    ffn = Moe(experts=4, top_k=2, expert=SwiGlu(width=24), balance=0.5, z_loss=0.05, bias_rate=0.125)
    run = small()
    optimizer = dataclasses.replace(run.optimizer, ema=Ema(decay=0.75))
    model = dataclasses.replace(run.model, ffn=dataclasses.replace(ffn, **changes))
    return dataclasses.replace(run, model=model, optimizer=optimizer)


def test_accumulation_is_one_larger_batch_with_experts_too() -> None:
    whole, sliced = parts_of(mixed()), parts_of(mixed(), micro_batch=2)
    state, metrics = run_step(whole, batch_of(whole))
    other, same = run_step(sliced, batch_of(sliced))
    np.testing.assert_allclose(same.loss_B, metrics.loss_B, rtol=2e-6)
    np.testing.assert_array_equal(same.routing.loads_LE, metrics.routing.loads_LE)
    np.testing.assert_allclose(same.routing.penalty_B, metrics.routing.penalty_B, rtol=2e-6)
    np.testing.assert_allclose(same.grad_norm, metrics.grad_norm, rtol=2e-5)
    assert worst(other.opt["mu"], state.opt["mu"]) < 1e-5
    np.testing.assert_array_equal(other.params["blocks"]["mlp"]["balance"], state.params["blocks"]["mlp"]["balance"])
    assert metrics.routing.loads_LE.sum() == 8 * 32 * 2


def test_penalties_move_the_gradient_and_not_the_recorded_loss() -> None:
    plain, penalized = parts_of(mixed(balance=0.0, z_loss=0.0)), parts_of(mixed())
    (_, a), (_, b) = run_step(plain, batch_of(plain)), run_step(penalized, batch_of(penalized))
    np.testing.assert_allclose(a.loss_B, b.loss_B, rtol=1e-6)
    np.testing.assert_allclose(float(a.loss), float(b.loss), rtol=1e-6)
    norms = [np.asarray(m.norms["gradient"]["blocks.mlp.router"]) for m in (a, b)]
    assert (np.abs(norms[1] / norms[0] - 1) > 0.01).all()
    assert not np.asarray(a.routing.penalty_B).any() and (np.asarray(b.routing.penalty_B) > 0.5).all()


def test_the_balance_moves_by_the_loads_alone() -> None:
    """Not by the optimizer: no gradient, no decay. A refused update leaves it, the average follows it."""
    parts = parts_of(mixed())
    start = parts.initial_state()
    shift = np.float32([[0.5, -0.25, 0.0, 0.125]])
    for tree in (start.params, start.ema):
        tree["blocks"]["mlp"]["balance"] = jnp.array(shift)
    state, metrics = run_step(parts, batch_of(parts), start)
    loads = np.asarray(metrics.routing.loads_LE)
    expected = shift + np.float32(0.125) * np.sign(loads.mean() - loads).astype(np.float32)
    assert loads.std() > 0
    np.testing.assert_array_equal(state.params["blocks"]["mlp"]["balance"], expected)
    np.testing.assert_allclose(state.ema["blocks"]["mlp"]["balance"], 0.75 * shift + 0.25 * expected, rtol=1e-6)
    assert not np.asarray(state.opt["mu"]["blocks"]["mlp"]["balance"]).any()
    state.params["embed"]["table"] = state.params["embed"]["table"].at[:, 0].set(np.nan)
    refused, metrics = run_step(parts, batch_of(parts, seed=1), state)
    assert bool(metrics.refused)
    np.testing.assert_array_equal(refused.params["blocks"]["mlp"]["balance"], expected)


@pytest.mark.parametrize("branch", [True, False])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_update_changes_nothing(branch: bool, poison: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assembly, "platform", "cpu" if branch else "tpu")
    parts = parts_of(loss_chunks=8 if branch else 4)
    state, _ = run_step(parts, batch_of(parts))
    bad = jax.tree.map(jnp.copy, state)
    bad.params["embed"]["table"] = bad.params["embed"]["table"].at[:, 0].set(poison)
    before = jax.tree.map(np.asarray, bad)
    after, metrics = run_step(parts, batch_of(parts, seed=1), bad)
    assert bool(metrics.refused)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert int(after.opt["count"]) == 1


def test_a_finite_update_is_not_refused_and_both_ways_of_refusing_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(Assembly, "platform", platform)
        parts = assemble(small())
        state, metrics = run_step(parts, batch_of(parts))
        assert not bool(metrics.refused)
        results.append(state)
    assert worst(results[0], results[1]) < 1e-5


def test_masked_labels_have_no_part_in_loss_or_gradient() -> None:
    parts = parts_of()
    batch = batch_of(parts)
    scrambled = dict(batch)
    other = np.random.default_rng(9).integers(0, parts.run.model.vocab_size, batch["labels"].shape, dtype=np.int32)
    scrambled["labels"] = jnp.where(batch["loss_mask"], batch["labels"], other)
    one, _ = run_step(parts, batch)
    two, _ = run_step(parts, scrambled)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_z_loss_moves_the_gradient_and_not_the_recorded_loss() -> None:
    plain = parts_of()
    with_z = parts_of(dataclasses.replace(small(), loss=Loss(z_loss=1.0)))
    _, a = run_step(plain, batch_of(plain))
    _, b = run_step(with_z, batch_of(with_z))
    np.testing.assert_array_equal(a.loss_B, b.loss_B)
    assert abs(float(a.grad_norm) / float(b.grad_norm) - 1) > 1e-4


def test_norms_name_every_parameter_and_every_layer() -> None:
    parts = parts_of()
    _, metrics = run_step(parts, batch_of(parts))
    assert set(metrics.norms) == {"gradient", "update", "parameter"}
    for by_path in metrics.norms.values():
        assert {p: np.shape(v) for p, v in by_path.items()} == {
            leaf.path: leaf.shape[:1] if leaf.stacked else () for leaf in parts.declared.leaves
        }
    total = np.sqrt(sum(float((np.asarray(v) ** 2).sum()) for v in metrics.norms["gradient"].values()))
    np.testing.assert_allclose(total, metrics.grad_norm, rtol=1e-5)


def test_the_average_follows_the_parameters() -> None:
    base = small()
    run = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, ema=Ema(decay=0.75)))
    parts = parts_of(run)
    start = jax.tree.map(np.asarray, parts.initial_state().params)
    state, _ = run_step(parts, batch_of(parts))
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * np.asarray(new), start, state.params)
    assert state.ema is not None and worst(state.ema, expected) < 1e-6
    assert set(state.items()) == {"params", "opt", "ema"} and parts_of().initial_state().ema is None


def test_one_batch_is_learned() -> None:
    parts = parts_of()
    state, batch = parts.initial_state(), batch_of(parts)
    losses = []
    for _ in range(30):
        state, metrics = parts.step(state, batch, LR)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("micro_batch", "says"),
    [(1, r"compute\.micro_batch=1 does not divide"), (None, r"evaluation\.batch_size=6 does not divide")],
)
def test_batches_that_do_not_divide_are_refused_by_name(micro_batch: int | None, says: str) -> None:
    evaluation = dataclasses.replace(small().evaluation, batch_size=6)
    run = dataclasses.replace(small(), compute=Compute(micro_batch=micro_batch), evaluation=evaluation)
    parts = dataclasses.replace(parts_of(), run=run)
    object.__setattr__(parts, "splits", 4)
    with pytest.raises(LayoutError, match=says):
        parts.check_batches()
