"""Which checkpoints go into a release, and what each of them saw of the stream. No jax."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxllm.checkpoint.layout import place_of, read_meta
from jaxllm.checkpoint.manifest import Manifest, state_digest
from jaxllm.core.errors import CheckpointError, ConfigError, RunError
from jaxllm.data.steps import StepTable
from jaxllm.ledger.fold import Committed, Present
from jaxllm.ledger.lineage import Lineages
from jaxllm.release.layout import branch_name


@dataclass(frozen=True)
class Wish:
    """What --checkpoints asks for: those at multiples of `every` and the newest, or those at `steps`."""

    every: int = 1
    steps: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return f"steps={','.join(map(str, self.steps))}" if self.steps else f"every={self.every}"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A checkpoint that goes into the release. place: the folder of checkpoints that it lies in; live: whether it is on
    the path of the live lineage. first, last, parent: as in layout.CheckpointEntry."""

    lineage: int
    step: int
    live: bool
    place: Path
    manifest: Manifest
    first: int
    last: int
    parent: "Chosen | None"

    @property
    def branch(self) -> str:
        """Its name in the release."""
        return branch_name(self.step, self.manifest.tokens, None if self.live else self.lineage)

    @property
    def parameters_digest(self) -> str:
        """Of the parameters alone."""
        return state_digest(self.manifest.of_items(["params"]).values())


def wish_of(text: str) -> Wish:
    """`all`, `every=1000`, `steps=1000,2000`. ConfigError for anything else."""
    if text == "all":
        return Wish()
    if found := re.fullmatch(r"every=([1-9]\d*)", text):
        return Wish(every=int(found[1]))
    if re.fullmatch(r"steps=\d+(,\d+)*", text):
        return Wish(steps=tuple(sorted({int(n) for n in text.removeprefix("steps=").split(",")})))
    raise ConfigError(f"--checkpoints {text}: write all, every=1000, or steps=1000,2000")


def choose(folder: Path, now: Present, table: StepTable, wish: Wish, abandoned: bool) -> tuple[Chosen, ...]:
    """The checkpoints on the disk that the journal knows of and the wish names, by lineage and step.

    abandoned: those of lineages that were left as well. RunError: there is none, or not at every step that was named.
    CheckpointError: one is damaged, or not the one that was journaled.
    """
    base = folder / "checkpoints"
    known = [c for c in now.checkpoints if abandoned or _is_live(c, now.lineages)]
    there = [(c, p) for c in known if _fits(c.step, wish) and (p := place_of(base, c.step, c.lineage)) is not None]
    if not wish.steps and (newest := _newest(base, now)) is not None and newest[0] not in [c for c, _ in there]:
        there.append(newest)
    missing = sorted(set(wish.steps) - {c.step for c, _ in there})
    if missing or not there:
        steps = sorted({c.step for c in known if place_of(base, c.step, c.lineage) is not None})
        what = f"no checkpoint {missing[0]}" if missing else "no checkpoint"
        raise RunError(f"--checkpoints {wish.text}: {folder} has {what}; it has {', '.join(map(str, steps)) or 'none'}")
    return _spans(there, now.lineages, table)


def again(folder: Path, now: Present, table: StepTable, keys: Collection[tuple[int, int]]) -> tuple[Chosen, ...]:
    """Those that were chosen before, by (lineage, step). RunError if one is gone."""
    base = folder / "checkpoints"
    there = []
    for committed in now.checkpoints:
        if (committed.lineage, committed.step) in keys:
            place = place_of(base, committed.step, committed.lineage)
            if place is None:
                raise RunError(
                    f"{base} has no checkpoint {committed.step} any more, which the interrupted release had chosen; "
                    f"bring it back, or delete the .building folder to begin anew"
                )
            there.append((committed, place))
    return _spans(there, now.lineages, table)


def _spans(there: Iterable[tuple[Committed, Path]], lineages: Lineages, table: StepTable) -> tuple[Chosen, ...]:
    chosen: list[Chosen] = []
    for committed, place in sorted(there, key=lambda pair: (pair[0].lineage, pair[0].step)):
        manifest, _ = read_meta(place, committed.step)
        if manifest.state_digest != committed.digest:
            raise CheckpointError(
                f"{place}: checkpoint {committed.step} is {manifest.state_digest[:12]}, the journal says "
                f"{committed.digest[:12]}; bring that one back"
            )
        parent = _before(committed, chosen, lineages)
        chosen.append(
            Chosen(
                lineage=committed.lineage,
                step=committed.step,
                live=_is_live(committed, lineages),
                place=place,
                manifest=manifest,
                first=table.consumed(lineages.origin if parent is None else parent.step),
                last=table.consumed(committed.step),
                parent=parent,
            )
        )
    return tuple(chosen)


def _before(committed: Committed, chosen: Iterable[Chosen], lineages: Lineages) -> Chosen | None:
    """The one chosen before it, along the path of its lineage."""
    earlier = [c for c in chosen if c.step < committed.step and lineages.owner(c.step, committed.lineage) == c.lineage]
    return max(earlier, key=lambda c: c.step, default=None)


def _newest(base: Path, now: Present) -> tuple[Committed, Path] | None:
    """Of the live path."""
    for committed in reversed(now.checkpoints_of()):
        place = place_of(base, committed.step, committed.lineage)
        if place is not None:
            return committed, place
    return None


def _is_live(committed: Committed, lineages: Lineages) -> bool:
    return lineages.owner(committed.step) == committed.lineage


def _fits(step: int, wish: Wish) -> bool:
    return step in wish.steps if wish.steps else step % wish.every == 0
