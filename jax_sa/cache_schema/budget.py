"""How many blocks and slots the layers of each type need."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from jax_sa._checks import check_int
from jax_sa.cache_schema.config import AttentionType, DSV4Config, LayerSpec
from jax_sa.cache_schema.layout import ceil_div


@dataclass(frozen=True)
class BlockBudget:
    """What each layer of one type needs, headroom included, the padding page and slot not."""

    layers: int
    """Layers of this type."""
    blocks: int
    """Pages in each of those layers, one per block; 0 for SWA."""
    slots: int
    """Requests that each of those layers keeps an SWA ring and compressor state for."""


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

    A request takes whole blocks. `headroom` is a fraction of the blocks and of the slots to add:
    0.1 is read as exactly 1/10, and anything above 0 adds at least one of each.
    """
    check_int("max_context_tokens", max_context_tokens, 1)
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
    """A finite number at least 0 as the fraction that its decimal digits say."""
    expected = f"{name}: expected a finite number at least 0, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(expected)
    if not 0 <= value < math.inf:
        raise ValueError(expected)
    return Fraction(value) if isinstance(value, numbers.Rational) else Fraction(str(float(value)))
