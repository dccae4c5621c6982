// All threads of a kernel, in step: phases of independent elements, sorts and scans.
//
// Parallel builds are written once in terms of them. Every phase ends where all threads meet, and
// what was written in it is then visible to all; the elements of a phase may run in any order. The
// kernel must be launched cooperatively, or threads would wait for some that never start.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "prefill.h"

namespace jax_sa {

constexpr int32_t kGridThreads = 1024;  // of a block
constexpr int32_t kGridWarps = kGridThreads / 32;

struct CudaGrid {
  static constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
  static constexpr int32_t kParts = kGridThreads / kDigits;

  struct Scratch {
    int32_t digits[kGridWarps][kDigits];  // of a warp: its elements by digit, or where they go
    int32_t before[kParts][kDigits];
    int32_t total[kParts][kDigits];
    int32_t warps[kGridWarps];
  };

  Scratch& scratch;       // in shared memory
  int32_t* block_digits;  // [blocks, kDigits]
  int32_t* block_values;  // [blocks]

  __device__ void sync() const { cooperative_groups::this_grid().sync(); }

  template <class Body>
  __device__ __forceinline__ void each(int32_t count, Body body) const {
    const uint32_t threads = gridDim.x * kGridThreads;
    for (uint32_t i = blockIdx.x * kGridThreads + threadIdx.x; i < static_cast<uint32_t>(count);
         i += threads) {
      body(static_cast<int32_t>(i));
    }
    sync();
  }

  // Whether the predicate holds for any element. Every block asks for itself: it should be few.
  template <class Predicate>
  __device__ __forceinline__ bool any(int32_t count, Predicate predicate) const {
    bool found = false;
    for (int32_t i = threadIdx.x; i < count; i += kGridThreads) found |= predicate(i);
    return __syncthreads_or(found) != 0;
  }

  // Calls move(i, place) for every element, the place being its own in a stable sort by digits in
  // 0..kDigits-1. A warp has elements side by side, and goes through them in order.
  template <class Digit, class Move>
  __device__ __forceinline__ void sort_by_digit(int32_t count, Digit digit, Move move) const {
    const int32_t lane = threadIdx.x % 32;
    const int32_t warp = threadIdx.x / 32;
    int32_t* const own = scratch.digits[warp];
    const int64_t warps = gridDim.x * kGridWarps;
    const int64_t share = (count + warps * 32 - 1) / (warps * 32) * 32;
    const int64_t first = (blockIdx.x * kGridWarps + warp) * share;
    const int64_t end = first + share < count ? first + share : count;

    for (int32_t i = lane; i < kDigits; i += 32) own[i] = 0;
    __syncwarp();
    for (int64_t i = first + lane; i < end; i += 32) {
      atomicAdd(&own[digit(static_cast<int32_t>(i))], 1);
    }
    __syncthreads();
    if (threadIdx.x < kDigits) {
      int32_t sum = 0;
      for (int32_t w = 0; w < kGridWarps; ++w) {
        const int32_t elements = scratch.digits[w][threadIdx.x];
        scratch.digits[w][threadIdx.x] = sum;
        sum += elements;
      }
      block_digits[blockIdx.x * kDigits + threadIdx.x] = sum;
    }
    sync();
    add_places_of_block();
    for (int64_t i = first + lane; i - lane < end; i += 32) {
      const bool is_element = i < end;
      const int32_t own_digit = is_element ? digit(static_cast<int32_t>(i)) : kDigits;
      const uint32_t same = __match_any_sync(kAllLanes, own_digit);
      const int32_t earlier = __popc(same & ((1u << lane) - 1));
      const int32_t place = is_element ? own[own_digit] + earlier : 0;
      __syncwarp();
      if (is_element && earlier == 0) own[own_digit] += __popc(same);
      __syncwarp();
      if (is_element) move(static_cast<int32_t>(i), place);
    }
    sync();
  }

  // Calls store(i, x) for every element, x being the values up to its own combined. `combine` is
  // associative and commutative, and 0 changes nothing. `values` has room for a value of each
  // element, and may be what `store` writes to.
  template <class Combine, class Value, class Store>
  __device__ __forceinline__ void scan(int32_t count, int32_t* values, Combine combine, Value value,
                                       Store store) const {
    const int64_t round = int64_t{gridDim.x} * kGridThreads;
    const int64_t share = (count + round - 1) / round * kGridThreads;
    const int64_t first = blockIdx.x * share;
    const int64_t end = first + share < count ? first + share : count;

    int32_t own = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += kGridThreads) {
      values[i] = value(static_cast<int32_t>(i));
      own = combine(own, values[i]);
    }
    const int32_t block = scan_block(own, combine).total;
    if (threadIdx.x == 0) block_values[blockIdx.x] = block;
    sync();
    own = 0;
    for (int32_t i = threadIdx.x; i < blockIdx.x; i += kGridThreads) {
      own = combine(own, block_values[i]);
    }
    int32_t so_far = scan_block(own, combine).total;
    for (int64_t begin = first; begin < end; begin += kGridThreads) {
      const int64_t i = begin + threadIdx.x;
      const Scanned scanned = scan_block(i < end ? values[i] : 0, combine);
      if (i < end) store(static_cast<int32_t>(i), combine(so_far, scanned.value));
      so_far = combine(so_far, scanned.total);
    }
    sync();
  }

  __device__ void raise(int32_t& place, int32_t value) const { atomicMax(&place, value); }
  __device__ void lower(int32_t& place, int32_t value) const { atomicMin(&place, value); }
  // What was there before.
  __device__ int32_t compare_exchange(int32_t& place, int32_t expected, int32_t value) const {
    return atomicCAS(&place, expected, value);
  }

 private:
  struct Scanned {
    int32_t value;  // of the thread and those before it
    int32_t total;  // of all threads of the block
  };

  template <class Combine>
  __device__ __forceinline__ Scanned scan_block(int32_t value, Combine combine) const {
    const int32_t lane = threadIdx.x % 32;
    const int32_t warp = threadIdx.x / 32;
    value = scan_warp(value, lane, combine);
    __syncthreads();  // the last scan's values have been read
    if (lane == 31) scratch.warps[warp] = value;
    __syncthreads();
    const int32_t warps = scan_warp(scratch.warps[lane], lane, combine);
    const int32_t before = __shfl_sync(kAllLanes, warps, warp == 0 ? 0 : warp - 1);
    return {warp == 0 ? value : combine(before, value), __shfl_sync(kAllLanes, warps, 31)};
  }
  static_assert(kGridWarps == 32, "a warp scans the values of all warps");

  template <class Combine>
  __device__ __forceinline__ static int32_t scan_warp(int32_t value, int32_t lane,
                                                      Combine combine) {
    for (int32_t distance = 1; distance < 32; distance *= 2) {
      const int32_t below = __shfl_up_sync(kAllLanes, value, distance);
      if (lane >= distance) value = combine(below, value);
    }
    return value;
  }

  // Makes the places of warps within their block those within the whole: behind all smaller
  // digits, and behind the same digit in earlier blocks.
  __device__ __forceinline__ void add_places_of_block() const {
    const int32_t digit = threadIdx.x % kDigits;
    const int32_t part = threadIdx.x / kDigits;
    int32_t before = 0;
    int32_t total = 0;
    for (int32_t block = part; block < gridDim.x; block += kParts) {
      const int32_t elements = block_digits[block * kDigits + digit];
      total += elements;
      if (block < blockIdx.x) before += elements;
    }
    scratch.before[part][digit] = before;
    scratch.total[part][digit] = total;
    __syncthreads();
    before = total = 0;
    if (part == 0) {
      for (int32_t i = 0; i < kParts; ++i) {
        before += scratch.before[i][digit];
        total += scratch.total[i][digit];
      }
    }
    const auto sum = [](int32_t a, int32_t b) { return a + b; };
    const int32_t smaller = scan_block(total, sum).value - total;
    if (part == 0) scratch.before[0][digit] = before + smaller;
    __syncthreads();
    for (int32_t warp = part; warp < kGridWarps; warp += kParts) {
      scratch.digits[warp][digit] += scratch.before[0][digit];
    }
    __syncthreads();
  }
};

}  // namespace jax_sa
