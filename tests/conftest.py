"""What every test sees, set before jax starts. Anything set in the shell wins."""

import atexit
import importlib.util
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Sums on CPU depend on the number of XLA's threads; tools/test.sh says the same.
os.environ.setdefault("NPROC", "2")

# transformers keeps a copy of every modelling file that it opens a model with; ours lie in a folder of the tests. None
# of them asks a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "HF_MODULES_CACHE" not in os.environ:
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="jaxllm-modules-")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

# The same examples every time: a failure that cannot be seen again is of no use to whoever reads the log.
# `--hypothesis-profile=search` draws fresh ones.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs torch where it is not installed: the test environment brings it for Python 3.11 only."""
    if importlib.util.find_spec("torch") is not None:
        return
    absent = pytest.mark.skip(reason="torch is not installed; pip install torch==2.13.0 to hold us against it")
    for item in items:
        if item.get_closest_marker("torch") is not None:
            item.add_marker(absent)
