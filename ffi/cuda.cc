// The CUDA handlers and the module `jax_sa._cuda`. It links the CUDA runtime statically and
// imports on machines without a GPU.
#include "automaton_handlers.h"
#include "draft_tree_handlers.h"
#include "followers_handlers.h"
#include "fused_copy_handlers.h"
#include "kernels.h"
#include "module.h"
#include "pool_handlers.h"
#include "prefill_handlers.h"
#include "scan_handlers.h"
#include "seqlens_handlers.h"
#include "whole_slots_handlers.h"

namespace jax_sa {
namespace {

struct CudaRunner {
  using Context = ffi::PlatformStream<cudaStream_t>;
  using Value = cudaStream_t;
  cudaStream_t stream;

  template <class Op>
  ffi::Error operator()(const Op& op) const {
    const cudaError_t error = launch(op, stream);
    return error == cudaSuccess ? ffi::Error::Success()
                                : ffi::Error::Internal(cudaGetErrorString(error));
  }
};

using CudaAutomaton = AutomatonHandlers<CudaRunner>;
using CudaPrefill = PrefillHandlers<CudaRunner>;
using CudaDraftTree = DraftTreeHandlers<CudaRunner>;
using CudaWholeSlots = WholeSlotsHandlers<CudaRunner>;
using CudaPool = PoolHandlers<CudaRunner>;
using CudaFollowers = FollowersHandlers<CudaRunner>;
using CudaScan = ScanHandlers<CudaRunner>;
using CudaSeqlens = SeqlensHandlers<CudaRunner>;
using CudaFusedCopy = FusedCopyHandlers<CudaRunner>;

// A handler only launches kernels on the stream it is given, so a CUDA graph can hold it.
constexpr auto kTraits = {ffi::Traits::kCmdBufferCompatible};

XLA_FFI_DEFINE_HANDLER(kExtend, CudaAutomaton::extend, CudaAutomaton::bind_extend(), kTraits);
XLA_FFI_DEFINE_HANDLER(kLookup, CudaAutomaton::lookup, CudaAutomaton::bind_lookup(), kTraits);
XLA_FFI_DEFINE_HANDLER(kLookupAfter, CudaAutomaton::lookup_after,
                       CudaAutomaton::bind_lookup_after(), kTraits);
XLA_FFI_DEFINE_HANDLER(kExtendLookup, CudaAutomaton::extend_lookup,
                       CudaAutomaton::bind_extend_lookup(), kTraits);
XLA_FFI_DEFINE_HANDLER(kPrefill, CudaPrefill::prefill, CudaPrefill::bind_prefill(), kTraits);
XLA_FFI_DEFINE_HANDLER(kLookupTree, CudaDraftTree::lookup, CudaDraftTree::bind_lookup(), kTraits);
XLA_FFI_DEFINE_HANDLER(kExtendLookupTree, CudaDraftTree::extend_lookup,
                       CudaDraftTree::bind_extend_lookup(), kTraits);
XLA_FFI_DEFINE_HANDLER(kReadTokens, CudaAutomaton::read_tokens, CudaAutomaton::bind_read_tokens(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(kValidate, CudaAutomaton::validate, CudaAutomaton::bind_validate(), kTraits);
XLA_FFI_DEFINE_HANDLER(kReset, CudaWholeSlots::reset, CudaWholeSlots::bind_reset(), kTraits);
XLA_FFI_DEFINE_HANDLER(kInsert, CudaWholeSlots::insert, CudaWholeSlots::bind_insert(), kTraits);
XLA_FFI_DEFINE_HANDLER(kCopySlots, CudaWholeSlots::copy_slots, CudaWholeSlots::bind_copy_slots(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(kPoolInsert, CudaPool::insert, CudaPool::bind_insert(), kTraits);
XLA_FFI_DEFINE_HANDLER(kPoolInsertSlots, CudaPool::insert_slots, CudaPool::bind_insert_slots(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(kNoteFollowers, CudaFollowers::note, CudaFollowers::bind_note(), kTraits);
XLA_FFI_DEFINE_HANDLER(kScanExtend, CudaScan::extend, CudaScan::bind_extend(), kTraits);
XLA_FFI_DEFINE_HANDLER(kScanLookup, CudaScan::lookup, CudaScan::bind_lookup(), kTraits);
XLA_FFI_DEFINE_HANDLER(kScanExtendLookup, CudaScan::extend_lookup, CudaScan::bind_extend_lookup(),
                       kTraits);
XLA_FFI_DEFINE_HANDLER(kExpandSeqlens, CudaSeqlens::expand, CudaSeqlens::bind_expand(), kTraits);
XLA_FFI_DEFINE_HANDLER(kFusedCopy, CudaFusedCopy::copy, CudaFusedCopy::bind_copy(), kTraits);

PYBIND11_MODULE(_cuda, module) {
  define_module(module, {{"extend", kExtend},
                         {"lookup", kLookup},
                         {"lookup_after", kLookupAfter},
                         {"extend_lookup", kExtendLookup},
                         {"prefill", kPrefill},
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
