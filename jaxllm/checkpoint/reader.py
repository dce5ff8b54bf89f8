"""Reading checkpoints. Changes nothing on the disk, so that a live run can be read from another process.

Memory: the arrays are read straight into the shardings asked for, shard by shard; on top of the state there are only
the buffers of reads in flight (measured on two cores: 0.1 GB, for states of 0.4 and 1.2 GB). So hand in an abstract
state, and never hold an initialised one beside it. The digest allocates nothing (parallel/digest.py).
"""

import errno
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from jaxllm.checkpoint.layout import DamagedCheckpointError, list_steps, missing_file, read_meta, step_folder
from jaxllm.checkpoint.manifest import ArrayRecord, Manifest
from jaxllm.checkpoint.names import named_leaves, nested, unflattened
from jaxllm.checkpoint.quiet import one_line, said_once
from jaxllm.core.config import Json
from jaxllm.core.errors import CheckpointError
from jaxllm.parallel import processes

T = TypeVar("T")
Tree = Any
Items = Mapping[str, Tree]  # {"params": tree, "opt": tree, ["ema": tree]}
Digest = Callable[[Items], Mapping[str, str]]  # name ("params.blocks.q") -> 16 hex digits, as in the manifest


@dataclass(frozen=True)
class Restored:
    """A checkpoint as it was saved: its items in the containers that were asked for, the cursor, the manifest."""

    step: int
    items: dict[str, Tree]
    cursor: dict[str, Json]
    manifest: Manifest


class CheckpointReader:
    """The checkpoints of a run."""

    def __init__(self, folder: str | Path) -> None:
        if "://" in str(folder):
            raise CheckpointError(f"{folder}: checkpoints live on a file system; mount the bucket")
        self.folder = Path(folder).absolute()  # Orbax refuses relative paths

    def steps(self) -> list[int]:
        """The steps there are, ascending."""
        return list_steps(self.folder)

    def manifest(self, step: int) -> Manifest:
        """What a step says about itself. CheckpointError if there is no such step or it is damaged."""
        return read_meta(self.folder, step)[0]

    def restore(self, step: int, abstract: Items, digest: Digest) -> Restored:
        """Read a step and hold it against its own record.

        abstract: item -> tree of jax.ShapeDtypeStruct with shardings, on any mesh. digest: digests of what was read, by
        array name; compared with the manifest's.
        DamagedCheckpointError (step, item or array, reason) if the files are not what was saved. A plain
        CheckpointError if another state was asked for than was saved, or memory or permission to read it is lacking.
        """
        manifest, cursor = self._meta(step)
        if odd := sorted(manifest.items ^ set(abstract)):
            where = "saved only" if odd[0] in manifest.items else "asked for only"
            raise CheckpointError(f"{self.folder}: checkpoint {step}: the item {odd[0]!r} is {where}")
        return self._restore(step, abstract, digest, manifest, cursor)

    def restore_params(self, step: int, abstract: Tree, digest: Digest, item: str = "params") -> Restored:
        """Only the parameters of a step (or `item='ema'`), checked like `restore`. `digest` gets {item: tree}."""
        manifest, cursor = self._meta(step)
        if item not in manifest.items:
            raise CheckpointError(f"{self.folder}: checkpoint {step} holds no {item!r}, only {sorted(manifest.items)}")
        return self._restore(step, {item: abstract}, digest, manifest, cursor)

    def _restore(
        self, step: int, abstract: Items, digest: Digest, manifest: Manifest, cursor: dict[str, Json]
    ) -> Restored:
        wanted, saved = named_leaves(abstract), manifest.of_items(abstract)
        if problem := _mismatch(wanted, saved):
            raise CheckpointError(f"{self.folder}: checkpoint {step}: {problem}")
        raw = self._together(step, lambda: self._read_all(step, wanted))
        items = unflattened(abstract, raw)
        found = digest(items)
        if found.keys() != saved.keys():
            odd = sorted(found.keys() ^ saved.keys())[0]
            raise CheckpointError(f"{self.folder}: checkpoint {step}: only one of digest and manifest names {odd}")
        wrong = [n for n in sorted(saved) if found[n] != saved[n].digest]
        if wrong:
            first = wrong[0]
            raise DamagedCheckpointError(
                self.folder,
                step,
                f"{first}: its digest is {found[first]}, saved was {saved[first].digest} "
                f"({len(wrong)} of {len(saved)} arrays differ)",
            )
        return Restored(step, items, cursor, manifest)

    def _meta(self, step: int) -> tuple[Manifest, dict[str, Json]]:
        return self._together(step, lambda: read_meta(self.folder, step))

    def _together(self, step: int, read: Callable[[], T]) -> T:
        """What this process reads, unless what another one was to read is damaged: all pass a step over, or none."""
        try:
            found, reason = read(), None
        except DamagedCheckpointError as err:
            found, reason = None, err.reason
        if (damage := processes.anywhere(reason)) is not None or found is None:
            raise DamagedCheckpointError(self.folder, step, str(damage))
        return found

    def _read_all(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Tree]:
        trees = nested(wanted)
        if missing := missing_file(self.folder, step, list(trees)):
            raise DamagedCheckpointError(self.folder, step, missing)
        return {item: self._read(step, item, tree) for item, tree in trees.items()}

    def _read(self, step: int, item: str, tree: Tree) -> Tree:
        place = step_folder(self.folder, step) / item
        args = ocp.args.PyTreeRestore(item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
        options = _on_its_own()
        with said_once():
            try:
                handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
                with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
                    return checkpointer.restore(place, args=args)
            except Exception as err:  # a library, faced with any bytes at all
                cause = one_line(err)
                if _no_fault_of_the_files(err):
                    raise CheckpointError(f"{self.folder}: checkpoint {step}: {item}: {cause}") from None
            problem = unreadable(self.folder, step, named_leaves({item: tree}))
            gc.collect()  # of what the failed reads left, while nobody hears it
        raise DamagedCheckpointError(self.folder, step, problem or f"{item}: cannot be restored: {cause}")


def _on_its_own() -> ocp.options.MultiprocessingOptions:
    """Each process reads without waiting for the others: one whose files are damaged would never come."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader_{me}"
    )


def unreadable(folder: Path, step: int, arrays: Mapping[str, Any]) -> str | None:
    """The first array that plain file reads cannot bring back, as 'name: why'; None if all can be read.

    arrays: names with the item first -> anything with shape and dtype. Reads everything once, an array at a time,
    without devices; for naming the fault after a failure.
    """
    import tensorstore as ts

    for name, leaf in arrays.items():
        item, _, key = name.partition(".")
        base = f"file://{step_folder(folder, step) / item}/"
        spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{key}/"}}
        try:
            array = ts.open(spec, open=True).result()
            if tuple(array.shape) != tuple(leaf.shape) or array.dtype.name != str(leaf.dtype):
                return f"{name}: the files hold {array.dtype.name}{list(array.shape)}"
            array.read().result()
        except (ValueError, OSError, RuntimeError) as err:
            return f"{name}: cannot be read: {one_line(err)}"
    return None


def _mismatch(wanted: Mapping[str, Any], saved: Mapping[str, ArrayRecord]) -> str | None:
    """In what the state asked for is not the state that was saved; None if they fit."""
    differing = [n for n in sorted(wanted.keys() | saved.keys()) if _kind(wanted.get(n)) != _kind(saved.get(n))]
    if differing:
        name = differing[0]
        return (
            f"{name} is {_kind(saved.get(name))} in the checkpoint and {_kind(wanted.get(name))} in this run "
            f"({len(differing)} arrays differ); restore with the model and optimizer it was saved with"
        )
    for name, leaf in wanted.items():
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, jax.sharding.Sharding):
            return f"{name} is asked for without a sharding; give a jax.ShapeDtypeStruct that has one"
        try:
            sharding.shard_shape(tuple(leaf.shape))
        except ValueError as err:
            return f"{name} cannot be laid out as asked: {one_line(err)}"
    return None


def _no_fault_of_the_files(err: Exception) -> bool:
    """What the state asked for could cause was ruled out before reading; this is what the machine can."""
    lacking = isinstance(err, OSError) and err.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return lacking or isinstance(err, (MemoryError, PermissionError)) or "RESOURCE_EXHAUSTED" in str(err)


def _kind(array: Any) -> str:
    return "absent" if array is None else f"{array.dtype}{list(array.shape)}"
