"""The published runs: every figure of the table, what decays, how fast each part learns, and their small siblings."""

from dataclasses import replace
from typing import Any

import pytest

from configs import amber_7b, crystal_7b, dmas_llama_lite_1b7, k2_65b, long_context, slimpajama_dc_1b3
from jaxllm.models.count import flops_per_token, parameters
from jaxllm.models.decoder import describe
from jaxllm.models.families.registry import family_of_model
from jaxllm.models.families.table import Surroundings
from jaxllm.optim.groups import decay_mask, multipliers, roles_of
from jaxllm.optim.schedule import learning_rate
from jaxllm.parallel.config import AllToAll, Ring
from jaxllm.run import RunConfig
from jaxllm.train.config import FromRun
from tests.style.test_configs import RUNS
from tools.runs_table import PUBLISHED, config, misses

SIBLINGS = [
    (amber_7b.amber_7b, amber_7b.small),
    (k2_65b.stage1, k2_65b.small),
    (k2_65b.stage2, k2_65b.small_stage2),
    (crystal_7b.phase1, crystal_7b.small),
    (crystal_7b.phase2, crystal_7b.small_phase2),
    (crystal_7b.phase3, crystal_7b.small_phase3),
    (slimpajama_dc_1b3.slimpajama_dc_1b3, slimpajama_dc_1b3.small),
    (dmas_llama_lite_1b7.dmas_llama_lite_1b7, dmas_llama_lite_1b7.small),
    (long_context.llama_8b_128k, long_context.small),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    assert misses(name, config(name), PUBLISHED[name]) == []


def test_the_table_can_fail() -> None:
    """One thing off at a time, each of which some figure sees."""
    name = "crystal_7b:phase1"
    run = config(name)
    stage, schedule = run.data.stages[0], run.optimizer.schedule
    others = {
        "parameters": replace(run, model=replace(run.model, tied_embeddings=False)),
        "steps": replace(run, data=replace(run.data, stages=(replace(stage, steps=stage.steps + 1),))),
        "tokens per step": replace(run, data=replace(run.data, stages=(replace(stage, batch_size=2111),))),
        "(matrix)": replace(run, optimizer=replace(run.optimizer, lr_multipliers=())),
        "learning rate at 79,721": replace(
            run, optimizer=replace(run.optimizer, schedule=(schedule[0], replace(schedule[1], horizon=None)))
        ),
    }
    for what, other in others.items():
        assert any(what in line for line in misses(name, other, PUBLISHED[name])), what


def groups(run: RunConfig) -> dict[str, tuple[str, bool, float]]:
    """Role, whether it decays, and factor on the learning rate, by path."""
    declared = describe(run.model)
    roles = roles_of(declared)
    trees = (roles, decay_mask(run.optimizer, roles), multipliers(run.optimizer, roles))
    named: list[dict[str, Any]] = [declared.named(tree) for tree in trees]
    return {path: (role, named[1][path], named[2][path]) for path, role in named[0].items()}


def test_what_decays() -> None:
    assert all(decays for _, decays, _ in groups(config("amber_7b:amber_7b")).values())
    for name in set(PUBLISHED) - {"amber_7b:amber_7b"}:
        for path, (role, decays, _) in groups(config(name)).items():
            assert decays == (role not in ("norm", "bias")), f"{name}: {path}"


def test_how_fast_each_part_of_crystal_learns() -> None:
    run = config("crystal_7b:phase1")
    peak = learning_rate(run.optimizer.schedule, 86)
    rates = {path: peak * speed for path, (_, _, speed) in groups(run).items()}
    matrices = {f"attention.{site}" for site in "qkvo"} | {"mlp.gate", "mlp.up", "mlp.down"}
    for path, rate in rates.items():
        expected = 7.5e-4 if path.removeprefix("blocks.") in matrices else 0.012
        assert rate == pytest.approx(expected, rel=1e-6), path
    assert {"embed.table", "norm.bias", "blocks.mlp.up_bias", "blocks.attention.o_bias"} <= set(rates)


def test_optimizers() -> None:
    for name in PUBLISHED:
        optimizer = config(name).optimizer
        assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.95, 0.1, 1.0)
        assert optimizer.eps == (1e-9 if name.startswith(("crystal", "slimpajama")) else 1e-8)


@pytest.mark.parametrize(
    ("file", "family"),
    [("amber", "llama"), ("k2", "llama"), ("dmas", "llama"), ("crystal", "crystal"), ("slimpajama", "btlm")],
)
def test_every_checkpoint_has_a_family_to_be_exported_as(file: str, family: str) -> None:
    runs = {name: function() for name, function in RUNS.items() if name.startswith(f"configs.{file}")}
    assert len(runs) >= 2
    for name, run in runs.items():
        assert family_of_model(run.model, Surroundings(length=run.data.seq_len)).name == family, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_says_what_it_costs(name: str) -> None:
    run = config(name)
    flops = flops_per_token(run.model, run.data.seq_len) * run.tokens
    header = RUNS[f"configs.{name}"].__globals__["__doc__"]
    assert f"{flops:.1e}".replace("e+", "e") in header
    assert f"{run.tokens:,}" in header or f"{run.tokens / 1e9:.1f}" in header


def test_a_run_starts_where_the_one_before_ends() -> None:
    runs = [function() for function in RUNS.values()]
    steps = {run.name: run.steps for run in runs}
    assert len(steps) == len(runs), "two configs of one name would share a folder"
    steps["base"] = 0  # weights that were imported
    followers = [run for run in runs if isinstance(run.start, FromRun)]
    assert {"crystal-7b-phase2", "crystal-7b-phase3", "k2-65b-stage2"} <= {run.name for run in followers}
    for run in followers:
        assert isinstance(run.start, FromRun) and run.start.step == steps[run.start.folder], run.name


def test_a_longer_context_keeps_the_tokens_per_step_and_lies_on_several_devices() -> None:
    for long, way in ((long_context.llama_8b_128k(), AllToAll), (k2_65b.stage2(), Ring)):
        assert long.mesh.cp > 1 and isinstance(long.compute.context_parallel, way)
        assert long.data.seq_len % (2 * long.mesh.cp) == 0
        assert long.model.attention.kv_heads % (long.mesh.cp * long.mesh.tp) == 0
    first, then = long_context.small_base(), long_context.small()
    assert first.tokens / first.steps == then.tokens / then.steps
    assert parameters(long_context.llama_8b_128k().model) == 8_030_261_248  # of Llama 3.1 8B


def test_k2_reads_as_many_tokens_per_step_in_both_stages() -> None:
    first, second = config("k2_65b:stage1"), config("k2_65b:stage2")
    assert first.tokens / first.steps == second.tokens / second.steps


# ---- small siblings --------------------------------------------------------------------------------------------------


def parts(run: RunConfig) -> dict[str, Any]:
    """What a run and its small sibling share: all but sizes, data, and where it is computed."""
    model, optimizer = run.model, run.optimizer
    return {
        "model": replace(
            model,
            vocab_size=64,
            width=64,
            layers=1,
            attention=replace(model.attention, heads=2, kv_heads=2, head_width=32),
            ffn=replace(model.ffn, width=64),
            logit_scale=1.0,
            init=replace(model.init, std=0.0),
        ),
        "grouped": model.attention.heads // model.attention.kv_heads,
        "schedule": [(p.shape, p.horizon is not None and p.horizon > p.steps) for p in optimizer.schedule],
        "optimizer": replace(optimizer, schedule=optimizer.schedule[:1], lr_multipliers=()).decay_roles,
        "eps": optimizer.eps,
        "scaled roles": [m.role for m in optimizer.lr_multipliers],
        "data": (run.data.windows, run.data.attention, run.data.loss),
        "start": run.start.optimizer if isinstance(run.start, FromRun) else None,
        "loss": run.loss,
    }


@pytest.mark.parametrize(("large", "small"), SIBLINGS, ids=lambda f: f"{f.__module__}:{f.__name__}")
def test_small_siblings_have_the_same_parts(large: Any, small: Any) -> None:
    assert parts(small()) == parts(large())


def test_no_two_families_have_the_same_parts() -> None:
    """The comparison above can fail."""
    found = [parts(large()) for large, _ in SIBLINGS]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


def test_small_crystal_goes_down_one_line() -> None:
    """Phase 2, once warm, is the line that phase 1 planned and left."""
    first, second = crystal_7b.small(), crystal_7b.small_phase2()
    warm, line = first.optimizer.schedule
    planned = (warm, replace(line, steps=line.horizon or line.steps, horizon=None))
    for k in (8, 9, 50, 200, 256):
        there = learning_rate(planned, first.steps + k - 8)
        assert learning_rate(second.optimizer.schedule, k) == pytest.approx(there, rel=1e-6)
