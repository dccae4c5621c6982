// The CPU handlers and the module `jax_sa._cpu`.
#include "automaton_handlers.h"
#include "draft_tree_handlers.h"
#include "followers_handlers.h"
#include "followers_host.h"
#include "fused_copy_handlers.h"
#include "fused_copy_host.h"
#include "module.h"
#include "pool_handlers.h"
#include "pool_insert_host.h"
#include "rows_host.h"
#include "scan_handlers.h"
#include "scan_host.h"
#include "seqlens_handlers.h"
#include "seqlens_host.h"
#include "whole_slots_handlers.h"
#include "whole_slots_host.h"

namespace jax_sa {
namespace {

struct CpuRunner {
  using Context = ffi::ThreadPool;
  using Value = ffi::ThreadPool;
  ffi::ThreadPool pool;

  template <class Op>
  ffi::Error operator()(const Op& op) const {
    run(op, pool);
    return ffi::Error::Success();
  }
};

using CpuAutomaton = AutomatonHandlers<CpuRunner>;
using CpuDraftTree = DraftTreeHandlers<CpuRunner>;
using CpuWholeSlots = WholeSlotsHandlers<CpuRunner>;
using CpuPool = PoolHandlers<CpuRunner>;
using CpuFollowers = FollowersHandlers<CpuRunner>;
using CpuScan = ScanHandlers<CpuRunner>;
using CpuSeqlens = SeqlensHandlers<CpuRunner>;
using CpuFusedCopy = FusedCopyHandlers<CpuRunner>;

XLA_FFI_DEFINE_HANDLER(kExtend, CpuAutomaton::extend, CpuAutomaton::bind_extend());
XLA_FFI_DEFINE_HANDLER(kLookup, CpuAutomaton::lookup, CpuAutomaton::bind_lookup());
XLA_FFI_DEFINE_HANDLER(kLookupAfter, CpuAutomaton::lookup_after, CpuAutomaton::bind_lookup_after());
XLA_FFI_DEFINE_HANDLER(kExtendLookup, CpuAutomaton::extend_lookup,
                       CpuAutomaton::bind_extend_lookup());
XLA_FFI_DEFINE_HANDLER(kLookupTree, CpuDraftTree::lookup, CpuDraftTree::bind_lookup());
XLA_FFI_DEFINE_HANDLER(kExtendLookupTree, CpuDraftTree::extend_lookup,
                       CpuDraftTree::bind_extend_lookup());
XLA_FFI_DEFINE_HANDLER(kReadTokens, CpuAutomaton::read_tokens, CpuAutomaton::bind_read_tokens());
XLA_FFI_DEFINE_HANDLER(kValidate, CpuAutomaton::validate, CpuAutomaton::bind_validate());
XLA_FFI_DEFINE_HANDLER(kReset, CpuWholeSlots::reset, CpuWholeSlots::bind_reset());
XLA_FFI_DEFINE_HANDLER(kInsert, CpuWholeSlots::insert, CpuWholeSlots::bind_insert());
XLA_FFI_DEFINE_HANDLER(kCopySlots, CpuWholeSlots::copy_slots, CpuWholeSlots::bind_copy_slots());
XLA_FFI_DEFINE_HANDLER(kPoolInsert, CpuPool::insert, CpuPool::bind_insert());
XLA_FFI_DEFINE_HANDLER(kPoolInsertSlots, CpuPool::insert_slots, CpuPool::bind_insert_slots());
XLA_FFI_DEFINE_HANDLER(kNoteFollowers, CpuFollowers::note, CpuFollowers::bind_note());
XLA_FFI_DEFINE_HANDLER(kScanExtend, CpuScan::extend, CpuScan::bind_extend());
XLA_FFI_DEFINE_HANDLER(kScanLookup, CpuScan::lookup, CpuScan::bind_lookup());
XLA_FFI_DEFINE_HANDLER(kScanExtendLookup, CpuScan::extend_lookup, CpuScan::bind_extend_lookup());
XLA_FFI_DEFINE_HANDLER(kExpandSeqlens, CpuSeqlens::expand, CpuSeqlens::bind_expand());
XLA_FFI_DEFINE_HANDLER(kFusedCopy, CpuFusedCopy::copy, CpuFusedCopy::bind_copy());

PYBIND11_MODULE(_cpu, module) {
  define_module(module, {{"extend", kExtend},
                         {"lookup", kLookup},
                         {"lookup_after", kLookupAfter},
                         {"extend_lookup", kExtendLookup},
                         {"lookup_tree", kLookupTree},
                         {"extend_lookup_tree", kExtendLookupTree},
                         {"read_tokens", kReadTokens},
                         {"validate", kValidate},
                         {"reset", kReset},
                         {"insert", kInsert},
                         {"copy_slots", kCopySlots},
                         {"pool_insert", kPoolInsert},
                         {"pool_insert_slots", kPoolInsertSlots},
                         {"note_followers", kNoteFollowers},
                         {"scan_extend", kScanExtend},
                         {"scan_lookup", kScanLookup},
                         {"scan_extend_lookup", kScanExtendLookup},
                         {"expand_seqlens", kExpandSeqlens},
                         {"fused_copy", kFusedCopy}});
}

}  // namespace
}  // namespace jax_sa
