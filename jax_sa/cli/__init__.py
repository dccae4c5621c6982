"""The commands of `python -m jax_sa`, one module each, and the modules that they share."""
