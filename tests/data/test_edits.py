"""Edits of the stream: against lists that are edited by hand, and K2's published order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.core.errors import LedgerError, RunError
from jaxllm.data.config import Share, Stage
from jaxllm.data.edits import Edit, Edits, Kind, decode_edits, edits_of_steps, encode_edits
from jaxllm.data.steps import StepTable


def stages(*sizes: tuple[int, int]) -> list[Stage]:
    mixture = (Share(source="a", weight=1.0),)
    return [Stage(name=f"s{i}", steps=n, batch_size=b, mixture=mixture) for i, (n, b) in enumerate(sizes)]


def by_hand(edits: list[Edit], table: StepTable) -> tuple[list[int], list[int]]:
    """(sample at every position, skipped samples), by cutting and joining a list."""
    stream, skipped, spare = list(range(table.positions)), [], table.positions
    for edit in edits:
        stage = table.span(table.step_of(edit.first)[0]).stage
        end = table.consumed(table.stage_end(stage))
        taken = stream[edit.first : edit.first + edit.count]
        filling = taken
        if edit.kind == "skip":
            filling = list(range(spare, spare + edit.count))
            spare += edit.count
            skipped += taken
        stream = stream[: edit.first] + stream[edit.first + edit.count : end] + filling + stream[end:]
    return stream, skipped


TABLE = StepTable(stages((6, 4), (5, 2)))


@st.composite
def edit(draw: st.DrawFn) -> Edit:
    start, end = draw(st.sampled_from([(0, 24), (24, 34)]))
    first = draw(st.integers(start, end - 1))
    kind: Kind = draw(st.sampled_from(["skip", "defer"]))
    return Edit(kind=kind, first=first, count=draw(st.integers(1, end - first)))


@given(st.lists(edit(), max_size=5))
def test_both_directions_are_what_cutting_a_list_gives(edits: list[Edit]) -> None:
    stream, skipped = by_hand(edits, TABLE)
    found = Edits(edits, TABLE)
    assert found.samples(np.arange(TABLE.positions)).tolist() == stream
    drawn = TABLE.positions + sum(n for _, n in found.extra)
    where = {sample: position for position, sample in enumerate(stream)}
    assert [found.position(s) for s in range(drawn)] == [where.get(s) for s in range(drawn)]
    assert {s for s in range(drawn) if found.position(s) is None} == set(skipped)


@given(st.lists(edit(), min_size=1, max_size=5))
def test_nothing_before_an_edit_changes(edits: list[Edit]) -> None:
    before, after = Edits(edits[:-1], TABLE), Edits(edits, TABLE)
    untouched = np.arange(edits[-1].first)
    assert np.array_equal(before.samples(untouched), after.samples(untouched))


def test_k2_published_order_is_two_deferred_chunks() -> None:
    table = StepTable(stages((360, 1)))
    edits = [*edits_of_steps(table, "defer", 161, 161)]
    edits += edits_of_steps(table, "defer", 186, 186)  # chunk 186 stands at position 185 by now
    order = Edits(edits, table).samples(np.arange(360)).tolist()
    assert order == [*range(160), *range(161, 186), *range(187, 360), 160, 186]


def test_steps_over_a_stage_boundary_are_an_edit_for_each_stage() -> None:
    assert edits_of_steps(TABLE, "skip", 5, 8) == (
        Edit(kind="skip", first=16, count=8),
        Edit(kind="skip", first=24, count=4),
    )


def test_deferring_the_end_of_a_stage_is_refused_and_says_what_would_do() -> None:
    with pytest.raises(RunError, match="changes nothing; skip them"):
        edits_of_steps(TABLE, "defer", 5, 8)


@pytest.mark.parametrize("bad", [(0, 3), (4, 3), (10, 12)])
def test_steps_outside_the_run_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(RunError, match=r"do not lie in 1\.\.11"):
        edits_of_steps(TABLE, "skip", *bad)


@pytest.mark.parametrize("first, count", [(20, 8), (34, 1), (-1, 1), (3, 0)])
def test_an_edit_outside_one_stage_is_another_runs(first: int, count: int) -> None:
    with pytest.raises(LedgerError, match="another config"):
        Edits([Edit(kind="skip", first=first, count=count)], TABLE)


def test_edits_survive_their_event() -> None:
    edits = edits_of_steps(TABLE, "skip", 5, 8)
    assert decode_edits(encode_edits(edits), "here") == edits
    for wrong in (
        {"kind": "drop", "first": 1, "count": 1},
        {"kind": "skip", "first": "1", "count": 1},
        {"kind": "skip"},
    ):
        with pytest.raises(LedgerError, match="here"):
            decode_edits([wrong], "here")
