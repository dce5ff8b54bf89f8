"""How far a state that was computed again is from the recorded one, as values. No jax.

Relative is by sums over whole arrays: a single element whose gradient is all rounding may end anywhere within the
learning rate, and says nothing of the others. Three of 65,536 did, in the small run of the README on two devices, and
were thirty times all other distances together by their squares.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ArrayDeviation:
    """An array that differs.

    relative: the sum of |again - recorded| over that of |recorded|; infinite if one of them is not finite, or recorded
    is zero.
    largest: of the element that is furthest off, its distance. ulp: that distance, in numbers of the array's type
    that lie between.
    """

    name: str
    relative: float
    largest: float
    ulp: int


@dataclass(frozen=True, kw_only=True)
class ItemDeviation:
    """An item of the state ('params', 'opt', 'ema'): of its arrays, how many differ, and the one furthest off."""

    item: str
    arrays: int
    differing: int
    furthest: ArrayDeviation | None


@dataclass(frozen=True, kw_only=True)
class StateDeviation:
    """A state that has another digest than was recorded after `step`, `after` steps from where it was begun.

    items: in the order of the state. unread: why the recorded arrays could not be compared; None where they were.
    """

    step: int
    after: int
    items: tuple[ItemDeviation, ...] = ()
    unread: str | None = None


def item_deviation(item: str, names: Iterable[str], differing: Mapping[str, ArrayDeviation]) -> ItemDeviation:
    """An item of the arrays `names`, of which those in `differing` differ."""
    mine = list(names)
    off = [differing[name] for name in mine if name in differing]
    furthest = max(off, key=lambda d: (d.relative, d.ulp), default=None)
    return ItemDeviation(item=item, arrays=len(mine), differing=len(off), furthest=furthest)
