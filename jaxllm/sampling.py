"""Continuing texts with a run's parameters."""

from pathlib import Path
from typing import Any

from jaxllm.assembly import Assembly


def continue_text(
    parts: Assembly,
    params: Any,
    tokenizer_path: Path,
    prompt: str,
    *,
    tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """The text that follows `prompt`: at most `tokens` tokens, up to the end of the document."""
    raise AssertionError
