"""Which components of the Model Openness Framework a release holds, where, under which licence. No jax.

White, Haddad, Osborne et al., "The Model Openness Framework" (arXiv:2403.13784), whose classes are III, II and I. What
a release does not hold is listed as missing: nothing is claimed that cannot be pointed at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxllm.release import layout
from jaxllm.release.facts import Facts

_PROGRAM = "Apache-2.0"  # of jaxllm, whose source the release carries


@dataclass(frozen=True)
class _Component:
    """openness: the class that asks for it. licence: 'weights', 'data', 'program' or 'record', which
    goes with the weights; paths: where it lies, none if it is not there."""

    name: str
    openness: int
    licence: str
    paths: Callable[[Facts], tuple[str, ...]]


def _always(*paths: str) -> Callable[[Facts], tuple[str, ...]]:
    return lambda f: paths


def _live(f: Facts) -> list[layout.CheckpointEntry]:
    return sorted((c for c in f.checkpoints if not c.branch.startswith("lineage")), key=lambda c: c.step)


def _final(f: Facts) -> tuple[str, ...]:
    return tuple(f"{c.folder}/{layout.HF}" for c in _live(f)[-1:]) if f.entry.finished else ()


def _intermediate(f: Facts) -> tuple[str, ...]:
    last = _live(f)[-1:] if f.entry.finished else []
    return tuple(f"{c.folder}/{layout.HF}" for c in f.checkpoints if c not in last)


def _configs(f: Facts) -> tuple[str, ...]:
    return (f"{layout.RECORD}/run.json", *(f"{c.folder}/{layout.HF}/config.json" for c in f.checkpoints))


def _results(f: Facts) -> tuple[str, ...]:
    return (layout.HELDOUT, *(f"{c.folder}/{layout.EVALUATION}" for c in f.checkpoints)) if f.scores else ()


def _tokens(f: Facts) -> tuple[str, ...]:
    return (layout.CHUNKS,) if "data" in f.contents else ()


def _states(f: Facts) -> tuple[str, ...]:
    return tuple(f"{c.folder}/{layout.STATE}" for c in f.checkpoints if "state" in c.items)


COMPONENTS = (
    _Component("Model Architecture", 3, "program", _always(layout.SOURCE_TAR)),
    _Component("Model Parameters (Final)", 3, "weights", _final),
    _Component("Model Card", 3, "record", _always(layout.README)),
    _Component("Data Card", 3, "record", _always(layout.DATA_CARD)),
    _Component("Technical Report", 3, "record", _always()),
    _Component("Evaluation Results", 3, "record", _results),
    _Component("Sample Model Outputs", 3, "record", _always()),
    _Component("Training, Validation and Testing Code", 2, "program", _always(layout.SOURCE_TAR)),
    _Component("Inference Code", 2, "program", _always(layout.SOURCE_TAR)),
    _Component("Evaluation Code", 2, "program", _always(layout.SOURCE_TAR)),
    _Component("Supporting Libraries and Tools", 2, "record", _always(layout.LOCK)),
    _Component("Evaluation Data", 2, "data", _always()),
    _Component("Data Preprocessing Code", 1, "program", _always(layout.SOURCE_TAR)),
    _Component("Datasets", 1, "data", _tokens),
    _Component("Model Parameters (Intermediate)", 1, "weights", _intermediate),
    _Component("Model Metadata", 1, "record", _always(layout.RELEASE, f"{layout.RECORD}/journal.jsonl")),
    _Component("Configuration File", 1, "record", _configs),
    _Component("Training State", 1, "weights", _states),
    _Component("Research Paper", 1, "record", _always()),
)


def mof(f: Facts) -> dict[str, Any]:
    """The content of mof.json."""
    components = list(_components(f))
    return {
        "framework": {"name": "Model Openness Framework", "version": "1.0", "source": "arXiv:2403.13784"},
        "release": {
            "name": f.entry.name,
            "version": str(f.entry.steps),
            "date": f.ended[:10],
            "license": f.licence,
            "type": "language model",
            "architecture": f.entry.model,
            "components": components,
        },
    }


def _components(f: Facts) -> Iterator[dict[str, Any]]:
    licences = {"weights": f.licence, "data": _of_data(f), "program": _PROGRAM, "record": f.licence}
    for component in COMPONENTS:
        paths = component.paths(f)
        yield {
            "name": component.name,
            "class": component.openness,
            "present": bool(paths),
            "paths": list(paths),
            "license": licences[component.licence] if paths else None,
        }


def _of_data(f: Facts) -> str:
    """An SPDX expression for all sources, or 'not stated' if it is so of any."""
    found = sorted({s.licence for s in f.sources})
    return layout.NOT_STATED if layout.NOT_STATED in found or not found else " AND ".join(found)
