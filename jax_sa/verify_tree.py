"""The path of a draft tree that the model confirms, in plain jnp.

Letters: B rows, N nodes of a tree, V vocabulary, T places of packed logits. A row's block has 1 + N
places: its last token at place 0, and node i at place 1 + i.
"""

import jax
import jax.numpy as jnp

from jax_sa._explicit import follow_rows
from jax_sa.automaton import DRAFT_FILL
from jax_sa.draft_tree import ROOT, DraftTree, ancestors, check_tree, is_node, siblings
from jax_sa.sampling import Sampling, check_sampling, distribution, draw, spread
from jax_sa.verify import (
    Accepted,
    check_logits,
    check_targets,
    places,
    row_of_place,
)


@follow_rows()
def accept_tree_greedy(
    tree: DraftTree, targets: jax.Array, *, first: jax.Array | None = None
) -> tuple[Accepted, jax.Array]:
    """Keeps the path of each tree that greedy decoding would have written.

    The output of a loop that emits this is token for token that of greedy decoding.

    Args:
      tree: of B rows and N nodes.
      targets: the model's choice after the last token and after each node, with what `tree_mask`
        says that the node follows: logits [B, 1 + N, V] of a floating dtype, whose largest is
        chosen (of a NaN, the first NaN), or the chosen tokens int32[B, 1 + N]. With `first`,
        packed: logits [T, V] or tokens int32[T].
      first: int32[B], of packed targets: the place of each row's last token, as in
        `accept_greedy`. Place `first[b] + 1 + i` judges the children of node i. None: the targets
        are not packed.

    Returns:
      What is emitted, an `Accepted` of 1 + N places: the nodes of the path, then the model's own
      next token. And the path, int32[B, 1 + N]: the place in the row's block of the last token, 0,
      and of each node of the path; from `length` on, place j has the number j. So the cache entry
      of place `path[b, j]` belongs to position j after the last token's: see `move_entries`.

    Raises:
      ValueError, TypeError: at trace time, for a wrong shape or dtype.
    """
    rows, max_nodes = check_tree("tree", tree)
    chosen = check_targets(targets, rows, max_nodes, first)
    if jnp.issubdtype(chosen.dtype, jnp.floating):
        chosen = jnp.argmax(chosen, axis=-1).astype(jnp.int32)
    if first is not None:
        chosen = chosen[places(first, max_nodes, chosen.shape[0])]
    path, length = _path(tree, tree.tokens == _of_parents(tree, chosen))
    emitted = jnp.take_along_axis(chosen, path, axis=1)
    return _accepted(emitted, length), path


@follow_rows()
def accept_tree_sampled(
    key: jax.Array,
    tree: DraftTree,
    logits: jax.Array,
    temperature: jax.Array | float = 1.0,
    top_k: jax.Array | int | None = None,
    top_p: jax.Array | float | None = None,
    *,
    first: jax.Array | None = None,
) -> tuple[Accepted, jax.Array]:
    """Keeps a path of each tree such that what is emitted has the model's own distribution.

    At each place of the path a token is drawn from the model's distribution there. If a child
    holds it, the path goes on to that child, else it ends with that token. Nothing else is ever
    emitted than what was drawn, so the tree changes no distribution. A tree that is a chain gives
    what `accept_sampled` gives for that draft and the same key.

    Args:
      key: a PRNG key.
      tree: of B rows and N nodes.
      logits: the model's, a floating dtype [B, 1 + N, V], as in `accept_tree_greedy`. With
        `first`, packed: [T, V].
      temperature: as in `Sampling`, like `top_k` and `top_p`. Where it is 0, the result is that of
        `accept_tree_greedy`.
      top_k: None: all tokens.
      top_p: None: all tokens.
      first: int32[B], as in `accept_tree_greedy`.

    Returns:
      As `accept_tree_greedy`.

    Raises:
      ValueError, TypeError: at trace time, naming the argument.
    """
    rows, max_nodes = check_tree("tree", tree)
    logits = check_logits("logits", logits, rows, max_nodes, first)
    sampling = check_sampling(Sampling(key, temperature, top_k, top_p), rows)
    if first is None:
        first = (1 + max_nodes) * jnp.arange(rows, dtype=jnp.int32)
        logits = logits.reshape(-1, logits.shape[-1])
    num_places, vocabulary = logits.shape
    place = places(first, max_nodes, num_places)
    target = distribution(logits, spread(sampling, row_of_place(first, tree, num_places)))
    uniform, noise = draw(key, rows, max_nodes, vocabulary)

    # A uniform number for each place says which child's token is drawn there, if any: the children
    # share [0, 1) in their order, each as much of it as its probability. It is that of the place's
    # first child, so that every place has another.
    known = (tree.tokens >= 0) & (tree.tokens < vocabulary)
    token = jnp.clip(tree.tokens, 0, vocabulary - 1)
    judge = _of_parents(tree, place)
    probability = target.at(judge).probability(logits[judge, token], token)
    probability = jnp.where(known & is_node(tree), probability, 0.0)
    same_parent = siblings(tree)
    before = same_parent & jnp.tri(max_nodes, k=-1, dtype=bool)[None]
    low = jnp.sum(jnp.where(before, probability[:, None], 0.0), axis=-1)
    chance = jnp.take_along_axis(uniform, jnp.argmax(same_parent, axis=-1), axis=1)
    path, length = _path(tree, (chance >= low) & (chance < low + probability))

    # The model's own token comes where no child's was drawn, so it is none of theirs.
    last = jnp.take_along_axis(path, length[:, None] - 1, axis=1)
    refused = jnp.where((tree.parents == last - 1) & is_node(tree), tree.tokens, -1)
    here = jnp.take_along_axis(place, last, axis=1)[:, 0]
    scores = target.at(here).scores(logits[here])
    own = jnp.argmax(_without(scores, refused) + noise, axis=-1).astype(jnp.int32)
    position = jnp.arange(1 + max_nodes, dtype=jnp.int32)[None]
    # Place j + 1 of the path holds the token that was drawn at place j.
    drawn = jnp.take_along_axis(tree.tokens, jnp.maximum(path[:, 1:] - 1, 0), axis=1)
    drawn = jnp.pad(drawn, ((0, 0), (0, 1)))
    emitted = jnp.where(position == length[:, None] - 1, own[:, None], drawn)
    return _accepted(emitted, length), path


def _path(tree: DraftTree, holds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The path of the nodes that hold, as all above them do, and how many tokens it emits.

    Args:
      tree: of B rows and N nodes.
      holds: bool[B, N]; of the children of a place, one at most.
    """
    max_nodes = holds.shape[1]
    holds &= is_node(tree)
    on_path = jnp.all(jnp.where(ancestors(tree), holds[:, None], True), axis=-1)
    position = jnp.arange(1 + max_nodes, dtype=jnp.int32)[None]
    depth = jnp.where(on_path, tree.depth, 0)
    place = 1 + jnp.arange(max_nodes, dtype=jnp.int32)
    at_depth = depth[:, None] == position[..., None]
    path = jnp.sum(jnp.where(at_depth, place[None, None], 0), axis=-1, dtype=jnp.int32)
    length = 1 + jnp.max(depth, axis=1, initial=0)
    inside = (position > 0) & (position < length[:, None])
    return jnp.where(inside, path, position), length


def _without(scores: jax.Array, refused: jax.Array) -> jax.Array:
    """The scores [B, V] of the residual distribution: p without the tokens refused int32[B, N].

    A token below 0 refuses nothing. Where nothing is left, it is p: only rounding refuses all that
    p holds, and so rarely that no test would see it.
    """
    row = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
    column = jnp.where(refused < 0, scores.shape[1], refused)
    rest = scores.at[row, column].set(-jnp.inf, mode="drop")
    nothing = jnp.max(rest, axis=1, keepdims=True) == -jnp.inf
    return jnp.where(nothing, scores, rest)


def _accepted(emitted: jax.Array, length: jax.Array) -> Accepted:
    position = jnp.arange(emitted.shape[1], dtype=jnp.int32)[None]
    return Accepted(jnp.where(position < length[:, None], emitted, DRAFT_FILL), length)


def _of_parents(tree: DraftTree, of_places: jax.Array) -> jax.Array:
    """[B, N] of [B, 1 + N] values of the places, for each node that of its parent's."""
    return jnp.take_along_axis(of_places, tree.parents - ROOT, axis=1, mode="clip")
