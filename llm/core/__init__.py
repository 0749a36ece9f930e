"""Specs, mesh and precision: what every other package builds on."""
