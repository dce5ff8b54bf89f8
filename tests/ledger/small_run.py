"""A run over a store in memory, with every fate that a document can have."""

from dataclasses import replace

from jaxllm.data.config import Data, Share, Stage, StoreAt
from tests.data.fake_store import FakeReader, FakeStore, document_lengths

SEED = 11
# 'a': less than one epoch; 'b': several, with documents over many windows and two in the tail; 'c': in no mixture.
_B = document_lengths(1, 25, 60)
STORE = FakeStore(
    [
        FakeReader("a", [*document_lengths(0, 90, 40), 3]),
        FakeReader("b", [*_B, 8 + (1 - sum(_B)) % 8, 1, 2]),
        FakeReader("c", [20, 30]),
    ],
    [FakeReader("held", [15, 25])],
)
DATA = Data(
    store=StoreAt(path="nowhere"),
    seq_len=8,
    block=16,
    stages=(
        Stage(
            name="one",
            steps=9,
            batch_size=6,
            mixture=(Share(source="a", weight=0.75), Share(source="b", weight=0.25)),
        ),
        Stage(
            name="two", steps=12, batch_size=10, mixture=(Share(source="b", weight=2), Share(source="a", weight=0.1))
        ),
    ),
)
DISJOINT = replace(DATA, windows="disjoint")
STEPS = 21
