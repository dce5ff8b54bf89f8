"""Exact, accountable, fast LLM pretraining in JAX."""
