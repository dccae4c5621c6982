"""A plan of every byte on a device, and by bisection the most requests or tokens that fit."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from jax_sa._checks import INT32_MAX, check_bool, check_int
from jax_sa.cache_schema.block_table import block_table_bytes
from jax_sa.cache_schema.budget import compute_block_budget
from jax_sa.cache_schema.config import AttentionType, DSV4Config, LayerSpec, layer_schedule
from jax_sa.cache_schema.layout import DEFAULT_LAYOUT, CacheLayout, Page, ceil_div
from jax_sa.cache_schema.schema import LayerCacheSchema, build_schema
from jax_sa.state import get_state_size

MAX_BYTES = 2**63 - 1


class ReportsMemory(Protocol):
    """A `jax.Device`, whose own type type checkers do not know."""

    def memory_stats(self) -> Mapping[str, int] | None:
        """The bytes of its memory by name; `bytes_limit` is what JAX may take of it."""


@dataclass(frozen=True)
class Part:
    """One part of a stage's cache."""

    name: str
    """The field of `Cache` that it is."""
    bytes: int
    """Its bytes, the padding included."""
    waste_bytes: int = 0
    """Bytes of padding."""


@dataclass(frozen=True)
class StagePlan:
    """The contents of one device of a pipeline stage."""

    schedule: tuple[LayerSpec, ...]
    """The layers of the stage."""
    parts: tuple[Part, ...]
    """Its cache, part by part."""
    weights_bytes: int
    """Its share of the weights."""
    automaton_bytes: int
    """The suffix automata of all slots. Only the last stage, which accepts tokens, has them."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of all parts, as `allocate` allocates them."""
        return sum(part.bytes for part in self.parts)

    @property
    def total_bytes(self) -> int:
        """Bytes of everything on the device."""
        return self.weights_bytes + self.cache_bytes + self.automaton_bytes


@dataclass(frozen=True)
class CachePlan:
    """Every byte on each device, for `requests` requests of up to `context_tokens` tokens.

    Pages and slots are numbered alike in all layers. Number 0 of both is padding.
    """

    config: DSV4Config
    """The model."""
    layout: CacheLayout
    """Dtypes, block size and page alignment."""
    speculative: bool
    """Whether there is room for drafts, and for the suffix automaton."""
    mtp: bool
    """Whether the MTP layers are included."""
    context_tokens: int
    """The most tokens of a request."""
    requests: int
    """Concurrent requests, over all data-parallel replicas."""
    hbm_bytes: int
    """Memory of one device."""
    block_size: int
    """Tokens in a block."""
    blocks_per_request: int
    """Blocks of a request of `context_tokens`."""
    num_pages: int
    """Pages in each CSA and HCA layer, the padding page included."""
    num_slots: int
    """Slots in each layer and of the suffix automaton, the padding slot included."""
    stages: tuple[StagePlan, ...]
    """One device of each pipeline stage; those that share a stage are alike."""

    @property
    def fullest_stage(self) -> int:
        """The index of the stage with the most bytes on a device."""
        return max(range(len(self.stages)), key=lambda i: self.stages[i].total_bytes)

    @property
    def device_bytes(self) -> int:
        """Bytes on the fullest device."""
        return self.stages[self.fullest_stage].total_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes left on the fullest device; negative where so many are missing."""
        return self.hbm_bytes - self.device_bytes

    @property
    def fits(self) -> bool:
        """Whether the fullest device has room."""
        return self.free_bytes >= 0


def plan(
    config: DSV4Config,
    hbm: int | ReportsMemory,
    weights_bytes: int = 0,
    *,
    context_tokens: int,
    requests: int,
    layout: CacheLayout = DEFAULT_LAYOUT,
    headroom: float | Fraction = 0,
    speculative: bool = True,
    mtp: bool = False,
    tensor_parallel: int = 1,
    pipeline_stages: int = 1,
    data_parallel: int = 1,
) -> CachePlan:
    """The plan for `requests` concurrent requests of up to `context_tokens` tokens each.

    It is made whether or not it fits; see `CachePlan.fits`.

    Args:
      config: the model.
      hbm: memory of one device in bytes, or a `jax.Device` for the memory that JAX may take of it.
      weights_bytes: weights of one replica, which its devices share evenly.
      context_tokens: 1 to `config.max_position_embeddings`.
      requests: at least 1, over all replicas.
      layout: entries, block size and page alignment.
      headroom: the fraction of blocks and slots to add. 0, the default, fits exactly `requests`
        requests of `context_tokens` tokens (more in `compute_block_budget`).
      speculative: whether to plan for drafts: to double the compressor state, and to include the
        suffix automaton, `get_state_size(context_tokens)` bytes per slot.
      mtp: whether to include the caches of the MTP layers, on the last stage.
      tensor_parallel: devices that share a layer's weights. There is one KV head, so each of them
        has the whole cache.
      pipeline_stages: contiguous slices of the layers; the first ones have a layer more where
        they cannot be equal.
      data_parallel: replicas that share the requests; the plan is of the fullest replica.

    Raises:
      ValueError: an argument is out of range; the message names it.
      TypeError: an argument is of the wrong type.

    """
    hbm_bytes = _hbm_bytes(hbm)
    weights_bytes = check_int("weights_bytes", weights_bytes, 0, MAX_BYTES)
    context_tokens = check_int("context_tokens", context_tokens, 1, config.max_position_embeddings)
    requests = check_int("requests", requests, 1)
    speculative = check_bool("speculative", speculative)
    mtp = check_bool("mtp", mtp)
    tensor_parallel = check_int("tensor_parallel", tensor_parallel, 1)
    pipeline_stages = check_int("pipeline_stages", pipeline_stages, 1, len(config.layer_types))
    data_parallel = check_int("data_parallel", data_parallel, 1)

    schedule = layer_schedule(config, mtp=mtp)
    budget = compute_block_budget(
        config,
        schedule,
        context_tokens,
        ceil_div(requests, data_parallel),
        headroom,
        block_multiple=layout.block_multiple,
    ).values()
    num_pages = 1 + max(of_type.blocks for of_type in budget)
    num_slots = 1 + max(of_type.slots for of_type in budget)
    block_size = config.block_size(layout.block_multiple)
    blocks_per_request = ceil_div(context_tokens, block_size)
    table = Part("block_table", block_table_bytes(num_slots, num_pages, blocks_per_request))

    stages = []
    for layers in _split(schedule, len(config.layer_types), pipeline_stages):
        schemas = [build_schema(config, spec, layout, speculative=speculative) for spec in layers]
        drafts = speculative and layers[-1] == schedule[-1]
        stages.append(
            StagePlan(
                schedule=layers,
                parts=(*_cache_parts(schemas, num_pages, num_slots), table),
                weights_bytes=ceil_div(weights_bytes, tensor_parallel * pipeline_stages),
                automaton_bytes=num_slots * get_state_size(context_tokens) if drafts else 0,
            )
        )
    return CachePlan(
        config=config,
        layout=layout,
        speculative=speculative,
        mtp=mtp,
        context_tokens=context_tokens,
        requests=requests,
        hbm_bytes=hbm_bytes,
        block_size=block_size,
        blocks_per_request=blocks_per_request,
        num_pages=num_pages,
        num_slots=num_slots,
        stages=tuple(stages),
    )


def max_requests(
    config: DSV4Config,
    hbm: int | ReportsMemory,
    weights_bytes: int = 0,
    *,
    context_tokens: int,
    **options: Any,
) -> int:
    """The most requests of `context_tokens` whose `plan` fits; 0 where not even one does.

    `options` are those of `plan`.
    """

    def fits(requests: int) -> bool:
        args = (config, hbm, weights_bytes)
        return plan(*args, context_tokens=context_tokens, requests=requests, **options).fits

    return _largest(fits, INT32_MAX)


def max_context(
    config: DSV4Config,
    hbm: int | ReportsMemory,
    weights_bytes: int = 0,
    *,
    requests: int,
    **options: Any,
) -> int:
    """The longest context whose `plan` for `requests` fits; 0 where not even 1 token does.

    It is at most `config.max_position_embeddings`. `options` are those of `plan`.
    """

    def fits(context_tokens: int) -> bool:
        args = (config, hbm, weights_bytes)
        return plan(*args, context_tokens=context_tokens, requests=requests, **options).fits

    return _largest(fits, config.max_position_embeddings)


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest n in 1..limit with fits(n), or 0; `fits` holds up to some n and not beyond."""
    return bisect.bisect_left(range(1, limit + 1), True, key=lambda n: not fits(n))


def _hbm_bytes(hbm: int | ReportsMemory) -> int:
    if not hasattr(hbm, "memory_stats"):
        return check_int("hbm", hbm, 1, MAX_BYTES)
    stats = hbm.memory_stats() or {}
    if "bytes_limit" not in stats:
        raise ValueError(f"hbm: expected bytes or a device that reports its memory, got {hbm}")
    return check_int("hbm", stats["bytes_limit"], 1, MAX_BYTES)


def _split(
    schedule: Sequence[LayerSpec], num_layers: int, num_stages: int
) -> list[tuple[LayerSpec, ...]]:
    """Contiguous slices of the first `num_layers`; the last stage has the layers after them too."""
    size, longer = divmod(num_layers, num_stages)
    starts = [i * size + min(i, longer) for i in range(num_stages)]
    ends = [*starts[1:], len(schedule)]
    return [tuple(schedule[start:end]) for start, end in zip(starts, ends, strict=True)]


def _cache_parts(
    schemas: Sequence[LayerCacheSchema], num_pages: int, num_slots: int
) -> tuple[Part, ...]:
    csa = [schema for schema in schemas if schema.attention_type == AttentionType.CSA]
    hca = [schema for schema in schemas if schema.attention_type == AttentionType.HCA]
    return (
        _pages("csa_kv", num_pages, [schema.kv_page for schema in csa]),
        _pages("csa_indexer", num_pages, [schema.indexer_page for schema in csa]),
        _pages("hca_kv", num_pages, [schema.kv_page for schema in hca]),
        _pages("swa_ring", num_slots, [schema.swa_ring for schema in schemas]),
        Part("csa_state", num_slots * sum(schema.state_bytes for schema in csa)),
        Part("csa_indexer_state", num_slots * sum(schema.indexer_state_bytes for schema in csa)),
        Part("hca_state", num_slots * sum(schema.state_bytes for schema in hca)),
    )


def _pages(name: str, copies: int, page_of_layers: Sequence[Page]) -> Part:
    """`copies` of one page per layer."""
    return Part(
        name,
        copies * sum(page.bytes for page in page_of_layers),
        copies * sum(page.waste_bytes for page in page_of_layers),
    )
