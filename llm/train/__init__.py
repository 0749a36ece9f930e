"""Losses, optimizers and THE loop."""
