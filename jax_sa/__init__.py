"""Speculative decoding without a draft model: suffix automata as pytrees, in jit, on CPU and CUDA.

The shape of a decoding loop:

    state = jax_sa.init(num_slots=64, max_seq_len=32_768)
    state = jax_sa.extend(state, prompts, prompt_lengths)
    draft = jax_sa.lookup(state, max_draft=16)
    accepted = jax_sa.accept_greedy(draft, logits)
    state = jax_sa.extend(state, accepted.tokens, accepted.length)
"""

import pkgutil

# In a checkout, Python finds this folder before the installed package, which has the handlers.
__path__ = pkgutil.extend_path(__path__, __name__)

from jax_sa import _serialization, _source_lines, _targets
from jax_sa import cache_schema as cache_schema
from jax_sa._insert import insert as insert
from jax_sa.adapters import KVCache as KVCache
from jax_sa.adapters import from_forward as from_forward
from jax_sa.adapters import from_whole_pass as from_whole_pass
from jax_sa.automaton import DRAFT_FILL as DRAFT_FILL
from jax_sa.automaton import Draft as Draft
from jax_sa.automaton import Source as Source
from jax_sa.automaton import copy_slots as copy_slots
from jax_sa.automaton import extend as extend
from jax_sa.automaton import extend_lookup as extend_lookup
from jax_sa.automaton import lookup as lookup
from jax_sa.automaton import lookup_after as lookup_after
from jax_sa.automaton import read_tokens as read_tokens
from jax_sa.automaton import reset as reset
from jax_sa.automaton import validate as validate
from jax_sa.budget import share_budget as share_budget
from jax_sa.buffers import Copied as Copied
from jax_sa.buffers import fused_copy as fused_copy
from jax_sa.cache_moves import move_entries as move_entries
from jax_sa.calibration import Calibration as Calibration
from jax_sa.decoder import Decoder as Decoder
from jax_sa.decoder import Generation as Generation
from jax_sa.decoder import generate as generate
from jax_sa.draft_tree import ROOT as ROOT
from jax_sa.draft_tree import DraftTree as DraftTree
from jax_sa.draft_tree import extend_lookup_tree as extend_lookup_tree
from jax_sa.draft_tree import lookup_tree as lookup_tree
from jax_sa.draft_tree import tree_mask as tree_mask
from jax_sa.followers import NUM_FOLLOWERS as NUM_FOLLOWERS
from jax_sa.followers import Followers as Followers
from jax_sa.followers import init_followers as init_followers
from jax_sa.followers import note_followers as note_followers
from jax_sa.host_build import build_on_host as build_on_host
from jax_sa.inspection import Automaton as Automaton
from jax_sa.inspection import inspect_slot as inspect_slot
from jax_sa.manager import SAConfig as SAConfig
from jax_sa.manager import SuffixAutomatonManager as SuffixAutomatonManager
from jax_sa.model_check import Clause as Clause
from jax_sa.model_check import ModelCheck as ModelCheck
from jax_sa.model_check import check_model as check_model
from jax_sa.neural_drafter import NeuralDrafter as NeuralDrafter
from jax_sa.packed_decoder import PackedDecoder as PackedDecoder
from jax_sa.packed_queue import Completions as Completions
from jax_sa.packed_rows import Rows as Rows
from jax_sa.packed_rows import Step as Step
from jax_sa.packing import Packed as Packed
from jax_sa.packing import pack as pack
from jax_sa.pool import MAX_POOL_MATCH as MAX_POOL_MATCH
from jax_sa.pool import NGRAM_LENGTHS as NGRAM_LENGTHS
from jax_sa.pool import SEPARATOR as SEPARATOR
from jax_sa.pool import Pool as Pool
from jax_sa.pool import get_pool_size as get_pool_size
from jax_sa.pool import init_pool as init_pool
from jax_sa.pool_insert import insert_slots as insert_slots
from jax_sa.prompts import pad_prompts as pad_prompts
from jax_sa.replay_metadata import ReplayMetadata as ReplayMetadata
from jax_sa.replay_metadata import copy_replay_metadata as copy_replay_metadata
from jax_sa.sampling import Sampling as Sampling
from jax_sa.scan_state import ScanState as ScanState
from jax_sa.seqlens import ExpandedSeqlens as ExpandedSeqlens
from jax_sa.seqlens import expand_seqlens as expand_seqlens
from jax_sa.state import Invalid as Invalid
from jax_sa.state import State as State
from jax_sa.state import Status as Status
from jax_sa.state import get_state_size as get_state_size
from jax_sa.state import init as init
from jax_sa.storage import load as load
from jax_sa.storage import save as save
from jax_sa.tree_block import TreeBlock as TreeBlock
from jax_sa.verify import Accepted as Accepted
from jax_sa.verify import accept_greedy as accept_greedy
from jax_sa.verify import accept_sampled as accept_sampled
from jax_sa.verify import join_drafts as join_drafts
from jax_sa.verify import merge_drafts as merge_drafts
from jax_sa.verify_tree import accept_tree_greedy as accept_tree_greedy
from jax_sa.verify_tree import accept_tree_sampled as accept_tree_sampled

_source_lines.leave_out(__path__)
_serialization.register()
_targets.platforms()
