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

    What was saved off schedule, because a run was stopped, is for going on from there: it takes no place among these,
    and goes when something newer is whole. So which scheduled ones there are does not depend on who stopped the run.
    `whole` says whether a step can be relied on, and is asked only as often as needed. A damaged step does not push a
    good one out, and stays where it is while it is among the newest, for the next restore to find and report.
    """
    kept, newer, gone = 0, False, []
    for step in sorted(steps, reverse=True):
        scheduled = is_save_step(config, step)
        if scheduled and kept < config.keep_latest:
            kept += (sound := whole(step))
        elif not scheduled and not newer:
            sound = whole(step)
        elif is_pinned(config, step):
            continue
        else:
            gone.append(step)
            continue
        newer = newer or sound
    return gone[::-1]


def most_at_once(config: Checkpoints, last_step: int) -> int:
    """The most checkpoints that lie side by side in a run of `last_step` steps, wherever it is stopped.

    An old one goes only after a new one is complete, and beside the scheduled ones there may be one of a stop.
    """
    steps = set(range(config.every_steps, last_step + 1, config.every_steps))
    scheduled = sorted(steps | {s for s in config.keep_steps if 0 < s <= last_step})
    pinned = list(accumulate((is_pinned(config, s) for s in scheduled), initial=0))  # among the first i
    most = 0
    for i in range(len(scheduled) + 1):  # after the first i
        recent = min(i, config.keep_latest)
        saves = (scheduled[i] if i < len(scheduled) else last_step) - (scheduled[i - 1] if i else 0)  # until the next
        most = max(most, pinned[i - recent] + recent + min(2, saves))
    return most
