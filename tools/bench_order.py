"""How long the data order takes at 10^13 tokens: forwards (the rows of a step) and backwards (the uses of a window).

    python tools/bench_order.py

Targets: the 1,024 rows of any step under 2 ms, the uses of a window under 1 ms.
"""

import random
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from jaxllm.data.order import Order, SourceSpan, StageSpan
from jaxllm.data.permutation import Permutation, key_of

SEQ_LEN = 8192
BATCH = 1024
TOKENS = 10**13


def large_order(sources: int = 3) -> Order:
    """10^13 tokens in two stages: a web source that is never used up, and smaller ones that are repeated."""
    samples = TOKENS // SEQ_LEN // BATCH * BATCH
    first = samples * 9 // 10 // BATCH * BATCH
    spans = [SourceSpan("web", 2_000_000_000)]
    spans += [SourceSpan(f"small-{i}", 60_000_000 // (sources - 1) + i) for i in range(sources - 1)]
    small = Fraction(1, 10 * (sources - 1))
    return Order(
        spans,
        [
            StageSpan(first, (Fraction(9, 10), *[small] * (sources - 1))),
            StageSpan(samples - first, (Fraction(1, 2), *[5 * small] * (sources - 1))),
        ],
        block=1024,
        seed=1,
        seq_len=SEQ_LEN,
        windows="shared",
    )


def bench(order: Order) -> None:
    """Print what one order costs, at random places."""
    dice = random.Random(0)
    steps, web, small = order.total // BATCH, *(s.windows for s in order.sources[:2])
    print(f"{order.total:,} samples of {SEQ_LEN} tokens, {steps:,} steps of {BATCH}, {len(order.sources)} sources")

    def step_rows(step: int) -> object:
        return order.rows(np.arange(step * BATCH, (step + 1) * BATCH))

    def any_rows(first: int) -> object:
        return order.rows(np.arange(first, first + BATCH))

    def scattered_rows(seed: int) -> object:
        return order.rows(np.random.default_rng(seed).integers(0, order.total, BATCH))

    line("rows of a step", step_rows, [dice.randrange(steps) for _ in range(100)])
    line("rows of 1,024 samples across two blocks", any_rows, [dice.randrange(order.total - BATCH) for _ in range(100)])
    line("rows of 1,024 scattered samples", scattered_rows, range(20))
    windows = [dice.randrange(web) for _ in range(200)]
    line("uses of a window of a source that lasts", lambda w: order.samples_of(0, w), windows)
    windows = [dice.randrange(small) for _ in range(200)]
    epochs = len(order.samples_of(1, windows[0]))
    line(f"uses of a window that is used {epochs} times", lambda w: order.samples_of(1, w), windows)


def line(what: str, call: Callable[[int], object], arguments: Sequence[int]) -> None:
    """Print median and worst CPU time of a call. Other work on the machine moves it less than the time of day."""
    call(arguments[0])
    times = []
    for argument in arguments:
        began = time.process_time()
        call(argument)
        times.append((time.process_time() - began) * 1e3)
    print(f"  {what:<44} {np.median(times):7.3f} ms   (worst {max(times):.3f})")


def main() -> None:
    for sources in (3, 64):
        bench(large_order(sources))
    x = np.arange(1 << 20)
    began = time.process_time()
    Permutation(5_000_000_000, key_of("bench"))(x)
    print(f"permutation of 5e9: {len(x) / (time.process_time() - began) / 1e6:.1f} million values a second")


if __name__ == "__main__":
    main()
