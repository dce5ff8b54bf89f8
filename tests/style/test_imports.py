"""Import direction: an allow-list of packages, no cycles, jax only where it belongs, adapters kept apart.

Each rule is a function from a source tree to a list of violations; each is shown a tree with a planted one.
"""

import fnmatch
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.style import graph

ROOT = Path(__file__).resolve().parents[2]

# Package of jaxllm -> the packages it may import. The modules directly in jaxllm/ and those ON_TOP may import all of
# these, and none of these may import them.
MAY_IMPORT = {
    "core": "",
    "parallel": "core",
    "data": "core",
    "optim": "core",
    "ops": "core parallel",
    "models": "core parallel ops",
    "checkpoint": "core parallel",
    "ledger": "core data",
    "convert": "core models checkpoint",
    "evals": "core parallel ops models data ledger",
    "train": "core parallel ops optim models data checkpoint ledger",
}
ON_TOP = {"release", "plan", "report", "compare"}
# RunConfig composes the section configs and nothing else.
RUN_MAY_IMPORT = ("jaxllm.core.*", "jaxllm.*.config")

# What starts an accelerator stack.
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "chex"}
# No jax at all, not even inside functions.
NO_JAX = (
    "jaxllm.core*",
    "jaxllm.data*",
    "jaxllm.ledger*",
    "jaxllm.convert*",
    "jaxllm.models.count",
    "jaxllm.models.families*",
    "jaxllm.train.guard",
    "jaxllm.train.spikes",
    "jaxllm.train.faults",
    "jaxllm.*.config",
    "jaxllm.models.mup",
    "jaxllm.plan.hlo",
    "jaxllm.plan.collectives",
    "jaxllm.plan.traffic",
    "jaxllm.plan.roofline",
    "jaxllm.plan.estimate",
    "jaxllm.plan.candidates",
    "jaxllm.run",
    "configs*",
)
NO_JAX_BUT = ("jaxllm.data.feed",)
# Importing these starts no jax either, directly or through others; they may import it inside functions.
STARTS_NO_JAX = (
    *NO_JAX,
    "jaxllm.cli*",
    "jaxllm.workspace",
    "jaxllm.data_commands",
    "jaxllm.exporting",
    "jaxllm.compare*",
    "jaxllm.asking",
    "jaxllm.control",
    "jaxllm.fetching",
    "jaxllm.forking",
    "jaxllm.release.agreement",
    "jaxllm.release.hub",
    "jaxllm.release.publish*",
    "jaxllm.release.checks",
    "jaxllm.release.deviation",
    "jaxllm.release.sealed",
    "jaxllm.release.verify",
    "jaxllm.report*",
)

# Modelling files that an export carries: data to us, which nothing imports, and written for torch and transformers.
CARRIED = ("jaxllm.convert.carried*",)

# Heavy or conflicting packages: one file each, inside functions.
ADAPTED = {"torch", "transformers", "lm_eval", "datatrove", "seqio", "tensorflow", "infini_gram"}

# All that a file of configs/ may import: configs are values, with no clock, files, environment or devices in them.
CONFIGS_MAY_IMPORT = (
    "configs*",
    "jaxllm.run",
    "jaxllm.*.config",
    "jaxllm.models.mup",
    "jaxllm.core.config",
    "jaxllm.core.dims",
    "dataclasses",
    "math",
    "typing",
)


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(module, p) for p in patterns)


def say(root: Path, found: graph.Import, rule: str) -> str:
    return f"{found.file.relative_to(root)}:{found.line}: {rule} (imports {found.module})"


def direction(root: Path) -> list[str]:
    """Packages import only what the allow-list gives them; nothing in jaxllm imports what lies outside the package."""
    tree = graph.read(root, "jaxllm")
    wrong = []
    for i in tree.imports:
        parts, other = i.importer.split("."), i.module.split(".")
        mine = parts[1] if len(parts) > 1 else ""
        if other[0] in ("configs", "tools", "launch", "tests"):
            wrong.append(say(root, i, "jaxllm imports nothing of configs, tools, launch or tests"))
        if other[0] != "jaxllm" or len(other) < 2:
            continue
        if mine in MAY_IMPORT and other[1] not in {mine, *MAY_IMPORT[mine].split()}:
            wrong.append(say(root, i, f"{mine} may import {MAY_IMPORT[mine] or 'no other package'}"))
        if i.importer == "jaxllm.run" and not matches(i.module, RUN_MAY_IMPORT):
            wrong.append(say(root, i, "run composes configs"))
    folders = {p.name for p in (root / "jaxllm").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    wrong += [
        f"jaxllm/{f}: not in the allow-list; decide what it may import" for f in folders - set(MAY_IMPORT) - ON_TOP
    ]
    return wrong


def cycles(root: Path) -> list[str]:
    """No import cycle between files, imports inside functions included."""
    found = graph.cycle(graph.read(root, "jaxllm", "configs"))
    return [" -> ".join(found)] if found else []


def jax_kept_out(root: Path) -> list[str]:
    """Files that run without an accelerator stack import none; those that start commands import it inside functions."""
    tree = graph.read(root, "jaxllm", "configs")
    wrong = [
        say(root, i, "no jax here")
        for i in tree.imports
        if i.module.partition(".")[0] in JAX and matches(i.importer, NO_JAX) and not matches(i.importer, NO_JAX_BUT)
    ]
    for name in tree.modules:
        if matches(name, STARTS_NO_JAX) and not matches(name, NO_JAX_BUT):
            for package, chain in graph.starts(tree, name).items():
                if package in JAX:
                    wrong.append(f"{name}: importing it starts {package}, by way of {' -> '.join(chain)}")
    return wrong


def adapters_apart(root: Path) -> list[str]:
    """torch and its like: inside functions, in one file each."""
    tree = graph.read(root, "jaxllm")
    found = [i for i in tree.imports if i.module.partition(".")[0] in ADAPTED and not matches(i.importer, CARRIED)]
    wrong = [say(root, i, "import it inside the function that needs it") for i in found if i.top]
    for package in sorted(ADAPTED):
        files = sorted({str(i.file.relative_to(root)) for i in found if i.module.partition(".")[0] == package})
        if len(files) > 1:
            wrong.append(f"{package} is imported in {', '.join(files)}; one adapter file holds it")
    return wrong


def carried_is_data(root: Path) -> list[str]:
    """Nothing imports what an export carries, and it imports nothing of ours: it runs where jaxllm is not."""
    tree = graph.read(root, "jaxllm", "configs")
    return [
        say(root, i, "what an export carries stands alone")
        for i in tree.imports
        if matches(i.importer, CARRIED) != matches(i.module, CARRIED)
        and (i.module.partition(".")[0] == "jaxllm" or matches(i.module, CARRIED))
    ]


def configs_are_values(root: Path) -> list[str]:
    """Files of configs/ import configs, and nothing that reads the machine."""
    tree = graph.read(root, "jaxllm", "configs")
    return [
        say(root, i, "configs import config classes only")
        for i in tree.imports
        if matches(i.importer, ("configs*",)) and not matches(i.module, CONFIGS_MAY_IMPORT)
    ]


RULES = [direction, cycles, jax_kept_out, adapters_apart, carried_is_data, configs_are_values]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule_holds(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


SOUND = {
    "configs/__init__.py": "",
    "configs/x.py": "from dataclasses import replace\nfrom jaxllm.models.config import Model",
    "jaxllm/__init__.py": "",
    "jaxllm/cli.py": "import json\ndef go():\n    from jaxllm import app",
    "jaxllm/app.py": "import jax\nfrom jaxllm.train import loop\nfrom jaxllm.convert import hf",
    "jaxllm/run.py": "from jaxllm.models.config import Model",
    "jaxllm/core/__init__.py": "",
    "jaxllm/core/files.py": "import json",
    "jaxllm/convert/hf.py": "def go():\n    import torch.nn",
    "jaxllm/convert/carried/modeling_x.py": "import torch\nfrom .configuration_x import X",
    "jaxllm/convert/carried/configuration_x.py": "from transformers import PreTrainedConfig",
    "jaxllm/data/__init__.py": "",
    "jaxllm/data/feed.py": "import grain\nfrom jaxllm.data import order",
    "jaxllm/data/order.py": "import numpy\nfrom ..core import files",
    "jaxllm/models/config.py": "from jaxllm.core import files",
    "jaxllm/models/decoder.py": "import jax\nfrom jaxllm.models.config import Model",
    "jaxllm/train/guard.py": "import math",
    "jaxllm/train/loop.py": "from jaxllm.train import guard\nfrom jaxllm.models import decoder",
}

# (rule, file, planted source, words of the one violation)
PLANTED = [
    (direction, "jaxllm/models/mlp.py", "from jaxllm.optim import adamw", "jaxllm/models/mlp.py:1: models may import"),
    (direction, "jaxllm/models/mlp.py", "def f():\n    from ..optim.adamw import go", "mlp.py:2: models may import"),
    (direction, "jaxllm/train/loop.py", "import jaxllm.run", "loop.py:1: train may import"),
    (direction, "jaxllm/core/files.py", "from jaxllm import app", "files.py:1: core may import no other package"),
    (direction, "jaxllm/app.py", "import configs.x", "jaxllm/app.py:1: jaxllm imports nothing of configs"),
    (direction, "jaxllm/run.py", "from jaxllm.models import decoder", "run composes configs"),
    (direction, "jaxllm/misc/x.py", "", "jaxllm/misc: not in the allow-list"),
    (cycles, "jaxllm/train/guard.py", "def f():\n    from jaxllm.train import loop", "loop -> jaxllm.train.guard"),
    (jax_kept_out, "jaxllm/core/files.py", "def f():\n    import jax", "jaxllm/core/files.py:2: no jax here"),
    (jax_kept_out, "jaxllm/train/guard.py", "import jax.numpy as jnp", "jaxllm.train.guard: importing it starts jax"),
    (
        jax_kept_out,
        "jaxllm/cli.py",
        "from jaxllm import app",
        "cli: importing it starts jax, by way of jaxllm.cli -> jaxllm.app",
    ),
    (
        jax_kept_out,
        "jaxllm/data/__init__.py",
        "from jaxllm.data import feed",
        "jaxllm.data.order: importing it starts grain",
    ),
    (jax_kept_out, "configs/x.py", "from jaxllm.models.decoder import build", "configs.x: importing it starts jax"),
    (adapters_apart, "jaxllm/convert/hf.py", "import torch", "hf.py:1: import it inside the function"),
    (adapters_apart, "jaxllm/evals/x.py", "def f():\n    import torch", "jaxllm/convert/hf.py, jaxllm/evals/x.py"),
    (carried_is_data, "jaxllm/app.py", "from jaxllm.convert.carried import modeling_x", "app.py:1: what an export"),
    (carried_is_data, "jaxllm/convert/carried/configuration_x.py", "import jaxllm.core", "x.py:1: what an export"),
    (configs_are_values, "configs/x.py", "import os", "configs/x.py:1: configs import config classes only"),
]


def plant(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule_passes_a_sound_tree(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    plant(tmp_path, SOUND)
    assert rule(tmp_path) == []


@pytest.mark.parametrize(("rule", "file", "source", "words"), PLANTED, ids=lambda v: getattr(v, "__name__", None))
def test_rule_finds_what_was_planted(
    rule: Callable[[Path], list[str]], file: str, source: str, words: str, tmp_path: Path
) -> None:
    plant(tmp_path, SOUND | {file: source})
    found = rule(tmp_path)
    assert any(words in line for line in found), found


def test_commands_and_configs_start_no_jax() -> None:
    """The same in a real process, where a library might bring jax along unseen."""
    tree = graph.read(ROOT, "jaxllm", "configs")
    names = [n for n in tree.modules if matches(n, STARTS_NO_JAX) and not matches(n, NO_JAX_BUT)]
    names = [n for n in names if not n.startswith("jaxllm.convert.carried.")]  # data to us; they need torch
    assert {"jaxllm.run", "jaxllm.cli", "configs.quickstart"} <= set(names)
    script = "import importlib, sys\nfor n in sys.argv[1:]: importlib.import_module(n)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert JAX.isdisjoint(name.partition(".")[0] for name in done.stdout.split())
