"""Which kernel a run attends with: what each can do, in one table, and the choice that follows from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from jaxllm.core.errors import ConfigError
from jaxllm.parallel.config import Kernel

Platform = Literal["cpu", "gpu", "tpu"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run asks of a kernel.

    documents: attention stays within documents, of which a row may hold several. windows: some layer sees the last so
    many keys alone. softcap, alibi: as in `Scoring`.
    """

    seq_len: int
    head_width: int
    dtype: Literal["float32", "bfloat16"]
    documents: bool
    windows: bool = False
    softcap: bool = False
    alibi: bool = False


@dataclass(frozen=True, kw_only=True)
class Ability:
    """What a kernel can do. per_device: under a mesh every device has to call it for its own share of rows and heads.

    head_widths: (multiple of, at most). pays_from: shorter sequences are faster by another; no bar to who names it.
    """

    platforms: tuple[Platform, ...] = ("cpu", "gpu", "tpu")
    documents: bool = True
    windows: bool = True
    softcap: bool = True
    alibi: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    head_widths: tuple[int, int | None] = (1, None)
    pays_from: int = 1
    per_device: bool = False


ABILITIES: Final[dict[Kernel, Ability]] = {
    "reference": Ability(),
    "blocks": Ability(pays_from=128),
    "splash": Ability(platforms=("tpu",), alibi=False, per_device=True),
    "cudnn": Ability(
        platforms=("gpu",),
        documents=False,
        softcap=False,
        alibi=False,
        dtypes=("bfloat16",),
        head_widths=(8, 128),  # 256 from Hopper on
        per_device=True,
    ),
    "pallas_gpu": Ability(platforms=("gpu",), windows=False, softcap=False, alibi=False, per_device=True),
}

# What 'auto' tries, best first; the last of each can do anything.
PREFERENCE: Final[dict[Platform, tuple[Kernel, ...]]] = {
    "cpu": ("blocks", "reference"),
    "gpu": ("cudnn", "pallas_gpu", "reference"),
    "tpu": ("splash", "reference"),
}


@dataclass(frozen=True)
class Choice:
    """A kernel, and why not a faster one: None if it was asked for or is the platform's best."""

    kernel: Kernel
    why: str | None = None

    def __str__(self) -> str:
        return self.kernel if self.why is None else f"{self.kernel} ({self.why})"


def choose(kernel: Literal["auto"] | Kernel, platform: str, wanted: Wanted) -> Choice:
    """What `kernel` stands for on `platform`: itself, or for 'auto' the first that can.

    ConfigError for a named kernel that cannot, and for a platform that is none of 'cpu', 'gpu', 'tpu'.
    """
    if platform not in PREFERENCE:
        raise ConfigError(f"there are no attention kernels for the platform {platform!r}; use cpu, gpu or tpu")
    preference = PREFERENCE[platform]
    if kernel != "auto":
        problems = list(_obstacles(ABILITIES[kernel], platform, wanted))
        if problems:
            could = [k for k in preference if not any(_obstacles(ABILITIES[k], platform, wanted))]
            raise ConfigError(f"compute.attention={kernel}: it {problems[0]}; use {' or '.join(could)}, or auto")
        return Choice(kernel)
    passed: list[str] = []
    for candidate in preference:
        ability = ABILITIES[candidate]
        problems = list(_obstacles(ability, platform, wanted))
        if wanted.seq_len < ability.pays_from:
            problems.append(f"pays from {ability.pays_from} positions on")
        if not problems:
            return Choice(candidate, "; ".join(passed) or None)
        passed.append(f"{candidate} {problems[0]}")
    raise AssertionError(f"the last of {preference} can do anything")


def _obstacles(ability: Ability, platform: str, wanted: Wanted) -> Iterator[str]:
    """Why a kernel cannot do what is wanted, as what follows its name."""
    multiple, most = ability.head_widths
    if platform not in ability.platforms:
        yield f"runs on {' and '.join(ability.platforms)}, not on {platform}"
    if wanted.alibi and not ability.alibi:
        yield "has no ALiBi"
    if wanted.softcap and not ability.softcap:
        yield "has no softcap"
    if wanted.windows and not ability.windows:
        yield "has no sliding window"
    if wanted.documents and not ability.documents:
        yield "does not keep documents apart (data.attention=document)"
    if wanted.dtype not in ability.dtypes:
        yield f"takes {' and '.join(ability.dtypes)}, not {wanted.dtype}"
    if wanted.head_width % multiple:
        yield f"takes heads whose width is a multiple of {multiple}, not {wanted.head_width}"
    if most is not None and wanted.head_width > most:
        yield f"takes heads up to a width of {most}, not {wanted.head_width}"
