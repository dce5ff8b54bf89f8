"""What a plan computes without compiling: chips, targets, rooflines, candidates, and how a mistake is told."""

import numpy as np
import pytest

from configs.amber_7b import amber_7b
from configs.k2_65b import stage1
from jaxllm.core.chips import BY_NAME, CHIPS, peak_of
from jaxllm.core.config import override
from jaxllm.core.errors import ConfigError
from jaxllm.models.count import parameters
from jaxllm.plan import candidates
from jaxllm.plan.candidates import Chooser, divides, placements, ways_out
from jaxllm.plan.collectives import Collective
from jaxllm.plan.estimate import batch_parts, estimate
from jaxllm.plan.measure import _environment, out_of_memory
from jaxllm.plan.roofline import Places, Roofline, link_seconds, roofline
from jaxllm.plan.target import PlanError, description, require_compiler, target_of

AMBER = override(amber_7b(), ["compute.remat=full"])

V5E = target_of("v5e", "16x16", 1, None)
WHOLE = ("data.stages.0.batch_size=2048", "compute.micro_batch=null")
GIB, _OUT = 2**30, "RESOURCE_EXHAUSTED"


def test_every_chip_has_its_sources_and_a_kind_that_jax_knows() -> None:
    assert {c.name for c in CHIPS} == {"v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200", "b200"}
    assert all(c.sources and c.kinds and c.network < c.link < c.hbm_bandwidth for c in CHIPS)
    assert peak_of("TPU v5 lite") == 197e12 and peak_of("cpu") is None
    assert len({k for c in CHIPS for k in c.kinds}) == sum(len(c.kinds) for c in CHIPS)


@pytest.mark.parametrize(
    ("arguments", "text", "devices"),
    [
        (("v5p", "4x8x8", 1, None), "v5p 4x8x8 (256 chips)", 256),
        (("v5e", "16x16", 2, None), "2 slices of v5e 16x16 (512 chips)", 512),
        (("tpu7x", "4x4x4", 1, None), "tpu7x 4x4x4 (64 chips, 128 devices)", 128),
        (("h100", None, 1, 64), "h100 x 64 (8 nodes of 8)", 64),
        (("a100", None, 1, 4), "a100 x 4 (1 nodes of 4)", 4),
    ],
)
def test_targets(arguments: tuple[str, str | None, int, int | None], text: str, devices: int) -> None:
    target = target_of(*arguments)
    assert (target.text, target.devices) == (text, devices)
    assert target.doubled.devices == 2 * devices


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("v5", "4x4", 1, None), "did you mean"),
        (("v5p", "16x16", 1, None), "3 dimensions, as in --topology 4x8x8"),
        (("v5e", None, 1, None), "--topology 16x16"),
        (("v5e", "16xa", 1, None), "2 dimensions"),
        (("v5e", "16x16", 0, None), "--slices 0"),
        (("h100", None, 1, None), "--gpus N"),
        (("h100", "8x8", 1, 64), "neither --topology"),
        (("h100", None, 1, 12), "multiple of the 8 GPUs"),
    ],
)
def test_a_target_that_is_none_says_what_would_do(
    arguments: tuple[str, str | None, int, int | None], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        target_of(*arguments)


@pytest.mark.parametrize(("chip", "extra"), [("v5e", "jaxllm[plan]"), ("h100", "jaxllm[plan-gpu]")])
def test_an_absent_compiler_names_its_extra(chip: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlanError) as told:
        require_compiler(BY_NAME[chip])
    assert extra in str(told.value) and "\n" not in str(told.value)


def test_gpus_are_described_by_the_table() -> None:
    assert "memory_bandwidth: 3350000000000" in description(BY_NAME["h100"])
    assert "cuda_compute_capability { major: 10 minor: 0 }" in description(BY_NAME["b200"])


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (f"{_OUT}: E1000: CompileTimeHbmOom: ... Used 15.77G of 15.75G hbm. Exceeded", (15.77 * GIB, 15.75 * GIB)),
        (f"{_OUT}: ... temporaries (113.64G) exceeds available HBM (95.74G).", (113.64 * GIB, 95.74 * GIB)),
        ("RESOURCE_EXHAUSTED: something else", (0.0, 0.0)),
        ("INTERNAL: a bug", None),
    ],
)
def test_out_of_memory_is_read_in_both_wordings(text: str, sizes: tuple[float, float] | None) -> None:
    assert out_of_memory(text) == (pytest.approx(sizes) if sizes else sizes)


def test_a_plan_compiles_with_the_flags_of_its_platform_but_those_that_need_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true --xla_force_host_platform_device_count=8")
    env, left_out = _environment(AMBER, target_of("h100", None, 1, 64))
    assert "--xla_gpu_enable_triton_gemm=false" in env["XLA_FLAGS"].split()
    assert left_out == ["--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true"]
    assert "host_platform" not in env["XLA_FLAGS"] and env["JAX_PLATFORMS"] == "cpu"
    env, left_out = _environment(AMBER, V5E)
    assert "xla_enable_async_all_gather" in env["LIBTPU_INIT_ARGS"] and "gpu_enable" not in env["XLA_FLAGS"]


def torus(*extents: int) -> Places:
    coords = np.stack(np.unravel_index(np.arange(int(np.prod(extents))), extents), axis=1)
    return Places(coords, np.zeros(len(coords), int))


@pytest.mark.parametrize(
    ("extents", "group", "links"),
    [
        ((16, 16), [16 * i for i in range(16)], 2),  # a whole ring
        ((8, 16), [16 * i for i in range(8)], 1),  # too short to be one: a line
        ((16, 16), [0, 1, 2, 3], 1),  # part of a ring
        ((16, 16), list(range(0, 16, 4)), 0.5),  # every fourth of a ring: two directions, shared by four groups
        ((16, 16), list(range(256)), 4),  # both dimensions
        ((4, 4, 4), [0, 1, 2, 3], 2),  # a cube is closed in every dimension
        ((2, 2, 4), [0, 1, 2, 3], 1),  # and less than one in none
    ],
)
def test_a_group_has_the_links_of_the_dimensions_that_it_spans(
    extents: tuple[int, ...], group: list[int], links: float
) -> None:
    one = Collective("all-gather", 1e9, 2, np.array([group]), "x")
    n, chip = len(group), BY_NAME["v5e" if len(extents) == 2 else "v5p"]
    expected = 2e9 * (n - 1) / n / (links * chip.link)
    assert link_seconds(one, chip, torus(*extents)) == pytest.approx(expected)


def test_permutations_take_hops_and_exchanges_are_passed_on() -> None:
    ring = torus(16, 16)
    step = Collective("collective-permute", 1e9, 1, np.array([[i, (i + 1) % 16] for i in range(16)]), "x")
    far = Collective("collective-permute", 1e9, 1, np.array([[i, (i + 5) % 16] for i in range(16)]), "x")
    assert link_seconds(step, V5E.chip, ring) == pytest.approx(1e9 / V5E.chip.link)
    assert link_seconds(far, V5E.chip, ring) == pytest.approx(5e9 / V5E.chip.link)
    # Round a line, the last message goes all the way back, on links that carry nothing else.
    line = Collective("collective-permute", 1e9, 1, np.array([[16 * i, 16 * ((i + 1) % 8)] for i in range(8)]), "x")
    assert link_seconds(line, V5E.chip, torus(8, 16)) == pytest.approx(1e9 / V5E.chip.link)
    row = np.arange(16).reshape(1, 16)
    gather, exchange = (Collective(kind, 1e9, 1, row, "x") for kind in ("all-gather", "all-to-all"))  # type: ignore[arg-type]
    assert link_seconds(exchange, V5E.chip, ring) == 4 * link_seconds(gather, V5E.chip, ring)


def test_what_binds_is_what_takes_longest() -> None:
    line = Roofline(compute=2.0, memory=1.0, links=3.0, network=0.5)
    assert (line.binds, line.seconds, line.serial_seconds) == ("links within a slice", 3.0, 6.5)
    line = roofline(V5E.chip, torus(16, 16), [], flops=197e12, traffic=1600e9)
    assert (line.compute, line.memory, line.links, line.network) == (1.0, 2.0, 0.0, 0.0)


def test_the_estimate_knows_what_everyone_does() -> None:
    run = override(AMBER, ["mesh.fsdp=256", "mesh.tp=1", "mesh.sequence_parallel=false", *WHOLE])
    state = parameters(run.model) * 16 / 256
    whole = estimate(run, V5E)
    assert whole.bytes > state
    sliced = estimate(override(run, ["compute.micro_batch=256"]), V5E)
    assert sliced.bytes < whole.bytes and sliced.links > whole.links
    kept = estimate(override(run, ["compute.remat=dots"]), V5E)
    assert kept.bytes > whole.bytes and kept.compute < whole.compute


def test_the_estimate_of_a_pipeline_goes_by_its_own_micro_batches() -> None:
    staged = override(AMBER, ["mesh.fsdp=8", "mesh.pp=8", "mesh.tp=4", "compute.pipeline.micro_batches=56"])
    assert batch_parts(staged) == 8 * 56 and divides(staged, V5E)
    assert not divides(override(staged, ["compute.micro_batch=320"]), V5E)  # 64 divides it, 448 does not
    fewer = estimate(override(staged, ["compute.pipeline.micro_batches=8"]), V5E)
    assert fewer.compute / estimate(staged, V5E).compute == pytest.approx((1 - 7 / 63) / (1 - 7 / 15))
    assert not divides(override(staged, ["compute.pipeline.rounds=3"]), V5E)


def test_a_search_is_pruned_by_what_divides_and_what_fits() -> None:
    run = AMBER  # 2,240 sequences: 64 is the largest power of two that divides them
    found = list(placements(run, V5E))
    assert found and all(divides(c.run, V5E) for c in found)
    assert all(2240 % (c.run.mesh.dp * c.run.mesh.fsdp) == 0 for c in found)
    assert all(c.estimated.bytes <= candidates._ROOM * V5E.usable_bytes for c in found)
    assert all(override(run, c.changes) == c.run for c in found[::97])
    prime = override(run, ["data.stages.0.batch_size=2243", "compute.micro_batch=null"])
    assert all(c.run.mesh.fsdp == 1 for c in placements(prime, V5E))


def test_what_divides_is_what_an_assembly_takes() -> None:
    run = override(AMBER, ["mesh.fsdp=16", "mesh.cp=4", "mesh.tp=4", "mesh.sequence_parallel=false"])
    assert divides(run, V5E)
    # 4,128 divides over 16 and over 4 and not over 64, which is what parameters are split over.
    assert not divides(override(run, ["model.width=4128"]), V5E)
    exchanged = override(run, ["compute.context_parallel.kind=AllToAll"])
    assert divides(exchanged, V5E)
    few = ["model.attention.heads=8", "model.attention.kv_heads=8"]
    assert divides(override(run, few), V5E) and not divides(override(exchanged, few), V5E)


def test_a_search_learns_from_what_was_too_large() -> None:
    found = list(placements(override(AMBER, ["compute.attention=blocks"]), V5E))
    chooser = Chooser(found)
    first = chooser.next()
    assert first is not None
    ample = [c for c in found if c.estimated.bytes <= candidates._AMPLE * V5E.usable_bytes]
    assert first.estimated.seconds <= min(c.estimated.seconds for c in ample)
    chooser.too_large(first, 3 * first.estimated.bytes)
    while (one := chooser.next()) is not None and one.run.compute.remat != first.run.compute.remat:
        chooser.settled(one)
    assert one is not None and 3 * one.estimated.bytes <= V5E.usable_bytes  # a third of the memory, of this policy
    chooser.settled(one)
    same = (one.run.mesh, one.run.compute.remat)
    while (following := chooser.next()) is not None:
        assert (following.run.mesh, following.run.compute.remat) != same
        chooser.settled(following)


def test_ways_out_fit_by_estimate_and_the_cheapest_comes_first() -> None:
    target = target_of("v5p", "4x8x8", 1, None)
    wide = [
        "data.stages.0.batch_size=2048",
        "mesh.fsdp=256",
        "mesh.cp=1",
        "mesh.tp=1",
        "compute.remat=none",
        "compute.micro_batch=null",
    ]
    run = override(stage1(), [*wide, "mesh.sequence_parallel=false"])
    needed = 3 * target.usable_bytes
    ways = ways_out(run, target, needed)
    assert ways == sorted(ways, key=lambda w: w.chip_seconds) and len(ways) >= 3
    scale = max(needed, target.usable_bytes) / estimate(run, target).bytes
    assert all(w.estimated.bytes * scale <= w.target.usable_bytes for w in ways)
    assert any(change.startswith("compute.remat") for w in ways for change in w.changes)
    assert not any("compute.remat=none" in w.changes for w in ways)
