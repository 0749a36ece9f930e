"""Weights in and out: checkpoints."""
