"""The numbers of blocks and slots that the layers of each type need."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from jax_sa._checks import INT32_MAX, check_int
from jax_sa.cache_schema.config import AttentionType, DSV4Config, LayerSpec
from jax_sa.cache_schema.layout import ceil_div


@dataclass(frozen=True)
class BlockBudget:
    """The need of each layer of one type, with the headroom, without the padding page and slot."""

    layers: int
    """Layers of this type."""
    blocks: int
    """Pages in each of those layers, one per block; 0 for SWA."""
    slots: int
    """Requests for which each of those layers keeps an SWA ring and compressor state."""


def compute_block_budget(
    config: DSV4Config,
    schedule: Sequence[LayerSpec],
    max_context_tokens: int,
    max_concurrent_requests: int,
    headroom: float | Fraction = 0,
    *,
    block_multiple: int = 1,
) -> dict[AttentionType, BlockBudget]:
    """The budget of each layer type in `schedule`, for requests of up to `max_context_tokens`.

    Args:
      config: the model.
      schedule: its layers, or those of one pipeline stage.
      max_context_tokens: tokens of the longest request, which takes whole blocks.
      max_concurrent_requests: requests at a time, each counted as the longest.
      headroom: the fraction of the blocks and of the slots to add. The default is 0, because every
        request is already counted at its longest: without headroom, that many always fit. Add some
        where finished requests keep their blocks or slots for a while, as for a shared prefix or
        until a copy is done. 0.1 is read as exactly 1/10, and anything above 0 adds at least one
        block and one slot.
      block_multiple: k of the layout (`CacheLayout`).

    Raises:
      ValueError, TypeError: an argument is out of range or of the wrong type; it is named.

    """
    max_context_tokens = check_int("max_context_tokens", max_context_tokens, 1)
    requests = check_int("max_concurrent_requests", max_concurrent_requests, 1)
    block_size = config.block_size(block_multiple)
    growth = 1 + as_fraction("headroom", headroom)
    blocks = math.ceil(requests * ceil_div(max_context_tokens, block_size) * growth)
    slots = math.ceil(requests * growth)
    types = [spec.attention_type for spec in schedule]
    return {
        kind: BlockBudget(types.count(kind), 0 if kind == AttentionType.SWA else blocks, slots)
        for kind in AttentionType
        if kind in types
    }


def as_fraction(name: str, value: float | Fraction) -> Fraction:
    """A number from 0 to `INT32_MAX` as the fraction that its decimal digits say."""
    expected = f"{name}: expected a number in [0, {INT32_MAX}], got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(expected)
    if not 0 <= value <= INT32_MAX:
        raise ValueError(expected)
    if isinstance(value, numbers.Rational):
        return Fraction(int(value.numerator), int(value.denominator))
    return Fraction(str(float(value)))
