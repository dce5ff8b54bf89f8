"""Small programs in the spelling of real compilers: lines that they wrote, cut short.

tpu.hlo: a loop without a stated trip count, from 1 to 5; an all-gather spread over a chain of fusions; a reduce-scatter
spelled as a fusion around an all-reduce; arrays in the faster memory, S(1); a group over a mesh in another order.
gpu.hlo: a loop with a stated trip count; starts and dones; a tuple that is reduced at once.
"""

from pathlib import Path

TPU, GPU = (Path(__file__).with_name(f"{name}.hlo").read_text() for name in ("tpu", "gpu"))
