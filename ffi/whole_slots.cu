// reset, insert, copy_slots: a slot's arrays as bytes, spread over many blocks.
#include "kernels.h"

namespace jax_sa {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBytesPerBlock = 64 * 1024;
constexpr int64_t kMaxBlocksPerSlot = 64;

// Runs body(offset) over this block row's share of `count` elements.
template <class Body>
__device__ void spread(int64_t count, Body body) {
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    body(i);
  }
}

// Runs body(which) for each number of a slot, once in all of a slot's blocks.
template <class Body>
__device__ void each_number(Body body) {
  if (blockIdx.y == 0 && threadIdx.x < kNumNumbers) body(threadIdx.x);
}

template <class Word>
__device__ void fill_zero(char* to, int64_t bytes) {
  spread(bytes / sizeof(Word), [&](int64_t i) { reinterpret_cast<Word*>(to)[i] = Word{}; });
}

template <class Word>
__device__ void copy(char* to, const char* from, int64_t bytes) {
  spread(bytes / sizeof(Word), [&](int64_t i) {
    reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
  });
}

__device__ void copy_leaf(char* to, const char* from, int64_t bytes) {
  if (bytes % sizeof(int4) == 0) {
    copy<int4>(to, from, bytes);
  } else {
    copy<int32_t>(to, from, bytes);
  }
}

__global__ void __launch_bounds__(kThreads) run(const __grid_constant__ Reset op) {
  const int32_t slot = op.slots[blockIdx.x];
  if (!op.leaves.is_slot(slot)) return;
  each_number([&](int32_t which) { op.clear_number(slot, which); });
  for (int32_t leaf = 0; leaf < Leaves::kLarge; ++leaf) {
    const int64_t bytes = op.leaves.slot_bytes[leaf];
    if (bytes % sizeof(int4) == 0) {
      fill_zero<int4>(op.leaves.slot(leaf, slot), bytes);
    } else {
      fill_zero<int32_t>(op.leaves.slot(leaf, slot), bytes);
    }
  }
}

__global__ void __launch_bounds__(kThreads) run(const __grid_constant__ CopySlots op) {
  __shared__ CopySlots::Action action;
  const int32_t row = blockIdx.x;
  if (threadIdx.x == 0) action = op.action(row);
  __syncthreads();
  if (action.copies || action.status != 0) {
    each_number([&](int32_t which) { op.write_number(row, action, which); });
  }
  if (!action.copies || op.sources[row] == op.destinations[row]) return;
  for (int32_t leaf = 0; leaf < Leaves::kLarge; ++leaf) {
    copy_leaf(op.leaves.slot(leaf, op.destinations[row]), op.leaves.slot(leaf, op.sources[row]),
              op.leaves.slot_bytes[leaf]);
  }
}

__global__ void __launch_bounds__(kThreads) run(const __grid_constant__ Insert op) {
  const int32_t row = blockIdx.x;
  if (!op.copies(row)) return;
  each_number([&](int32_t which) { op.copy_number(row, which); });
  for (int32_t leaf = 0; leaf < Leaves::kLarge; ++leaf) {
    copy_leaf(op.leaves.slot(leaf, op.slots[row]), op.source.slot(leaf, row),
              op.leaves.slot_bytes[leaf]);
  }
}

template <class Op>
cudaError_t launch_slots(const Op& op, cudaStream_t stream) {
  if (op.count == 0) return cudaSuccess;
  int64_t bytes = 0;
  for (int64_t leaf_bytes : op.leaves.slot_bytes) bytes += leaf_bytes;
  const int64_t blocks = (bytes + kBytesPerBlock - 1) / kBytesPerBlock;
  const dim3 grid(op.count, blocks < kMaxBlocksPerSlot ? blocks : kMaxBlocksPerSlot);
  run<<<grid, kThreads, 0, stream>>>(op);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(const Reset& op, cudaStream_t stream) { return launch_slots(op, stream); }
cudaError_t launch(const Insert& op, cudaStream_t stream) { return launch_slots(op, stream); }
cudaError_t launch(const CopySlots& op, cudaStream_t stream) { return launch_slots(op, stream); }

}  // namespace jax_sa
