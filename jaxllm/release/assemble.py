"""The parts of a release, in the order in which they are made. No jax."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from jaxllm.checkpoint.disk import used_bytes
from jaxllm.checkpoint.layout import DamagedCheckpointError, step_folder
from jaxllm.core.config import encode
from jaxllm.core.errors import CheckFailed
from jaxllm.exporting import export_run
from jaxllm.models.count import parameter_bytes
from jaxllm.release import checks, environments, layout, metrics, snapshot, spans
from jaxllm.release.chunks import chunk_bytes, write_chunks
from jaxllm.release.material import Material
from jaxllm.release.parts import Part
from jaxllm.release.selection import Chosen

Report = Callable[[str, int, int], None]
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PER_STEP = 400  # bytes of a row of steps.csv and steps.parquet together


def parts_of(m: Material, report: Report) -> Iterator[Part]:
    """The record first: what follows is made from its copy."""
    size = snapshot.record_bytes(m.folder, m.moment)
    yield Part("record", (layout.RECORD,), partial(_record, m, report), size)
    tables = (layout.STEPS_CSV, layout.STEPS_PARQUET, layout.HELDOUT, layout.SPEEDS, layout.EVENTS)
    yield Part("metrics", tables, partial(_metrics, m), size + m.run.steps * _PER_STEP)
    if "tensorboard" in m.order.extras:
        curves = m.folder / "tensorboard"
        yield Part("tensorboard", (layout.TENSORBOARD,), partial(_tensorboard, m, curves), used_bytes(curves))
    store = m.streams.store
    paths = (layout.STORE_MANIFEST, layout.LEDGERS, f"{layout.DATA}/{store.manifest.inputs_file}")
    make = partial(spans.copy_store, store, m.release / layout.DATA, report)
    yield Part("store", paths, make, sum(entry.size for _, entry in spans.copied(store)))
    yield Part("order", (layout.ORDER, layout.INTERVALS), partial(_order, m, report))
    described = (layout.LOCK, layout.FINGERPRINTS, layout.SOURCE, layout.SOURCE_TAR)
    yield Part("environment", described, partial(_environment, m))
    for chosen in m.chosen:
        yield from _checkpoint(m, chosen, report)


def interval_name(c: Chosen, origin: int) -> str:
    """The folder of the tokens that a checkpoint saw since its parent: step9-16, lineage0-step17-20."""
    before = origin if c.parent is None else c.parent.step
    return f"{'' if c.live else f'lineage{c.lineage}-'}step{before + 1}-{c.step}"


def _checkpoint(m: Material, c: Chosen, report: Report) -> Iterator[Part]:
    folder = f"{layout.CHECKPOINTS}/{c.branch}"
    weights = f"{folder}/{layout.HF}"
    size = parameter_bytes(m.run.model, _BYTES[m.order.dtype])
    yield Part(f"{c.branch}-hf", (weights,), partial(_weights, m, c, m.release / weights, report), size)
    if "optimizer" in m.order.extras:
        state = f"{folder}/{layout.STATE}"
        size = used_bytes(step_folder(c.place, c.step))
        yield Part(f"{c.branch}-state", (state,), partial(_state, c, m.release / state, report), size)
    evaluation = f"{folder}/{layout.EVALUATION}"
    yield Part(f"{c.branch}-evaluation", (evaluation,), partial(_evaluation, m, c, m.release / evaluation))
    if "data" in m.order.extras and c.first < c.last:
        chunks = f"{layout.CHUNKS}/{interval_name(c, m.now.lineages.origin)}"
        make = partial(write_chunks, m.streams, c, m.release / chunks, report)
        yield Part(f"{c.branch}-chunks", (chunks,), make, chunk_bytes(m.streams, c))


def _record(m: Material, report: Report) -> None:
    snapshot.copy(m.folder, m.record, m.moment, len(m.now.lineages.branches), m.table, report)


def _metrics(m: Material) -> None:
    def rows() -> Iterator[metrics.Row]:
        return metrics.step_rows(m.record, m.now.lineages, m.table, m.run.data.seq_len)

    metrics.write_csv(m.release / layout.STEPS_CSV, metrics.STEPS, rows())
    metrics.write_parquet(m.release / layout.STEPS_PARQUET, rows())
    metrics.write_csv(m.release / layout.HELDOUT, metrics.HELDOUT, m.measured.heldout())
    metrics.write_csv(m.release / layout.SPEEDS, metrics.SPEEDS, m.measured.speeds())
    metrics.write_csv(m.release / layout.EVENTS, metrics.EVENTS, metrics.event_rows(m.events))


def _tensorboard(m: Material, curves: Path) -> None:
    shutil.copytree(curves, m.release / layout.TENSORBOARD)


def _order(m: Material, report: Report) -> None:
    spans.write_json(m.release / layout.ORDER, spans.order(m.streams))
    spans.write_json(m.release / layout.INTERVALS, spans.intervals(m.streams, m.chosen, report))


def _environment(m: Material) -> None:
    (m.release / layout.LOCK).write_text(environments.lock(m.stays), encoding="utf-8")
    spans.write_json(m.release / layout.FINGERPRINTS, environments.fingerprints(m.stays))
    spans.write_json(m.release / layout.SOURCE, environments.source(m.stays))
    (m.release / layout.SOURCE_TAR).write_bytes(environments.source_tar())


def _weights(m: Material, c: Chosen, out: Path, report: Report) -> None:
    export_run(
        m.folder,
        out,
        step=c.step,
        checkpoints=c.place,
        dtype=m.order.dtype,
        rounding=m.order.rounding,
        report=lambda _, done, total: report(f"{c.branch} weights", done, total),
    )


def _state(c: Chosen, place: Path, report: Report) -> None:
    """The step as it lies in the run, byte for byte; the copy is held against the digests of its manifest."""
    report(f"{c.branch} state", 0, 1)
    shutil.copytree(step_folder(c.place, c.step), step_folder(place, c.step))
    try:
        checks.arrays(place, c.step, c.manifest, "its copy")
    except CheckFailed as err:
        raise DamagedCheckpointError(c.place, c.step, str(err)) from None
    report(f"{c.branch} state", 1, 1)


def _evaluation(m: Material, c: Chosen, path: Path) -> None:
    run, store = m.run, m.streams.store
    value = {
        "branch": c.branch,
        "step": c.step,
        "tokens": c.manifest.tokens,
        "scores": [encode(s) for s in m.measured.scores(c.step, c.lineage)],
        "measured_with": {
            "split": "heldout",
            "windows": run.evaluation.windows,
            "seq_len": run.data.seq_len,
            "attention": run.data.attention,
            "store_manifest_sha256": store.manifest_sha256,
            "tokenizer": store.tokenizer_identity,
        },
    }
    spans.write_json(path, value)
