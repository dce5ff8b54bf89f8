"""Arrays that are written to memory once, where a compiler would compute them anew in every place that reads them.

XLA's CPU backend fuses elementwise work into its readers without counting what it repeats: left to it, the angles of
rotary embeddings, sine and cosine included, were computed again by every block of keys of every layer, which was a
third of a step. `jax.lax.optimization_barrier` does not help: it is gone before fusion begins. A call that may not be
inlined stays. On other platforms, where fusion is what one wants, nothing of this is in the program.
"""

from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_settled = Primitive("settled")
_settled.def_impl(lambda x: x)
_settled.def_abstract_eval(lambda x: x)
batching.defvectorized(_settled)
ad.deflinear2(_settled, lambda dy, x: (dy,))  # a gradient has other readers


@jax.jit
def _as_it_is(x: jax.Array) -> jax.Array:
    return x


def _call(x: jax.Array) -> jax.Array:
    with set_xla_metadata(inlineable="false"):
        return _as_it_is(x)


def _nothing(context: Any, x: Any) -> list[Any]:
    return [x]


mlir.register_lowering(_settled, _nothing)
mlir.register_lowering(_settled, mlir.lower_fun(_call, multiple_results=False), platform="cpu")


def settled(x: jax.Array) -> jax.Array:
    """`x`, of which a CPU computes every number once, whoever reads it."""
    y: jax.Array = _settled.bind(x)
    return y
