"""Hugging Face both ways: the tables of models/families/ applied to files, streamed. No jax."""
