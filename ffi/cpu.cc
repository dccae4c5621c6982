// The CPU handlers and the module `jax_sa._cpu`.
#include <cstring>

#include "fused_copy_handlers.h"
#include "fused_copy_host.h"
#include "handlers.h"
#include "host_warp.h"
#include "module.h"
#include "parallel_rows.h"
#include "seqlens_handlers.h"
#include "seqlens_host.h"

namespace jax_sa {
namespace {

struct CpuRunner {
  using Context = ffi::ThreadPool;
  using Value = ffi::ThreadPool;
  ffi::ThreadPool pool;

  template <class RowOp>
  ffi::Error operator()(const RowOp& op) const {
    parallel_rows(pool, op.rows.count, op.num_tokens(), [&](int32_t row) { op(HostWarp{}, row); });
    return ffi::Error::Success();
  }

  ffi::Error operator()(const Reset& op) const {
    for (int32_t row = 0; row < op.count; ++row) {
      if (!op.leaves.is_slot(op.slots[row])) continue;
      for (int32_t leaf = 0; leaf < kNumLeaves; ++leaf) {
        std::memset(op.leaves.slot(leaf, op.slots[row]), 0, op.leaves.slot_bytes[leaf]);
      }
    }
    return ffi::Error::Success();
  }

  ffi::Error operator()(const CopySlots& op) const {
    for (int32_t row = 0; row < op.count; ++row) {
      const CopySlots::Action action = op.action(row);
      if (action.copies || action.conflict) op.write_status(row, action);
      if (!action.copies || op.sources[row] == op.destinations[row]) continue;
      for (int32_t leaf = 0; leaf < kNumLeaves; ++leaf) {
        if (op.is_status(leaf)) continue;
        std::memcpy(op.leaves.slot(leaf, op.destinations[row]),
                    op.leaves.slot(leaf, op.sources[row]), op.leaves.slot_bytes[leaf]);
      }
    }
    return ffi::Error::Success();
  }

  ffi::Error operator()(const ExpandSeqlens& op) const {
    run(op);
    return ffi::Error::Success();
  }

  ffi::Error operator()(const FusedCopy& op) const {
    run(op);
    return ffi::Error::Success();
  }
};

using Cpu = Handlers<CpuRunner>;
using CpuSeqlens = SeqlensHandlers<CpuRunner>;
using CpuFusedCopy = FusedCopyHandlers<CpuRunner>;

XLA_FFI_DEFINE_HANDLER(kExtend, Cpu::extend, Cpu::bind_extend());
XLA_FFI_DEFINE_HANDLER(kLookup, Cpu::lookup, Cpu::bind_lookup());
XLA_FFI_DEFINE_HANDLER(kExtendLookup, Cpu::extend_lookup, Cpu::bind_extend_lookup());
XLA_FFI_DEFINE_HANDLER(kReset, Cpu::reset, Cpu::bind_reset());
XLA_FFI_DEFINE_HANDLER(kCopySlots, Cpu::copy_slots, Cpu::bind_copy_slots());
XLA_FFI_DEFINE_HANDLER(kExpandSeqlens, CpuSeqlens::expand, CpuSeqlens::bind_expand());
XLA_FFI_DEFINE_HANDLER(kFusedCopy, CpuFusedCopy::copy, CpuFusedCopy::bind_copy());

PYBIND11_MODULE(_cpu, module) {
  define_module(module, {{"extend", kExtend},
                         {"lookup", kLookup},
                         {"extend_lookup", kExtendLookup},
                         {"reset", kReset},
                         {"copy_slots", kCopySlots},
                         {"expand_seqlens", kExpandSeqlens},
                         {"fused_copy", kFusedCopy}});
}

}  // namespace
}  // namespace jax_sa
