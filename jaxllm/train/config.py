"""The loop's own settings, as values."""

from typing import Annotated, Literal

from pydantic import Field

from jaxllm.core.config import config, variant


@config
class Loss:
    """Cross-entropy in float32 over unmasked tokens, plus z_loss * log(Z)^2 (https://arxiv.org/abs/2204.02311)."""

    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss} is not negative")


@config
class Precision:
    """Parameters, optimizer state, norms, softmax and losses are float32; `compute` is the type of matrix products."""

    compute: Literal["float32", "bfloat16"] = "float32"


@config
class Guard:
    """When the loop gives up: after this many refused (non-finite) updates in a row, judged `lag` steps late; or when a
    step has not ended for `watchdog_seconds` (None: never), compilation, evaluations and saves left out."""

    max_refused: int = 10
    lag: int = 1
    watchdog_seconds: float | None = 1800.0

    def __post_init__(self) -> None:
        if self.max_refused < 1 or self.lag < 1:
            raise ValueError(f"max_refused={self.max_refused} and lag={self.lag} are at least 1")
        if self.watchdog_seconds is not None and self.watchdog_seconds <= 0:
            raise ValueError(f"watchdog_seconds={self.watchdog_seconds} is positive, or null for no watchdog")


@config
class Logging:
    """What is written for people, and how often. Step records are written for every step regardless."""

    every_steps: int = 10
    norms_every_steps: int = 50
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.norms_every_steps < 1:
            raise ValueError("every_steps and norms_every_steps are at least 1")


@config
class Evaluation:
    """Held-out loss per source, every `every_steps` and at the end, over at most `windows` windows of each source.
    At the end of the run `prompts` are continued by `sample_tokens` tokens each, for people to read."""

    every_steps: int | None = None
    windows: int | None = 256
    batch_size: int = 16
    prompts: tuple[str, ...] = ()
    sample_tokens: int = 80

    def __post_init__(self) -> None:
        if self.batch_size < 1 or any(n is not None and n < 1 for n in (self.every_steps, self.windows)):
            raise ValueError("every_steps, windows and batch_size are at least 1")


@config
class Io:
    """Where runs live: the run folder is root/name. Prepared data is cached under data_cache."""

    root: str = "runs"
    data_cache: str = "runs/data"
    compilation_cache: str | None = "runs/xla"  # compiled programs, so that a restart is fast; None compiles anew
    prefetch: int = 2  # batches read ahead of the device
    workers: int | None = None  # processes that prepare data; None takes the cores there are


@variant
class Scratch:
    """The first parameters are drawn from the seed."""


@variant
class FromRun:
    """The first parameters are those of another run's checkpoint.

    folder: that run's, or where it was imported to; a relative one lies in io.root. step: a checkpoint, the newest if
    None. optimizer: 'keep' takes its moments and averages along, 'fresh' begins them anew. digest: the state digest of
    that checkpoint, pinned when the run starts. Steps, schedule and data begin at zero.
    """

    folder: str
    step: int | None = None
    optimizer: Literal["keep", "fresh"] = "fresh"
    digest: str | None = None


@variant
class Imported:
    """The parameters are those of published files, which became checkpoint 0; nothing was trained here.

    architecture: as their config.json has it. origin: sha256 over the sha256 of every file, by name.
    """

    architecture: str
    origin: str


Start = Annotated[Scratch | FromRun | Imported, Field(discriminator="kind")]
