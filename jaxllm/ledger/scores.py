"""Held-out scores, as they are recorded and shown."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """Held-out loss of one source over `tokens` labels: nats per token, and bits per UTF-8 byte of those labels."""

    source: str
    nats_per_token: float
    bits_per_byte: float
    tokens: int
