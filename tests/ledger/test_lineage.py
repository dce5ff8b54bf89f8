"""Lineages as a fold: paths, owners, edits."""

from typing import Any

import pytest

from jaxllm.core.errors import LedgerError
from jaxllm.data.edits import Edit
from jaxllm.ledger.lineage import Lineages, Stretch

SKIP = {"kind": "skip", "first": 400, "count": 10}
DEFER = {"kind": "defer", "first": 320, "count": 20}


def rollback(lineage: int, step: int, edits: list[Any] | None = None) -> dict[str, Any]:
    return {
        "event": "rollback",
        "seq": 9,
        "lineage": lineage,
        "parent": lineage - 1,
        "step": step,
        "last": step + 9,
        "edits": edits or [],
    }


def test_a_run_that_never_went_back_is_one_lineage() -> None:
    lineages = Lineages.of([{"event": "start", "seq": 0, "lineage": 0}])
    assert (lineages.live, lineages.origin) == (0, 0)
    assert lineages.path() == (Stretch(0, 1, None),)
    assert lineages.owner(1) == lineages.owner(10**9) == 0


def test_a_path_is_what_each_lineage_shares_with_the_one_it_left() -> None:
    lineages = Lineages.of([rollback(1, 40), rollback(2, 60)])
    assert lineages.path() == (Stretch(0, 1, 40), Stretch(1, 41, 60), Stretch(2, 61, None))
    assert lineages.path(1) == (Stretch(0, 1, 40), Stretch(1, 41, None))
    assert [lineages.owner(s) for s in (0, 40, 41, 60, 61)] == [0, 0, 1, 1, 2]
    assert lineages.owner(61, lineage=1) == 1


def test_going_back_behind_an_earlier_branching_leaves_its_lineage_out() -> None:
    lineages = Lineages.of([rollback(1, 40), rollback(2, 10)])
    assert lineages.path() == (Stretch(0, 1, 10), Stretch(2, 11, None))
    assert [lineages.owner(s) for s in (10, 11, 41)] == [0, 2, 2]
    twice = Lineages.of([rollback(1, 40), rollback(2, 40)])
    assert twice.path() == (Stretch(0, 1, 40), Stretch(2, 41, None))


def test_edits_hold_from_the_lineage_in_which_they_were_made() -> None:
    skip = {"event": "skip", "seq": 3, "lineage": 1, "step": 50, "edits": [SKIP]}
    lineages = Lineages.of([rollback(1, 40, [DEFER]), skip, rollback(2, 45)])
    first, second = Edit(kind="defer", first=320, count=20), Edit(kind="skip", first=400, count=10)
    assert lineages.edits(0) == ()
    assert lineages.edits(1) == lineages.edits() == (first, second)


def test_a_fork_begins_where_it_was_forked() -> None:
    lineages = Lineages.of([{"event": "fork", "seq": 0, "lineage": 0, "step": 30, "edits": [DEFER]}])
    assert lineages.origin == 30 and lineages.path() == (Stretch(0, 31, None),)
    assert len(lineages.edits()) == 1


@pytest.mark.parametrize(
    "events",
    [
        [rollback(2, 40)],
        [rollback(1, 40), rollback(1, 40)],
        [{"event": "skip", "seq": 1, "lineage": 3, "step": 1, "edits": [SKIP]}],
        [rollback(1, 40, [{"kind": "skip"}])],
    ],
)
def test_events_that_do_not_follow_each_other_are_named(events: list[Any]) -> None:
    with pytest.raises(LedgerError, match="event "):
        Lineages.of(events)


def test_an_unknown_lineage_is_refused_with_those_there_are() -> None:
    with pytest.raises(LedgerError, match="no lineage 2; the run has 0, 1"):
        Lineages.of([rollback(1, 40)]).path(2)
