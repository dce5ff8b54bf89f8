"""Where tokens come from and in which order, as values."""

from typing import Annotated, Literal

from pydantic import Field

from jaxllm.core.config import config, variant

# ---- from text to a store ------------------------------------------------------------------------------------------


@variant
class TextFiles:
    """Documents from files: .jsonl, .jsonl.gz, .jsonl.zst, .txt, .parquet, or a folder of source files.

    `paths` may hold glob patterns; they are expanded in sorted order. `text_field` and `id_field` name the columns of
    .jsonl and .parquet; without an id_field, a document is named by its file and line. A .txt and a source file are one
    document each. `suffixes` are the files that count in a folder (all, if there are none), and further names of text
    files elsewhere.
    """

    paths: tuple[str, ...]
    text_field: str = "text"
    id_field: str | None = None
    suffixes: tuple[str, ...] = ()


@variant
class PythonProse:
    """English prose from the user's own Python: docstrings of the standard library and pydoc_data.topics (PSF-2.0)."""


@variant
class PythonCode:
    """The modules of the user's own standard library, without tests and what PythonProse takes from them (PSF-2.0)."""


Documents = Annotated[TextFiles | PythonProse | PythonCode, Field(discriminator="kind")]


@variant
class TrainBpe:
    """A byte-level BPE trained on the training documents of the recipe."""

    vocab_size: int
    end_of_text: str = "<|endoftext|>"


@variant
class TokenizerFile:
    """A tokenizer.json; `end_of_text` is the token that closes every document."""

    path: str
    end_of_text: str


Tokenizer = Annotated[TrainBpe | TokenizerFile, Field(discriminator="kind")]


@config
class SourceRecipe:
    """One named source of a store; `heldout_per_mille` of its documents, chosen by content hash, never train."""

    name: str
    documents: Documents
    heldout_per_mille: int = 0

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise ValueError(f"name={self.name!r}: a source is named with letters, digits, '.', '_' and '-'")
        if not 0 <= self.heldout_per_mille < 1000:
            raise ValueError(f"heldout_per_mille={self.heldout_per_mille} lies in 0..999")


@variant
class DataRecipe:
    """How a store is made. Train builds it into a content-addressed cache the first time and pins its manifest."""

    name: str
    sources: tuple[SourceRecipe, ...]
    tokenizer: Tokenizer
    deduplicate: bool = True

    def __post_init__(self) -> None:
        names = [s.name for s in self.sources]
        if not names or len(set(names)) < len(names):
            raise ValueError("sources: at least one, each named once")
        if not self.name.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise ValueError(f"name={self.name!r}: a recipe is named with letters, digits, '.', '_' and '-'")


# ---- from a store to batches ---------------------------------------------------------------------------------------


@variant
class StoreAt:
    """A store that exists already."""

    path: str


@variant
class NoStore:
    """No text at all: an imported model, which has not been trained here."""


@config
class Share:
    """The part of a stage's sequences that a source gives; shares are relative to their sum, kept exactly."""

    source: str
    weight: float

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight={self.weight} of {self.source!r} is positive; leave the source out instead")


@config
class Stage:
    """`steps` updates of `batch_size` sequences each, drawn from `mixture`."""

    name: str
    steps: int
    batch_size: int
    mixture: tuple[Share, ...]

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps={self.steps} and batch_size={self.batch_size} are at least 1")
        names = [s.source for s in self.mixture]
        if not names or len(set(names)) < len(names):
            raise ValueError("mixture: at least one source, each named once")


@config
class Removal:
    """From stream position `first` on, a document of a source (None: every one) is not trained on: where it was, there
    are end-of-text tokens that nothing attends to and no label that counts. The order stays what it is."""

    source: str
    document: str | None
    first: int = 0

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"first={self.first} is a stream position, not negative")


@config
class Data:
    """What a run reads. Everything here is identity: it decides which tokens step N sees.

    windows: 'shared' cuts a source into windows of seq_len + 1 tokens that share their boundary token (Amber),
    'disjoint' into seq_len tokens whose last position has no label (K2). attention: 'document' keeps attention and
    positions within documents, 'window' attends across (Amber). loss: 'all' scores every label, 'document' leaves out
    labels that open another document than the token they follow. block is the number of sequences over which the
    mixture is exact. without: what a fork leaves out.
    """

    store: Annotated[StoreAt | DataRecipe | NoStore, Field(discriminator="kind")]
    seq_len: int
    stages: tuple[Stage, ...]
    windows: Literal["shared", "disjoint"] = "shared"
    attention: Literal["document", "window"] = "document"
    loss: Literal["all", "document"] = "all"
    block: int = 1024
    manifest: str | None = None  # sha256 of the store's manifest.json, pinned when the run starts
    without: tuple[Removal, ...] = ()

    def __post_init__(self) -> None:
        if self.seq_len < 2 or self.block < 1:
            raise ValueError(f"seq_len={self.seq_len} is at least 2 and block={self.block} at least 1")
        if isinstance(self.store, NoStore):
            if self.stages:
                raise ValueError("stages: none without a store; data.store=NoStore is for imported models only")
        elif not self.stages:
            raise ValueError("stages: at least one")
        names = [s.name for s in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("stages: each has a name of its own")
