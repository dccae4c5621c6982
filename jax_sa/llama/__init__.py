"""The Llama family in JAX: what a speculative decoding loop needs of a model, and no more."""
