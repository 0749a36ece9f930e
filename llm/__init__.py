"""Lernaean: one experiment platform for language models in JAX and Flax."""
