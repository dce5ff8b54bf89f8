"""Which steps are saved and which saved steps are kept. Pure arithmetic on step numbers."""

from collections.abc import Collection

from jaxllm.checkpoint.config import Checkpoints


def is_save_step(config: Checkpoints, step: int) -> bool:
    """Whether a checkpoint is due after `step` updates: at every multiple of `every_steps`, and at steps kept by name."""
    return step > 0 and (step % config.every_steps == 0 or step in config.keep_steps)


def is_pinned(config: Checkpoints, step: int) -> bool:
    """Whether a checkpoint of `step` is kept for ever, however many follow."""
    return step in config.keep_steps or (config.keep_every is not None and step % config.keep_every == 0)


def superseded(config: Checkpoints, steps: Collection[int]) -> list[int]:
    """The steps that may go, in ascending order.

    `steps` are the complete checkpoints, the newest included. A damaged one is not passed in: it must not push a good one
    out of the `keep_latest`.
    """
    newest = sorted(steps)[-config.keep_latest :]
    return [s for s in sorted(steps) if s not in newest and not is_pinned(config, s)]


def most_at_once(config: Checkpoints, last_step: int) -> int:
    """The most checkpoints that lie side by side in a run of `last_step` steps.

    An old one goes only after a new one is complete, so there is one more than are kept.
    """
    saved = set(range(config.every_steps, last_step + 1, config.every_steps))
    saved |= {s for s in config.keep_steps if 0 < s <= last_step} | {last_step}
    pinned = sum(is_pinned(config, s) for s in saved)
    return min(len(saved), pinned + config.keep_latest + 1)
