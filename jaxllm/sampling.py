"""Continuing texts with a run's parameters."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jaxllm.assembly import Assembly, assemble
from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.convert.vocabulary import special_of
from jaxllm.core.errors import CheckpointError, ConfigError
from jaxllm.core.files import read_json
from jaxllm.models.context import together, unsharded
from jaxllm.models.generate import Sampling, generate
from jaxllm.models.stack import in_turn
from jaxllm.parallel.config import Mesh
from jaxllm.run import RunConfig
from jaxllm.workspace import SPECIAL_TOKENS, open_run

Json = dict[str, Any]


def continue_text(
    parts: Assembly,
    params: Any,
    tokenizer_path: Path,
    end_of_text_id: int,
    prompt: str,
    *,
    tokens: int,
    sampling: Sampling,
    add_special_tokens: bool = False,
    stop: Collection[int] = (),
) -> str:
    """The text that follows `prompt`: at most `tokens` tokens, to the end of the document at the latest.

    An empty prompt begins a document. add_special_tokens: begin a prompt as the tokenizer was told to, for a model that
    was trained so. stop: further ids that end the text.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    ids = tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids or [end_of_text_id]
    if max(ids) >= parts.run.model.vocab_size:
        raise ConfigError(f"{tokenizer_path} has more tokens than the model's {parts.run.model.vocab_size}")
    [added] = generate(
        parts.run.model,
        params,
        [ids],
        max_tokens=tokens,
        # One sequence does not divide over a batch axis.
        context=replace(parts.context, shard=unsharded, per_device=together, stack=in_turn),
        sampling=sampling,
        stop={end_of_text_id, *stop},
    )
    # Decoded together and cut, since a token alone may be half a character or lose its leading space.
    whole, head = tokenizer.decode([*ids, *added]), tokenizer.decode(ids)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(added)


def anywhere(run: RunConfig) -> RunConfig:
    """`run` on whatever devices there are: what it names of its own machine's abilities is left to this one's."""
    return replace(run, mesh=Mesh(), compute=replace(run.compute, attention="auto", expert_exchange="auto"))


def sample(folder: Path, prompt: str, *, step: int | None, tokens: int, sampling: Sampling) -> Json:
    """Continue `prompt` from a checkpoint of the run in `folder`, the newest one unless `step` names another.

    The parameters are held against the digests of their checkpoint. CheckpointError names the steps there are.
    """
    run = open_run(folder)
    reader = CheckpointReader(folder / "checkpoints")
    steps = reader.steps()
    if not steps or (step is not None and step not in steps):
        raise CheckpointError(f"{folder} has no checkpoint {step or ''}; it has {', '.join(map(str, steps)) or 'none'}")
    special = read_json(folder / SPECIAL_TOKENS)
    parts = assemble(anywhere(run))
    chosen = steps[-1] if step is None else step
    restored = reader.restore_params(chosen, parts.abstract_state.params, parts.digest)
    text = continue_text(
        parts,
        restored.items["params"],
        folder / "tokenizer.json",
        special["end_of_text_id"],
        prompt,
        tokens=tokens,
        sampling=sampling,
        add_special_tokens=special.get("add_special_tokens", False),
        stop=special_of(special, str(folder / SPECIAL_TOKENS)).eos,
    )
    return {"run": run.name, "step": chosen, "prompt": prompt, "text": text, "seed": sampling.seed}
