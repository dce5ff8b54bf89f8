"""A plan for people."""

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxllm.parallel.mesh import layout_text
from jaxllm.progress import people

Json = dict[str, Any]

_GIB, _TERA = 2**30, 1e12


def print_plan(report: Json, console: Console | None = None) -> None:
    """What `make_plan` found, with the figures that it rests on."""
    out = console or people()
    found = report["measured"]
    out.print(
        f"{report['run']}: {report['parameters']:,} parameters on {report['target']}, a step of "
        f"{report['batch_size']} sequences, {report['tokens_per_step']:,} tokens"
    )
    out.print(
        f"mesh {_mesh(report)}   remat {report['remat']}   micro-batch {report['micro_batch'] or 'whole'}   "
        f"attention {found['attention'] or 'unknown'}"
    )
    if report["quick"]:
        out.print("the compiler was told to try less: a full compilation needs a few per cent less memory")
    for what in found["left_out"]:
        out.print(f"left out, since it needs a device: {what}")
    if found["problem"] is None:
        _print_step(report, out)
    elif found["oom"]:
        needed = f"{_gib(found['needed_bytes'])} of {_gib(found['available_bytes'])}"
        out.print(f"does not fit: a device would need {needed}")
        _print_ways(report.get("ways_out", []), out)
    else:
        out.print(f"as written: {found['problem']}")
    if "search" in report:
        _print_search(report["search"], out)
        if "fastest" in report["search"]:
            out.print("the fastest, compiled in full:")
            _print_step(report | report["search"]["fastest"], out)
    for note in report["notes"]:
        out.print(f"note: {note}")
    chip = report["chip"]
    out.print(f"figures of {chip['name']}: {'; '.join(chip['sources'])}")


def _print_step(report: Json, out: Console) -> None:
    if report["measured"]["problem"] is not None:
        out.print(report["measured"]["problem"])
        return
    _print_memory(report, out)
    _print_collectives(report["measured"], out)
    _print_speed(report, out)


def _print_memory(report: Json, out: Console) -> None:
    found, hbm = report["measured"], report["chip"]["hbm_bytes"]
    rows = [
        ("parameters", found["parameter_bytes"]),
        ("optimizer state", found["optimizer_bytes"]),
        ("averaged parameters", found["average_bytes"]),
        ("gradients", found["gradient_bytes"]),
        ("activations and other temporaries", _activations(found)),
        ("peak, as compiled", found["peak_bytes"]),
        ("offloaded to the host", found["host_bytes"]),
    ]
    table = _table("memory of a device", "+GiB", "+of HBM")
    for name, size in rows:
        if size:
            table.add_row(name, f"{size / _GIB:.2f}", f"{size / hbm:.1%}")
    out.print(table)


def _activations(found: Json) -> float:
    """What the peak holds beside state and gradients."""
    held = sum(found[f"{k}_bytes"] for k in ("parameter", "optimizer", "average", "gradient"))
    return max(0.0, float(found["peak_bytes"]) - held)


def _print_collectives(found: Json, out: Console) -> None:
    table = _table("collectives, bytes sent", "mesh axes", "+times a step", "+GiB in a slice", "+GiB between slices")
    for axes, kind, times, within, between in found["collectives"]:
        table.add_row(kind, " x ".join(axes), f"{times:,}", f"{within / _GIB:.3f}", f"{between / _GIB:.3f}")
    out.print(table)


def _print_speed(report: Json, out: Console) -> None:
    found, line = report["measured"], report["roofline"]
    chip, own = report["chip"], line["model_flops"] / report["devices"]
    kinds = ", ".join(f"{k} {v / _TERA:.1f}" for k, v in found["flops_by_kind"].items())
    out.print(
        f"a device computes {found['flops'] / _TERA:.1f} TFLOP a step ({kinds}), {found['flops'] / own:.2f} times the "
        f"model's own, and moves {found['traffic_bytes'] / _GIB:.0f} GiB of its memory"
    )
    table = _table("a step at best", "+seconds", "")
    for name, seconds in line["seconds"].items():
        table.add_row(name, f"{seconds:.3f}", "binds" if name == line["binds"] else "")
    out.print(table)
    bubble = f"; {line['bubble']:.1%} of the pipeline's ticks are of no use" if line["bubble"] else ""
    out.print(
        f"bound by {line['binds']}: a step takes {line['step_seconds']:.3f} s or more, MFU at most {line['mfu']:.1%}, "
        f"{line['tokens_per_second']:,.0f} tokens/s, {line['days']:.1f} days for {report['run_tokens']:,} tokens"
    )
    out.print(
        f"if nothing hid behind anything: {line['step_seconds_serial']:.3f} s, MFU {line['mfu_serial']:.1%}, "
        f"{line['days_serial']:.1f} days{bubble}  (bfloat16 peak {chip['flops'] / _TERA:.0f} TFLOP/s; "
        f"latency left out; MFU counts masked keys too, as `train` does)"
    )


def _print_ways(ways: list[Json], out: Console) -> None:
    if not ways:
        out.print("nothing that was tried fits: fewer layers on a device (--topology, --gpus) is what is left")
        return
    table = _table("what fits, cheapest first", "+peak GiB", "+step s", "+device seconds", "+MFU at most")
    for way in ways:
        line = way["roofline"]
        chips = math.prod(way["mesh"].values()) * line["step_seconds"]
        table.add_row(
            " ".join([*way["changes"], f"({way['options']})"]),
            f"{way['measured']['peak_bytes'] / _GIB:.2f}",
            f"{line['step_seconds']:.3f}",
            f"{chips:,.0f}",
            f"{line['mfu']:.1%}",
        )
    out.print(table)


def _print_search(search: Json, out: Console) -> None:
    out.print(f"{search['considered']:,} placements considered, {search['compiled']} compiled; fastest first")
    table = _table("placement", "remat", "micro-batch", "+peak GiB", "+step s", "+serial s", "binds", "+MFU at most")
    for row in search["ranking"]:
        line = row["roofline"]
        table.add_row(
            _mesh(row) + ("  (as written)" if row.get("written") else ""),
            row["remat"],
            str(row["micro_batch"] or "whole"),
            f"{row['measured']['peak_bytes'] / _GIB:.2f}",
            f"{line['step_seconds']:.3f}",
            f"{line['step_seconds_serial']:.3f}",
            line["binds"],
            f"{line['mfu']:.1%}",
        )
    out.print(table)
    for row in search["refused"]:
        why, needed = row["measured"]["problem"], row["measured"]["needed_bytes"]
        needs = f" ({_gib(needed)})" if needed else ""
        out.print(
            f"refused: {_mesh(row)}, remat {row['remat']}, micro-batch {row['micro_batch'] or 'whole'}: {why}{needs}"
        )
    if search["ranking"] and (first := search["ranking"][0]["changes"]):
        out.print(f"fastest: {' '.join(first)}")


def _table(*titles: str) -> Table:
    """Columns; a + before the title puts figures to the right."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title.removeprefix("+"), justify="right" if title.startswith("+") else "left")
    return table


def _mesh(row: Json) -> str:
    return layout_text(row["mesh"]) + (" sp" if row["sequence_parallel"] else "")


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"
