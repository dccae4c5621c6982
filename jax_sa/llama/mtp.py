"""The multi-token-prediction module of DeepSeek-V3 (2024, section 2.2).

The module is one decoder layer at the model's end. At position i it reads the model's hidden state
there and the token at i + 1, and predicts the token at i + 2. It shares embedding and output head
with the model.

Letters: B slots, T tokens of a block, D hidden size.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_sa.llama import model
from jax_sa.llama.attention import Attend
from jax_sa.llama.config import Config


def decode(
    config: Config,
    params: dict[str, Any],
    hidden: jax.Array,
    next_embedded: jax.Array,
    positions: jax.Array,
    attend: Attend,
    memory: Any,
) -> tuple[jax.Array, Any]:
    """The module's own hidden states [B, T, D], from which the head predicts, and its memory.

    Args:
      config: of the model.
      params: of the model.
      hidden: [B, T, D] the normalised hidden states at `positions`.
      next_embedded: [B, T, D] the embeddings of the tokens one position later.
      positions: int32[B, T].
      attend: of one layer.
      memory: of all layers, the module's the last.
    """
    mtp, eps = params["mtp"], config.rms_norm_eps
    token = model.rms_norm(next_embedded, mtp["token_norm"], eps)
    past = model.rms_norm(hidden, mtp["hidden_norm"], eps)
    joined = jnp.concatenate([token, past], axis=-1) @ mtp["join"]
    rotation = model.rotate_by(config, positions)
    index = config.num_layers  # it counts as one more
    x, memory = model.decoder_layer(config, mtp["layer"], joined, rotation, attend, memory, index)
    return model.rms_norm(x, mtp["norm"], eps), memory
