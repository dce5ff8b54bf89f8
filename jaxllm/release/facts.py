"""What the cards of a release say, as one value: the builder gathers it, cards, croissant and mof put it into words."""

from dataclasses import dataclass

from jaxllm.release.layout import Chains, CheckpointEntry, FileEntry, LineageEntry, MadeWith, RunEntry, ScoreEntry
from jaxllm.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """A source of the store. made_of: how its documents were named in the recipe ('PythonProse', file patterns).

    documents, tokens, bytes: to train on; heldout_*: never trained on. windows: the sequences that it is cut into.
    sequences_seen, tokens_seen: consumed along the live path so far, input positions, repeats counted again.
    """

    name: str
    made_of: str
    licence: str
    documents: int
    tokens: int
    bytes: int
    heldout_documents: int
    heldout_tokens: int
    duplicates_left_out: int
    windows: int
    sequences_seen: int
    tokens_seen: int

    @property
    def epochs(self) -> float:
        """Passes over the source so far."""
        return self.sequences_seen / self.windows if self.windows else 0.0


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """The token store: its recipe, the sha256 of its manifest, its tokenizer."""

    recipe: str
    manifest: str
    tokenizer: str
    vocab_size: int
    end_of_text: str
    deduplicated: bool
    bytes: int


@dataclass(frozen=True, kw_only=True)
class EnvironmentFacts:
    """What the steps first..last of a lineage were computed with. mesh: axes with more than one device."""

    fingerprint: str
    lineage: int
    first: int
    last: int
    platform: str
    device_kind: str
    devices: int
    processes: int
    mesh: dict[str, int]
    versions: dict[str, str]
    commit: str | None
    dirty: bool
    jaxllm: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All of it.

    events: how many of each there are, by name; story: one line for each, as `jaxllm journal` prints them. claim: the
    class of agreement that the run may claim for itself. started, ended: recorded times (ISO, UTC) of the first and the
    last event. final_loss: of the last recorded step, nats per token. licence_text: what LICENSE holds. files: every
    file but the cards and release.json. contents: what of layout.EXTRAS is in the release.
    """

    run: RunConfig
    entry: RunEntry
    made_with: MadeWith
    chains: Chains
    lineages: tuple[LineageEntry, ...]
    live: int
    checkpoints: tuple[CheckpointEntry, ...]
    contents: tuple[str, ...]
    store: StoreFacts
    sources: tuple[SourceFacts, ...]
    environments: tuple[EnvironmentFacts, ...]
    scores: tuple[ScoreEntry, ...]
    events: dict[str, int]
    story: tuple[str, ...]
    claim: str
    started: str
    ended: str
    final_loss: float | None
    licence: str
    licence_text: str
    data_licence: str
    files: tuple[FileEntry, ...]
