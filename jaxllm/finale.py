"""What a training process shows when it ends: what was learned, where it lies, what to do next."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxllm.assembly import Assembly
from jaxllm.data.store import Store
from jaxllm.evals.unigram import Unigram, unigram_entropy
from jaxllm.hints import next_commands
from jaxllm.ledger.scores import Score
from jaxllm.models.generate import Sampling
from jaxllm.run import RunConfig
from jaxllm.sampling import continue_text
from jaxllm.train.clock import Clock, Pace
from jaxllm.train.loop import Finished, Outcome, Paused, Stopped

Json = dict[str, Any]
_SAMPLING = Sampling(temperature=0.8, top_k=50)


def finale(
    run: RunConfig,
    folder: Path,
    store: Store,
    parts: Assembly,
    params: Any,
    outcome: Outcome,
    *,
    scores: Sequence[Score] | None,
    clock: Clock,
    pace: Pace,
    verified: int,
    diverged: int,
    digest: str | None,
    console: Console,
) -> Json:
    """Print the end of a run for people and return it for programs."""
    report: Json = {
        "run": run.name,
        "folder": str(folder),
        "digest": digest,
        "verified": verified,
        "diverged": diverged,
    }
    if verified or diverged:
        console.print(
            f"{verified + diverged} steps were executed again after a resume: {verified} bitwise as recorded"
            + (f", {diverged} DIFFERENT: see `jaxllm journal {folder}`" if diverged else ""),
            highlight=False,
            style="bold red" if diverged else None,
        )
    match outcome:
        case Paused(step=step, why=why):
            console.print(f"saved at step {step} ({why}); the same command goes on from there", highlight=False)
            return report | {"outcome": "paused", "step": step, "why": why}
        case Stopped(step=step, why=why):
            console.print(f"the guard stopped the run after step {step}: {why}", style="bold red", highlight=False)
            return report | {"outcome": "stopped", "step": step, "why": why}
        case Finished():
            pass
    unigram = {u.source: u for u in unigram_entropy(store)}
    if scores:
        _print_scores(scores, unigram, console)
    samples = []
    for prompt in run.evaluation.prompts:
        text = continue_text(
            parts,
            params,
            store.tokenizer_path,
            store.end_of_text_id,
            prompt,
            tokens=run.evaluation.sample_tokens,
            sampling=_SAMPLING,
        )
        samples.append({"prompt": prompt, "text": text})
        console.rule(f"continuing {prompt!r}", align="left", style="dim")
        console.print(prompt, style="bold", end="", highlight=False, markup=False)
        console.print(text, highlight=False, markup=False)
    phases = {k: round(v, 1) for k, v in clock.seconds.items() if k != "dispatch"}
    phases["steps"] = round(pace.stepping - pace.again, 1)
    if pace.again:
        phases["steps again"] = round(pace.again, 1)
    total = clock.total()
    console.rule(style="dim")
    console.print(
        f"finished: step {run.steps}, state digest {digest}\n"
        f"goodput {phases['steps'] / total:.0%} of {total:.0f} s: "
        + ", ".join(f"{k} {v:.0f} s" for k, v in phases.items()),
        highlight=False,
    )
    for line in next_commands(folder):
        console.print(line, highlight=False, markup=False)
    return report | {
        "outcome": "finished",
        "step": run.steps,
        "scores": [asdict(s) for s in scores or ()],
        "unigram": [asdict(u) for u in unigram.values()],
        "samples": samples,
        "seconds": phases,
    }


def _print_scores(scores: Sequence[Score], unigram: dict[str, Unigram], console: Console) -> None:
    table = Table(
        "held out",
        "bits/byte",
        "nats/token",
        "token frequencies alone: bits/byte",
        "nats/token",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for s in scores:
        u = unigram.get(s.source)
        plain = ("", "") if u is None else (f"{u.bits_per_byte:.3f}", f"{u.nats_per_token:.3f}")
        table.add_row(s.source, f"{s.bits_per_byte:.3f}", f"{s.nats_per_token:.3f}", *plain)
    console.print(table)
