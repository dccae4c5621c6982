"""Other libraries in the loops of jax_sa: `python -m integrations.gemma`, from examples/."""
