"""Solvers as diffusers schedulers, and what a diffusers scheduler's config says of the model it is for."""
