"""Compiled text is read as what it does: loops, chains, fusions and groups in all their spellings."""

import numpy as np
import pytest

from jaxllm.plan.collectives import Collective, by_axis, collectives, mesh_axes_of, parse_groups
from jaxllm.plan.hlo import Module, elements, leaves
from jaxllm.plan.traffic import memory_bytes
from tests.plan.texts import GPU, TPU

ONE_SLICE, MESH = np.zeros(8, int), {"fsdp": 4, "tp": 2}
TRIPS = 4  # from 1 to 5


def found(text: str) -> dict[str, tuple[int, float]]:
    return {one.name: (one.times, one.bytes) for one in collectives(Module(text), 8)}


def test_a_chain_counts_once_a_round_and_a_reduce_scatter_is_seen_through() -> None:
    kinds = {one.name: one.kind for one in collectives(Module(TPU), 8)}
    assert kinds == {
        "all-gather.1": "all-gather",
        "all-reduce.1": "reduce-scatter",
        "collective-permute.1": "collective-permute",
        "all-gather.3": "all-gather",
    }
    whole = 64 * 32 * 2
    assert found(TPU) == {
        "all-gather.1": (TRIPS, whole),
        "all-reduce.1": (TRIPS, whole),
        "collective-permute.1": (TRIPS, whole / 4),
        "all-gather.3": (1, 32),
    }


def test_starts_count_and_dones_do_not() -> None:
    assert found(GPU) == {
        "all-gather-start.1": (32, 256),
        "reduce-scatter-start.1": (32, 256 + 128),
        "all-reduce-start.1": (1, 64),
    }


@pytest.mark.parametrize(
    ("text", "planted", "name", "change"),
    [
        (TPU, ('chain_id="0"', 'chain="0"'), "all-gather.2", "counted twice without its chain"),
        (TPU, ("constant(5)", "constant(7)"), "all-gather.1", "two rounds more"),
        (TPU, ("%start.1 = s32[]{:T(128)} constant(1)", "%start.1 = s32[]{:T(128)} constant(0)"), "all-gather.1", ""),
        (GPU, ('"n":"32"', '"n":"33"'), "all-gather-start.1", "one round more"),
        (TPU, ("%all-gather.1 = bf16[64,32]", "%all-gather.1 = bf16[128,32]"), "all-gather.1", "twice the bytes"),
    ],
)
def test_a_planted_change_changes_what_is_found(text: str, planted: tuple[str, str], name: str, change: str) -> None:
    assert planted[0] in text
    assert found(text.replace(*planted)).get(name) != found(text).get(name), change


def test_rounds_are_counted_through_fusions_and_in_the_steps_that_are_made() -> None:
    compare = "ROOT %compare.1 = pred[] compare(%i.2, %constant.2), direction=LT"
    fused = GPU.replace(
        ', backend_config={"known_trip_count":{"n":"32"},"known_init_step":{"init":"0","step":"1"}}', ""
    )
    fused = fused.replace("%constant.2 = s32[] constant(1000)\n", "").replace(
        compare, "ROOT %compare.1 = pred[] fusion(%i.2), kind=kLoop, calls=%fused_compare.6"
    )
    fused = fused.replace(
        "%add.1 (",
        "%fused_compare.6 (p: s32[]) -> pred[] {\n  %p = s32[] parameter(0)\n  %limit = s32[] constant(7)\n"
        "  ROOT %c = pred[] compare(%p, %limit), direction=LT\n}\n\n%add.1 (",
    )
    fused = fused.replace("%p.1 = s32[] parameter(0)", "%p.1 = s32[] constant(1)")
    by_two = fused.replace("tuple(%i.1, %z.1)", "tuple(%next.1, %z.1)").replace(
        "  ROOT %tuple.1", "  %two.1 = s32[] constant(2)\n  %next.1 = s32[] add(%i.1, %two.1)\n  ROOT %tuple.1"
    )
    assert found(fused)["all-gather-start.1"][0] == 6  # 1 to 7
    assert found(by_two)["all-gather-start.1"][0] == 3  # 1, 3, 5


def test_loops_of_unknown_length_count_once_and_are_named() -> None:
    module = Module(TPU.replace("constant(5)", "parameter(1)"))
    assert {one.times for one in collectives(module, 8)} == {1}
    assert module.unknown_loops == ["while.1"]


GROUPS = [
    ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("{}", [[0, 1, 2, 3]]),
    ("[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
]


@pytest.mark.parametrize(("text", "groups"), GROUPS)
def test_groups_in_every_spelling(text: str, groups: list[list[int]]) -> None:
    assert sorted(map(sorted, parse_groups(text, 4).tolist())) == groups


@pytest.mark.parametrize("text", ["mesh['a'=4] {'b'}", "mesh['a'=8] {'a':(3)2}", "{{0,1},{2}}"])
def test_groups_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"groups"):
        parse_groups(text, 8)


def test_groups_are_named_by_the_axes_of_the_mesh() -> None:
    rows = {(axes, kind): times for axes, kind, times, _, _ in by_axis(collectives(Module(TPU), 8), MESH, ONE_SLICE)}
    assert rows == {
        (("fsdp",), "all-gather"): TRIPS,
        (("tp",), "all-gather"): 1,
        (("tp",), "reduce-scatter"): TRIPS,
        (("tp",), "collective-permute"): TRIPS,
    }
    assert mesh_axes_of(np.arange(8).reshape(1, 8), MESH) == ("fsdp", "tp")


@pytest.mark.parametrize(
    ("kind", "sent", "between"),
    [
        ("all-gather", 700, 100),  # of 8 devices with an eighth each, 4 per slice: 7 eighths, 1 of them from outside
        ("reduce-scatter", 700, 100),
        ("all-reduce", 1400, 200),
        ("all-to-all", 700, 400),
    ],
)
def test_what_leaves_a_slice_leaves_it_once(kind: str, sent: float, between: float) -> None:
    one = Collective(kind, 800.0, 1, np.arange(8).reshape(1, 8), "x")  # type: ignore[arg-type]
    slices = np.repeat([0, 1], 4)
    assert one.sent() == sent
    assert one.split(slices) == (sent - between, between)
    assert one.split(ONE_SLICE) == (sent, 0.0)


def test_a_hop_that_any_pair_makes_is_a_hop_of_all() -> None:
    ring = Collective("collective-permute", 10.0, 3, np.array([[0, 1], [1, 2], [2, 3], [3, 0]]), "x")
    assert ring.split(np.array([0, 0, 1, 1])) == (30.0, 30.0)
    assert ring.split(np.zeros(4, int)) == (30.0, 0.0)


SLICES = """\
ENTRY %main.1 (p.1: f32[24,8,128]) -> token[] {
  %p.1 = f32[24,8,128]{2,1,0:T(8,128)} parameter(0)
  %after-all.31 = token[] after-all()
  %recv.31 = (f32[24,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all.31), channel_id=1, is_host_transfer=true
  %send.31 = (f32[24,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%p.1, %after-all.31), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %send-done.31 = token[] send-done(%send.31), channel_id=2, is_host_transfer=true
}
"""


def test_what_crosses_slices_is_a_send_and_is_of_their_axis() -> None:
    slices = np.repeat([0, 1], 4)
    [one] = collectives(Module(SLICES), 8, slices)
    assert (one.kind, one.bytes, one.times) == ("all-reduce", 24 * 8 * 128 * 4, 1)
    assert one.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert mesh_axes_of(one.groups, {"dp": 2, "fsdp": 4}) == ("dp",)
    assert one.split(slices) == (0.0, one.sent())
    with pytest.raises(ValueError, match="not understood"):
        collectives(Module(SLICES.replace("ALL_REDUCE", "GOSSIP")), 8, slices)


def test_memory_traffic_of_slices_and_fast_memory() -> None:
    """Per round: x read by two fusions, its gathered copy not written but its own pass-through result, the slice of the
    stack and not the stack; the permutation reads and writes x."""
    x, scalars = 16 * 32 * 2, 3 * 4 + 4 * 4
    a_round = 2 * x + x + 8 + 2 * x + 64 * 8 * 4
    rest = memory_bytes(Module(TPU)) - TRIPS * a_round
    assert 0 <= rest <= TRIPS * scalars + 4 * 64 * 8 * 4 + 100
    everything = memory_bytes(Module(TPU), (0, 1))
    assert everything > memory_bytes(Module(TPU)) + TRIPS * 2 * 64 * 32 * 2


def test_types() -> None:
    [leaf] = leaves("bf16[2,8]{1,0:T(8,128)(2,1)S(1)}")
    assert (leaf.bytes, leaf.space) == (32, 1)
    assert elements("((f32[2]{0}, s8[4]{0}), /*index=1*/f8e4m3fn[3]{0}, token[])") == [
        "(f32[2]{0}, s8[4]{0})",
        "f8e4m3fn[3]{0}",
        "token[]",
    ]
    assert sum(leaf.bytes for leaf in leaves("(f32[2]{0}, s4[4]{0}, f8e4m3fn[3]{0}, pred[])")) == 8 + 2 + 3 + 1


def test_a_text_that_is_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        Module("HloModule nothing")


STARTED = """HloModule started, is_scheduled=true

%updated (p0: bf16[24,64], p1: s32[], p2: bf16[64]) -> bf16[24,64] {
  %p0 = bf16[24,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %p2 = bf16[64]{0} parameter(2)
  %row = bf16[1,64]{1,0} bitcast(%p2)
  ROOT %there = bf16[24,64]{1,0} dynamic-update-slice(%p0, %row, %p1, %zero)
}

ENTRY %main (a: bf16[24,64], i: s32[], x: bf16[64]) -> bf16[24,64] {
  %a = bf16[24,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[64]{0} parameter(2)
  %begun = ((bf16[24,64]{1,0}, s32[], bf16[64]{0}), bf16[24,64]{1,0}, u32[]) fusion-start(%a, %i, %x), calls=%updated
  ROOT %done = bf16[24,64]{1,0} fusion-done(%begun)
}
"""


def test_a_fusion_that_runs_beside_others_moves_what_any_fusion_does() -> None:
    """Cut from what XLA of jax 0.11 wrote for a GPU: a row that is put into its place in a stack of layers."""
    plain = STARTED.replace("ROOT %done = bf16[24,64]{1,0} fusion-done(%begun)", "").replace(
        "%begun = ((bf16[24,64]{1,0}, s32[], bf16[64]{0}), bf16[24,64]{1,0}, u32[]) fusion-start",
        "ROOT %done = bf16[24,64]{1,0} fusion",
    )
    assert memory_bytes(Module(STARTED)) == memory_bytes(Module(plain)) == 2 * 64 * 2 + 4
