// Inserts into a pool: a warp for each group finds the places of the rows, then threads share the
// rows' tokens.
#include "cuda_warp.h"
#include "kernels.h"

namespace jax_sa {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 1024;  // enough to fill a GPU, few enough to find nothing to do soon

template <class Op>
__global__ void __launch_bounds__(kWindow) place_rows(const __grid_constant__ Op op) {
  __shared__ Suffix scratch[kWindow];
  op.place(CudaWarp{static_cast<int32_t>(threadIdx.x), scratch}, static_cast<int32_t>(blockIdx.x));
}

template <class Op>
__global__ void __launch_bounds__(kThreads) rebase_entries(const __grid_constant__ Op op) {
  const int32_t shift = op.shifts[blockIdx.x];
  if (shift == 0) return;
  int32_t* const entries = op.pool.table + op.pool.table_size() * blockIdx.x;
  for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i < op.pool.table_size();
       i += int64_t{gridDim.y} * kThreads) {
    Op::rebase(entries[i], shift);
  }
}

template <class Op>
__global__ void __launch_bounds__(kThreads) write_tokens(const __grid_constant__ Op op) {
  const auto row = static_cast<int32_t>(blockIdx.x);
  if (!op.writes(row)) return;
  const PoolText text = op.texts(row);
  for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i <= text.length;
       i += int64_t{gridDim.y} * kThreads) {
    op.write(row, text, static_cast<int32_t>(i));
  }
}

// Blocks for each of `count` things of `size` elements.
unsigned int blocks_for(int64_t count, int64_t size) {
  const int64_t wanted = (size + kThreads - 1) / kThreads;
  const int64_t most = kBlocks > count ? kBlocks / count : 1;
  return static_cast<unsigned int>(wanted < most ? wanted : most);
}

template <class Op>
cudaError_t launch_insert(const Op& op, cudaStream_t stream) {
  if (op.count == 0 || op.pool.num_groups == 0) return cudaSuccess;
  const int32_t num_groups = op.pool.num_groups;
  place_rows<<<num_groups, kWindow, 0, stream>>>(op);
  const dim3 tables(num_groups, blocks_for(num_groups, op.pool.table_size()));
  rebase_entries<<<tables, kThreads, 0, stream>>>(op);
  const dim3 rows(op.count, blocks_for(op.count, int64_t{op.width} + 1));
  write_tokens<<<rows, kThreads, 0, stream>>>(op);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(const PoolInsert<BlockTexts>& op, cudaStream_t stream) {
  return launch_insert(op, stream);
}
cudaError_t launch(const PoolInsert<SlotTexts>& op, cudaStream_t stream) {
  return launch_insert(op, stream);
}

}  // namespace jax_sa
