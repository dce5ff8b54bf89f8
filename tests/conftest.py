"""What every test sees, set before jax starts. Anything set in the shell wins."""

import os

from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Sums on CPU depend on the number of XLA's threads; tools/test.sh says the same.
os.environ.setdefault("NPROC", "2")

# The same examples every time: a failure that cannot be seen again is of no use to whoever reads the log.
# `--hypothesis-profile=search` draws fresh ones.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("fixed")
