// Notes followers: a block for each place, whose threads share the vocabulary.
//
// Each thread keeps the likeliest of its tokens, and each warp the likeliest of its threads'. The
// likeliest of all is noted, and its warp looks for the next one of the thread that had it.
#include "followers.h"
#include "kernels.h"

namespace jax_sa {
namespace {

constexpr int kLanes = 32, kThreads = 1024, kWarps = kThreads / kLanes;

__device__ uint64_t largest_in_warp(uint64_t value) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const uint64_t other = __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    if (other > value) value = other;
  }
  return value;
}

__global__ void __launch_bounds__(kThreads) note(const __grid_constant__ NoteFollowers op) {
  __shared__ uint64_t of_warps[kWarps];
  const auto place = static_cast<int32_t>(blockIdx.x);
  const int32_t vocabulary = op.followers.vocabulary;
  const int thread = threadIdx.x, lane = thread % kLanes, warp = thread / kLanes;
  int32_t* const entry = op.entry(place);
  bool is_skipped = entry == nullptr;
  for (int32_t later = place + 1 + thread; later < op.places; later += kThreads) {
    is_skipped |= op.is_same(place, later);
  }
  if (__syncthreads_or(is_skipped)) return;

  const float* const logits = op.logits_of(place);
  uint64_t own = 0;
#pragma unroll 8
  for (int32_t token = thread; token < vocabulary; token += kThreads) {
    const uint64_t next = rated(logits[token], token);
    if (next > own) own = next;
  }
  const uint64_t of_warp = largest_in_warp(own);
  if (lane == 0) of_warps[warp] = of_warp;
  for (int32_t rank = 0; rank < kNumFollowers; ++rank) {
    __syncthreads();
    const uint64_t found = largest_in_warp(of_warps[lane]);
    const int32_t token = token_of(found);
    if (thread == 0) entry[rank] = token;
    __syncthreads();
    const int owner = found == 0 ? 0 : token % kThreads;
    if (warp != owner / kLanes) continue;
    uint64_t left = 0;
    for (int32_t other = owner + lane * kThreads; other < vocabulary; other += kLanes * kThreads) {
      const uint64_t next = rated(logits[other], other);
      if (next < found && next > left) left = next;
    }
    left = largest_in_warp(left);
    if (thread == owner) own = left;
    const uint64_t again = largest_in_warp(own);
    if (lane == 0) of_warps[warp] = again;
  }
}

}  // namespace

cudaError_t launch(const NoteFollowers& op, cudaStream_t stream) {
  if (op.places == 0 || op.followers.vocabulary == 0) return cudaSuccess;
  note<<<op.places, kThreads, 0, stream>>>(op);
  return cudaGetLastError();
}

}  // namespace jax_sa
