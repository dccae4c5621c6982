"""Refuses vmap of a target, in words that name the op and say what to do instead.

JAX would refuse it too, but with advice on an argument of `jax.ffi.ffi_call`, which a user of the
op cannot set. What a target is called with passes through a primitive that does nothing, unless it
is vmapped: so vmap is seen however deep in jit or in loops the call is.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def refuse_vmap(op: str, instead: str, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """`operands` as they are; NotImplementedError wherever one of them is vmapped.

    Args:
      op: the op's public name.
      instead: what to do instead of vmap, an imperative clause.
      operands: of the target.
    """
    return _not_vmapped.bind(*operands, op=op, instead=instead)


def _refuse(arguments: Any, axes: Any, *, op: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"{op}: expected a call without vmap, got one under vmap: {instead}")


_not_vmapped = Primitive("jax_sa_not_vmapped")
_not_vmapped.multiple_results = True
_not_vmapped.def_impl(lambda *operands, op, instead: operands)
_not_vmapped.def_abstract_eval(lambda *types, op, instead: types)
batching.primitive_batchers[_not_vmapped] = _refuse
mlir.register_lowering(_not_vmapped, lambda context, *operands, op, instead: operands)
