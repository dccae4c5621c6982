// Notes followers: a block for each place, whose threads share the vocabulary.
//
// Each thread keeps the two likeliest of its tokens, and each warp the likeliest of its threads'.
// The likeliest of all is noted, and the thread that had it goes on with its second. After that,
// which is rare, its warp looks for the next one.
#include "followers.h"
#include "kernels.h"

namespace jax_sa {
namespace {

constexpr int kLanes = 32, kThreads = 1024, kWarps = kThreads / kLanes;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ uint64_t largest_in_warp(uint64_t value) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, value, distance);
    if (other > value) value = other;
  }
  return value;
}

// The likeliest of the tokens of the thread `owner` that is less likely than `found`.
__device__ uint64_t largest_below(uint64_t found, const float* logits, int32_t vocabulary,
                                  int owner, int lane) {
  uint64_t left = 0;
  for (int32_t token = owner + lane * kThreads; token < vocabulary; token += kLanes * kThreads) {
    const uint64_t next = rated(logits[token], token);
    if (next < found && next > left) left = next;
  }
  return largest_in_warp(left);
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
  float first = -INFINITY, second = -INFINITY;
  int32_t first_token = 0, second_token = 0;
#pragma unroll 16
  for (int32_t token = thread; token < vocabulary; token += kThreads) {
    const float logit = logits[token];
    if (logit > first) {
      second = first, second_token = first_token;
      first = logit, first_token = token;
    } else if (logit > second) {
      second = logit, second_token = token;
    }
  }
  uint64_t own = rated(first, first_token);
  uint64_t spare = rated(second, second_token);  // 0: there may be another, or none
  const uint64_t of_warp = largest_in_warp(own);
  if (lane == 0) of_warps[warp] = of_warp;
  for (int32_t rank = 0; rank < kNumFollowers; ++rank) {
    __syncthreads();
    const uint64_t found = largest_in_warp(of_warps[lane]);
    const int32_t token = token_of(found);
    if (thread == 0) entry[rank] = token;
    __syncthreads();
    const int owner = found == 0 ? 0 : token % kThreads;
    if (warp == owner / kLanes) {
      uint64_t next = __shfl_sync(kAllLanes, spare, owner % kLanes);
      if (next == 0) next = largest_below(found, logits, vocabulary, owner, lane);
      if (thread == owner) own = next, spare = 0;
      const uint64_t again = largest_in_warp(own);
      if (lane == 0) of_warps[warp] = again;
    }
  }
}

}  // namespace

cudaError_t launch(const NoteFollowers& op, cudaStream_t stream) {
  if (op.places == 0 || op.followers.vocabulary == 0) return cudaSuccess;
  note<<<op.places, kThreads, 0, stream>>>(op);
  return cudaGetLastError();
}

}  // namespace jax_sa
