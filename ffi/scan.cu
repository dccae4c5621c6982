// The scan: a cluster of blocks a row, where the GPU has clusters, else one block.
#include <cooperative_groups.h>

#include "cuda_warp.h"
#include "kernels.h"
#include "scan.h"

namespace jax_sa {
namespace {

constexpr int32_t kThreads = 512;
constexpr int32_t kWarps = kThreads / kWindow;
constexpr int32_t kMaxBlocks = 8;  // a row's, as many as every GPU with clusters allows
constexpr int32_t kLoads = 8;      // of each array, that a thread has under way at once

// A text that ends as a run of one token, or with a short period, matches far at many distances,
// and to compare them all would take quadratic time. Where more than kManyFar distances match for
// kFar tokens, a single thread finds all matches.
constexpr int32_t kFar = 512;
constexpr int32_t kManyFar = 64;

__device__ uint64_t warp_max(uint64_t value) {
  const auto high = static_cast<uint32_t>(value >> 32);
  const uint32_t highest = __reduce_max_sync(CudaWarp::kAllLanes, high);
  const uint32_t low = high == highest ? static_cast<uint32_t>(value) : 0;
  return uint64_t{highest} << 32 | __reduce_max_sync(CudaWarp::kAllLanes, low);
}

// The blocks of a row. `scan_host.h` documents the face.
struct CudaTeam {
  struct Shared {
    uint64_t by_warp[kWarps];
    uint64_t by_block[kMaxBlocks];  // the leading block's is the team's
    int32_t num_far;                // the leading block's is the team's
    Suffix scratch[kWindow];        // of the leading warp
  };

  Shared& shared;
  int32_t block;
  int32_t num_blocks;

  JAX_SA_FN CudaWarp warp() const {
    return {static_cast<int32_t>(threadIdx.x % kWindow), shared.scratch};
  }

  template <class Body>
  JAX_SA_FN void lead(Body body) const {
    if (block == 0 && threadIdx.x < kWindow) body(warp());
  }

  JAX_SA_FN bool match_whole(const ScanSlot& slot, const Appended& appended) const {
    if (appended.taken <= kFar) return false;
    int32_t num_far = 0;
    tiles(appended.end() - kFar, [&](const Tile& tile) {
#pragma unroll 1
      for (int32_t j = 0; j < Tile::kSize; ++j) {
        const int32_t distance = tile.at(j) + 1;
        if (distance <= appended.end() - kFar) {
          num_far += appended.matching(distance, 0, kFar) == kFar;
        }
      }
    });
    const bool is_slow = team_sum(num_far) > kManyFar;
    if (is_slow && block == 0 && threadIdx.x == 0) match_whole_text(slot, appended.end());
    sync();
    return is_slow;
  }

  template <class Body>
  JAX_SA_FN void each(int32_t count, Body body) const {
    const int32_t stride = num_blocks * kThreads;
    for (int32_t i = block * kThreads + static_cast<int32_t>(threadIdx.x); i < count; i += stride) {
      body(i);
    }
  }

  // A tile is a warp's, so that few warps have one at an end of the text.
  struct Tile {
    static constexpr int32_t kSize = kLoads;
    int32_t begin;

    JAX_SA_FN int32_t end() const { return begin + kSize * kWindow; }
    JAX_SA_FN int32_t at(int32_t j) const {
      return begin + static_cast<int32_t>(threadIdx.x % kWindow) + j * kWindow;
    }
  };

  template <class Body>
  JAX_SA_FN void tiles(int32_t count, Body body) const {
    constexpr int32_t kTile = Tile::kSize * kWindow;
    const int32_t warp = block * kWarps + static_cast<int32_t>(threadIdx.x) / kWindow;
    for (int32_t begin = warp * kTile; begin < count; begin += num_blocks * kWarps * kTile) {
      body(Tile{begin});
    }
  }

  // By the time it returns to the leading warp, all threads have read what they needed of the slot,
  // and the leading warp sees what they wrote.
  JAX_SA_FN uint64_t largest(uint64_t value) const {
    const uint64_t of_warp = warp_max(value);
    if (threadIdx.x % kWindow == 0) shared.by_warp[threadIdx.x / kWindow] = of_warp;
    __syncthreads();
    if (threadIdx.x < kWindow) {
      value = warp_max(threadIdx.x < kWarps ? shared.by_warp[threadIdx.x] : 0);
    }
#if __CUDA_ARCH__ >= 900
    if (num_blocks > 1) {
      const auto cluster = cooperative_groups::this_cluster();
      cluster.barrier_wait();  // until all blocks have begun, and so have their shared memory
      if (threadIdx.x == 0) *cluster.map_shared_rank(&shared.by_block[block], 0) = value;
      cluster.barrier_arrive();
      if (block == 0) {
        cluster.barrier_wait();
        if (threadIdx.x < kWindow) {
          value = warp_max(threadIdx.x < num_blocks ? shared.by_block[threadIdx.x] : 0);
        }
      }
    }
#endif
    return value;
  }

 private:
  // All threads of the row wait for each other, and see what the others wrote.
  JAX_SA_FN void sync() const {
#if __CUDA_ARCH__ >= 900
    if (num_blocks > 1) {
      const auto cluster = cooperative_groups::this_cluster();
      cluster.barrier_wait();    // that which was entered before,
      cluster.sync();            // this one,
      cluster.barrier_arrive();  // and the next is entered, as the kernel's begin does
      return;
    }
#endif
    __syncthreads();
  }

  // The sum of all threads' values, to all threads; once a kernel.
  JAX_SA_FN int32_t team_sum(int32_t value) const {
    value = __reduce_add_sync(CudaWarp::kAllLanes, value);
    int32_t* sum = &shared.num_far;
#if __CUDA_ARCH__ >= 900
    if (num_blocks > 1) sum = cooperative_groups::this_cluster().map_shared_rank(sum, 0);
#endif
    sync();  // the sum is 0
    if (threadIdx.x % kWindow == 0) atomicAdd(sum, value);
    sync();
    return *sum;
  }
};

__global__ void __launch_bounds__(kThreads, 2)
    run_scan(const __grid_constant__ Scan op, int32_t num_blocks) {
  __shared__ CudaTeam::Shared shared;
  if (threadIdx.x == 0) shared.num_far = 0;
#if __CUDA_ARCH__ >= 900
  if (num_blocks > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
  const auto block = static_cast<int32_t>(blockIdx.x);
  op(CudaTeam{shared, block % num_blocks, num_blocks}, block / num_blocks);
}

// Blocks of a row: enough to keep the GPU busy, not more than have work, a power of two.
cudaError_t choose_blocks(const Scan& op, int32_t& blocks) {
  int device, clusters, processors;
  blocks = 1;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device)) {
    return error;
  }
  if (cudaError_t error =
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  if (clusters == 0) return cudaSuccess;
  while (blocks < kMaxBlocks && blocks * kThreads * kLoads < op.state.max_seq_len &&
         int64_t{blocks} * op.rows.count < processors) {
    blocks *= 2;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch(const Scan& op, cudaStream_t stream) {
  if (op.rows.count == 0) return cudaSuccess;
  int32_t blocks;
  if (cudaError_t error = choose_blocks(op, blocks)) return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(op.rows.count * blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = blocks > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, run_scan, op, blocks);
}

}  // namespace jax_sa
