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
    """Parameters, optimizer state, norms, softmax and losses are float32; `compute` is the type of matrix products.

    projections: 'float8' rounds the operands of the projections of attention and feed-forward further, and those of
    their gradients (ops/float8.py, https://arxiv.org/abs/2209.05433). Attention itself, embeddings and the head stay in
    `compute`: scores and logits go into exponentials, where a sixteenth is too coarse a step, and rows that are looked
    up are no product; https://arxiv.org/abs/2412.19437 leaves the same out. An operand is scaled by the largest of all
    rows that are multiplied at once, so micro-batches and stages change more than the last place.
    """

    compute: Literal["float32", "bfloat16"] = "float32"
    projections: Literal["compute", "float8"] = "compute"

    def __post_init__(self) -> None:
        if self.projections == "float8" and self.compute != "bfloat16":
            raise ValueError(
                f"projections=float8 rounds what compute={self.compute} computes: give compute=bfloat16 as well"
            )


@variant
class Warn:
    """Write it down and go on."""


@variant
class Refuse:
    """The update is not applied, on the device: its data is consumed, parameters and optimizer state stay."""


@variant
class Rewind:
    """Go back to the newest checkpoint before it, as a new lineage.

    data: 'replay' takes the same data again; 'skip_batch' leaves out the batch that did it, 'defer_batch' moves it to
    the end of its stage (as K2 did with two of its chunks); 'skip_window' and 'defer_window' do so with all data from
    the checkpoint up to where the run stood.
    """

    data: Literal["replay", "skip_batch", "skip_window", "defer_batch", "defer_window"] = "skip_batch"


Action = Annotated[Warn | Refuse | Rewind, Field(discriminator="kind")]


@config
class Spikes:
    """What counts as a spike: a loss or gradient norm above the median of the last `window` steps by more than so many
    median absolute deviations; judged once `min_history` steps are known. None: that number is not judged.

    recover_within: a spike that is back below its limit within so many steps was benign and stays; one that is not is
    malignant, and `action` follows. 0 acts at once. Refuse acts on the gradient norm alone, at once.
    """

    window: int = 256
    min_history: int = 64
    loss_mads: float | None = 12.0
    norm_mads: float | None = 30.0
    recover_within: int = 8
    action: Action = Warn()

    def __post_init__(self) -> None:
        if not 2 <= self.min_history <= self.window:
            raise ValueError(f"min_history={self.min_history} lies in 2..window={self.window}")
        if self.recover_within < 0:
            raise ValueError(f"recover_within={self.recover_within} is not negative")
        for name, mads in (("loss_mads", self.loss_mads), ("norm_mads", self.norm_mads)):
            if mads is not None and mads <= 0:
                raise ValueError(f"{name}={mads} is positive, or null for not judged")
        if self.loss_mads is None and self.norm_mads is None:
            raise ValueError("loss_mads and norm_mads are both null; use spikes=null instead")
        if isinstance(self.action, Refuse) and self.norm_mads is None:
            raise ValueError("action=Refuse goes by the gradient norm; give norm_mads")


@variant
class Halt:
    """The run stops, with exit code 3; the last checkpoint stands."""


@variant
class Replay:
    """Back to the newest checkpoint before it, as a new lineage, with the same data: for corruption that passes. It
    counts among the guard's `max_rollbacks`; once these are used up, the run stops."""


@config
class SelfCheck:
    """Looks for silent corruption. Before one update in `every_steps` the gradient is computed twice from one state and
    batch, and the replicas of every array of the state are compared, as they are before every save. All have to be
    bitwise the same; action: what follows if they are not."""

    every_steps: int = 1000
    action: Annotated[Warn | Halt | Replay, Field(discriminator="kind")] = Halt()

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"every_steps={self.every_steps} is at least 1")


@config
class Guard:
    """What is done about steps that went wrong, judged `lag` steps late.

    A non-finite update is never applied. non_finite: what follows it beside that; after `max_refused` refused updates
    in a row the run stops. spikes: how finite ones are judged, None not at all. The guard goes back at most
    `max_rollbacks` times within `rollbacks_within` steps, then the run stops. keep_abandoned: the checkpoints of a
    lineage that was left stay, under checkpoints/lineage-N/. A step that has not ended for `watchdog_seconds` (None:
    never) ends the process, compilation, evaluations and saves left out. selfcheck: None computes nothing twice.
    """

    max_refused: int = 10
    lag: int = 1
    non_finite: Action = Refuse()
    spikes: Spikes | None = Spikes()
    max_rollbacks: int = 3
    rollbacks_within: int = 10_000
    keep_abandoned: bool = True
    watchdog_seconds: float | None = 1800.0
    selfcheck: SelfCheck | None = None

    def __post_init__(self) -> None:
        if self.max_refused < 1 or self.lag < 1:
            raise ValueError(f"max_refused={self.max_refused} and lag={self.lag} are at least 1")
        if self.max_rollbacks < 1 or self.rollbacks_within < 1:
            raise ValueError(
                f"max_rollbacks={self.max_rollbacks} and rollbacks_within={self.rollbacks_within} are at least 1"
            )
        if self.watchdog_seconds is not None and self.watchdog_seconds <= 0:
            raise ValueError(f"watchdog_seconds={self.watchdog_seconds} is positive, or null for no watchdog")


@variant
class NanBatch:
    """The planned data of `step` gives NaN, wherever edits of the stream move it; a transient one strikes whatever is
    computed at update `step` of lineage 0, once, as a glitch would."""

    step: int
    transient: bool = False


@variant
class HugeBatch:
    """The same with hidden states `factor` times too large: a spike of loss and gradient."""

    step: int
    factor: float = 100.0
    transient: bool = False


@variant
class BitFlip:
    """Just before update `step` one bit of one element of a parameter is flipped, and stays so: after the first of two
    computations of the gradient, where a self-check is due.

    parameter: its dotted path, as `jaxllm show` has it. index: of the element, one number per dimension. bit: 0 is the
    lowest of the mantissa, 31 the sign. device: its number in the mesh, row by row, whose copy alone is struck; None
    strikes all copies. A transient one strikes in lineage 0 alone, so it does not come back after going back; the other
    whenever the step is executed.
    """

    step: int
    parameter: str
    index: tuple[int, ...]
    bit: int
    device: int | None = None
    transient: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.bit < 32:
            raise ValueError(f"bit={self.bit} lies in 0..31: parameters are float32")
        if any(i < 0 for i in self.index):
            raise ValueError(f"index={list(self.index)} counts from 0")
        if self.device is not None and self.device < 0:
            raise ValueError(f"device={self.device} is not negative")


Fault = Annotated[NanBatch | HugeBatch | BitFlip, Field(discriminator="kind")]


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


@variant
class Forked:
    """The run goes on from checkpoint `step` of another one, step, schedule and data included, with amendments that its
    journal names. digest: the state digest of that checkpoint, which the fork has a copy of."""

    run: str
    folder: str
    lineage: int
    step: int
    digest: str


Start = Annotated[Scratch | FromRun | Imported | Forked, Field(discriminator="kind")]
