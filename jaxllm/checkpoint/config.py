"""When a run is saved and what is kept, as values."""

from jaxllm.core.config import config


@config
class Checkpoints:
    """Save every `every_steps` and at the end. Kept: the `keep_latest` newest of these, every multiple of `keep_every`,
    and `keep_steps` by name. What is saved because the run is stopped is kept until something newer is."""

    every_steps: int = 1000
    keep_latest: int = 2
    keep_every: int | None = None
    keep_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep_latest < 1:
            raise ValueError(f"every_steps={self.every_steps} and keep_latest={self.keep_latest} are at least 1")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.every_steps):
            raise ValueError(f"keep_every={self.keep_every} is a multiple of every_steps={self.every_steps}")
