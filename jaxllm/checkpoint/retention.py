"""Which steps are saved and which saved steps are kept. Pure arithmetic on step numbers."""

from collections.abc import Callable, Collection
from itertools import accumulate

from jaxllm.checkpoint.config import Checkpoints


def is_save_step(config: Checkpoints, step: int) -> bool:
    """Whether a checkpoint is due after `step` updates: every `every_steps`, and at the steps kept by name."""
    return step > 0 and (step % config.every_steps == 0 or step in config.keep_steps)


def is_pinned(config: Checkpoints, step: int) -> bool:
    """Whether a checkpoint of `step` is kept for ever, however many follow."""
    return step in config.keep_steps or (config.keep_every is not None and step % config.keep_every == 0)


def superseded(
    config: Checkpoints, steps: Collection[int], whole: Callable[[int], bool] = lambda step: True
) -> list[int]:
    """The steps that may go, ascending: those older than the `keep_latest` newest whole ones, unless pinned.

    `whole` says whether a step can be relied on, and is asked only as often as needed. A damaged step does not push a
    good one out, and stays where it is while it is among the newest, for the next restore to find and report.
    """
    kept, gone = 0, []
    for step in sorted(steps, reverse=True):
        if kept < config.keep_latest:
            kept += whole(step)
        elif not is_pinned(config, step):
            gone.append(step)
    return gone[::-1]


def most_at_once(config: Checkpoints, last_step: int) -> int:
    """The most checkpoints that lie side by side in a run of `last_step` steps.

    An old one goes only after a new one is complete, so there is one more than are kept.
    """
    steps = set(range(config.every_steps, last_step + 1, config.every_steps))
    saved = sorted(steps | {s for s in config.keep_steps if 0 < s <= last_step} | {last_step})
    pinned = list(accumulate((is_pinned(config, s) for s in saved), initial=0))  # among the first i
    most = 0
    for i in range(len(saved)):
        first_recent = max(0, i - config.keep_latest)
        recent = i + 1 - first_recent  # the newest that were kept, and the new one
        most = max(most, pinned[first_recent] + recent)
    return most
