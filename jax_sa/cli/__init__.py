"""The commands of `python -m jax_sa`, a module each, and what they show their results with."""
