"""What pieces of an interval come to: every way in which two neighbours can disagree."""

from typing import Any

import pytest

from jaxllm.release.verdict import Kind, Piece, enough, judge


def piece(number: int, **how: Any) -> Piece:
    """Steps 8n+1..8n+8, which hold unless `how` says otherwise."""
    return Piece(**{"first": 8 * number, "last": 8 * number + 8, "ends": True, "saved": True, **how})


AT_11: dict[str, Any] = {"records": (11, ("loss_bits", "losses"))}
FROM_17: dict[str, Any] = {"records": (17, ("loss_bits",)), "ends": False, "saved": False}
FROM_25: dict[str, Any] = {"records": (25, ("loss_bits",)), "ends": False, "saved": False}
LOST: dict[str, Any] = {"ends": False, "saved": False}
OTHER: dict[str, Any] = {"begins": "otherwise", "why": "its state is a, journaled b"}
DAMAGED: dict[str, Any] = {"begins": "damaged", "why": "params.x: its digest is 1", "ends": None, "saved": None}

CASES: list[tuple[str, Kind, int | None, list[Piece]]] = [
    ("nothing", "holds", None, [piece(0), piece(1), piece(2)]),
    ("no state at the end is known", "holds", None, [piece(0), piece(1, ends=None, saved=None)]),
    ("a record was changed", "record", 11, [piece(0), piece(1, **AT_11), piece(2)]),
    ("a step came out otherwise once", "once", 11, [piece(0), piece(1, **AT_11, **LOST), piece(2)]),
    ("nobody knows whether once", "open", 11, [piece(0), piece(1, **AT_11, **LOST)]),
    ("from the beginning on", "persistent", 17, [piece(2, **FROM_17), piece(3, **FROM_25)]),
    ("two in a row", "several", 11, [piece(1, **AT_11, **LOST), piece(2, **LOST), piece(3)]),
    ("a state was changed in memory", "before", 16, [piece(1, **LOST), piece(2)]),
    ("a checkpoint and the journal", "checkpoint", 16, [piece(1, **LOST), piece(2, **FROM_17)]),
    ("a checkpoint alone", "checkpoint", None, [piece(1), piece(2, **OTHER, **FROM_17)]),
    ("the journal alone", "journal", 16, [piece(1, ends=False, saved=True), piece(2, **OTHER)]),
    ("all three disagree", "several", 16, [piece(1, **LOST), piece(2, **OTHER)]),
    ("files are damaged", "damaged", None, [piece(1), piece(2, **DAMAGED), piece(3)]),
    ("they are, and something more", "damaged", 16, [piece(1, **LOST), piece(2, **DAMAGED)]),
    ("the last state", "open", 16, [piece(0), piece(1, **LOST)]),
]


@pytest.mark.parametrize(("kind", "step", "pieces"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_way_to_disagree_has_its_verdict(kind: Kind, step: int | None, pieces: list[Piece]) -> None:
    found = judge(pieces)
    assert (found.kind, found.step) == (kind, step), found.said
    bad = next((p for p in pieces if not p.holds), None)
    assert found.between == (None if bad is None else (bad.first, bad.last))


def test_it_goes_on_until_one_behind_holds_or_two_do_not() -> None:
    assert not enough([piece(0), piece(1)])
    assert not enough([piece(0), piece(1, **AT_11)])
    assert enough([piece(0), piece(1, **AT_11), piece(2)])
    assert not enough([piece(1, **AT_11), piece(2, **LOST)])
    assert enough([piece(1, **AT_11), piece(2, **LOST), piece(3, **LOST)])


def test_what_was_not_executed_is_not_counted() -> None:
    assert [p.steps for p in (piece(1), piece(2, **DAMAGED))] == [8, 0]
