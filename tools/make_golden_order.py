"""Write tests/data/golden_order.json, the numbers that freeze the data order.

    python tools/make_golden_order.py

Runs that exist were made in this order: if the file comes out differently, the code is wrong, not the file.
"""

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.data.mixture import Mixture
from jaxllm.data.order import Order, SourceSpan, StageSpan
from jaxllm.data.permutation import Permutation, key_of

PATH = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden_order.json"

KEYS: tuple[tuple[str | int, ...], ...] = (
    (0, "block", 0, 0),
    (17, "source", "web", 3, 2048, "shared"),
    (2**63 - 1, "source", "prose \u00e9", 0, 8192, "disjoint"),
)
PERMUTATIONS = ((1, 5), (2, 5), (3, 5), (17, 1), (1024, 2**64 - 1), (65_537, 3), (5 * 10**9, 11), (2**62, 7))
MIXTURES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("7/10", "3/10"), 100),
    (("7/10", "1/4", "1/20"), 10_000),
    (("1", "1", "1", "1", "1", "1", "1"), 1000),
    (("999999999999999/1000000000000000", "0", "1/1000000000000000"), 10**15),
)
ORDERS: tuple[dict[str, Any], ...] = (
    {
        "sources": [["code", 37], ["math", 11], ["web", 403]],
        "stages": [[330, ["1/4", "1/20", "7/10"]], [129, ["2/5", "1/5", "2/5"]]],
        "block": 32, "seed": 17, "seq_len": 64, "windows": "shared", "samples": list(range(459)),
    },
    {
        "sources": [["small", 3_000_000], ["web", 2_000_000_000]],
        "stages": [[1_024_000_000, ["1/20", "19/20"]], [102_400_000, ["1/2", "1/2"]]],
        "block": 1024, "seed": 1, "seq_len": 8192, "windows": "disjoint",
        "samples": [0, 1, 2, 1023, 1024, 999_999_999, 1_023_999_999, 1_024_000_000, 1_126_399_999],
    },
)  # fmt: skip


def order_of(case: dict[str, Any]) -> Order:
    """The order that a golden case describes."""
    return Order(
        [SourceSpan(*source) for source in case["sources"]],
        [StageSpan(samples, tuple(map(Fraction, weights))) for samples, weights in case["stages"]],
        **{name: case[name] for name in ("block", "seed", "seq_len", "windows")},
    )


def golden() -> dict[str, Any]:
    """Everything that is frozen: inputs beside outputs."""
    return {
        "keys": [{"parts": parts, "key": key_of(*parts)} for parts in KEYS],
        "permutations": [_permutation(n, key) for n, key in PERMUTATIONS],
        "mixtures": [_mixture(weights, samples) for weights, samples in MIXTURES],
        "orders": [_order(case) for case in ORDERS],
    }


def _permutation(n: int, key: int) -> dict[str, Any]:
    x = sorted({i for i in (0, 1, 2, 3, 16, 1000, 65_536, n // 2, n - 1) if i < n})
    return {"n": n, "key": key, "x": x, "y": Permutation(n, key)(x).tolist()}


def _mixture(weights: tuple[str, ...], samples: int) -> dict[str, Any]:
    x = np.array([0, 1, 2, 3, 7, 31, samples // 3, samples - 1, samples])
    taken = Mixture([Fraction(w) for w in weights], samples).taken(x)
    return {"weights": weights, "samples": samples, "x": x.tolist(), "taken": taken.tolist()}


def _order(case: dict[str, Any]) -> dict[str, Any]:
    rows = order_of(case).rows(case["samples"])
    columns = [rows.source.tolist(), rows.epoch.tolist(), rows.window.tolist()]
    if len(case["samples"]) > 50:  # a run of samples is frozen by a hash, its start by numbers
        text = json.dumps(columns, separators=(",", ":"))
        span = [case["samples"][0], case["samples"][-1] + 1]
        head = [column[:16] for column in columns]
        return case | {"samples": span, "head": head, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return case | {"rows": columns}


def main() -> None:
    parts = (
        f'"{name}": [\n' + ",\n".join("  " + json.dumps(case) for case in cases) + "\n]"
        for name, cases in golden().items()
    )
    PATH.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
