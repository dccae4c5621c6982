"""Speculative decoding without a draft model: suffix automata as pytrees, in jit, on CPU and CUDA.

The shape of a decoding loop:

    state = jax_sa.init(num_slots=64, max_seq_len=32_768)
    state = jax_sa.extend(state, prompts, prompt_lengths)
    draft = jax_sa.lookup(state, max_draft=16)
    accepted = jax_sa.accept_greedy(draft, logits)
    state = jax_sa.extend(state, accepted.tokens, accepted.length)
"""

from jax_sa import _targets
from jax_sa import cache_schema as cache_schema
from jax_sa.automaton import DRAFT_FILL as DRAFT_FILL
from jax_sa.automaton import Draft as Draft
from jax_sa.automaton import copy_slots as copy_slots
from jax_sa.automaton import extend as extend
from jax_sa.automaton import extend_lookup as extend_lookup
from jax_sa.automaton import lookup as lookup
from jax_sa.automaton import reset as reset
from jax_sa.state import State as State
from jax_sa.state import Status as Status
from jax_sa.state import get_state_size as get_state_size
from jax_sa.state import init as init
from jax_sa.verify import Accepted as Accepted
from jax_sa.verify import accept_greedy as accept_greedy

_targets.require_cpu()
