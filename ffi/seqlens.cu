// expand_seqlens in one launch. Every block counts the query tokens of the rows by itself, which
// takes less time than waiting for another block would, and writes one tile of the result.
//
// A row is found without a search: as its count is known, its thread marks the first place of the
// row in every group of 32 places, and the lane of a place takes the last mark before it.
#include <algorithm>

#include "kernels.h"
#include "seqlens.h"

namespace jax_sa {
namespace {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr int32_t kNoRow = -1;

struct alignas(8) Mark {
  int32_t row;
  uint32_t shift;
};

// The counts of lanes 0..lane together, over groups of `width` lanes.
template <uint32_t width>
__device__ uint32_t inclusive_scan(uint32_t count, uint32_t lane) {
#pragma unroll
  for (uint32_t distance = 1; distance < width; distance *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, count, distance);
    if (lane >= distance) count = add_counts(count, below);
  }
  return count;
}

// The counts of all threads before this one; `total` becomes that of the whole block. Calls must
// alternate between two arrays `warp_counts`, so that one barrier a call is enough.
template <uint32_t num_warps>
__device__ uint32_t exclusive_scan(uint32_t count, uint32_t (&warp_counts)[num_warps],
                                   uint32_t& total) {
  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t warp = threadIdx.x / kLanes;
  const uint32_t scanned = inclusive_scan<kLanes>(count, lane);
  if (lane == kLanes - 1) warp_counts[warp] = scanned;
  const uint32_t before_lane = __shfl_up_sync(kAllLanes, scanned, 1);
  __syncthreads();
  const uint32_t warps = inclusive_scan<num_warps>(lane < num_warps ? warp_counts[lane] : 0, lane);
  total = __shfl_sync(kAllLanes, warps, num_warps - 1);
  const uint32_t before_warp = __shfl_sync(kAllLanes, warps, (warp - 1) % kLanes);
  return add_counts(warp > 0 ? before_warp : 0, lane > 0 ? before_lane : 0);
}

// The lengths of rows that follow each other; rows that there are not have none.
template <uint32_t count>
struct alignas(4 * count) Lens {
  int32_t of[count];

  __device__ static Lens load(const int32_t* lens, uint32_t row, uint32_t num_rows) {
    Lens loaded;
#pragma unroll
    for (uint32_t i = 0; i < count; ++i) loaded.of[i] = row + i < num_rows ? lens[row + i] : 0;
    return loaded;
  }

  // In one load where it can be: less to wait for, but more instructions.
  __device__ static Lens load_at_once(const int32_t* lens, uint32_t row, uint32_t num_rows) {
    const bool aligned = reinterpret_cast<uintptr_t>(lens) % sizeof(Lens) == 0;
    if (!aligned || row + count > num_rows) return load(lens, row, num_rows);
    return *reinterpret_cast<const Lens*>(lens + row);
  }
};

// The offsets of a thread's rows, which begin with `row` and at place `begin`.
template <uint32_t count>
__device__ void write_offsets(const ExpandSeqlens& op, uint32_t row, uint32_t begin,
                              const int32_t (&q_lens)[count]) {
#pragma unroll
  for (uint32_t i = 0; i < count; ++i) {
    if (row + i < op.num_rows) op.offsets[row + i] = begin;
    begin = add_counts(begin, count_queries(q_lens[i]));
  }
}

// The places [first, last), of which those from `counted` on are nobody's.
template <uint32_t num_threads, bool all_results>
__device__ void write_tile(const ExpandSeqlens& op, const Mark* marks, uint32_t first,
                           uint32_t last, uint32_t counted) {
  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t up_to_lane = kAllLanes >> (kLanes - 1 - lane);
#pragma unroll 1
  for (uint32_t place = first + threadIdx.x; place - lane < last; place += num_threads) {
    const Mark* group = marks + (place - lane - first);
    const uint32_t marked = __ballot_sync(kAllLanes, group[lane].row != kNoRow) & up_to_lane;
    if (place >= last) continue;
    Mark mark{static_cast<int32_t>(op.num_rows), 0};
    int32_t value = op.fill;
    if (place < counted) {
      mark = group[kLanes - 1 - __clz(marked)];
      value = value_at(place, mark.shift);
    }
    op.values[place] = value;
    if (all_results && op.row_ids != nullptr) op.row_ids[place] = mark.row;
  }
}

// A kernel this short takes as long as it has instructions, so it has none for what is not asked
// for: for more rows than `one_chunk`, for offsets and row ids. For the same reason no loop is
// unrolled that mostly has one iteration.
template <uint32_t num_threads, uint32_t rows_per_thread, bool one_chunk, bool all_results>
__global__ void __launch_bounds__(num_threads)
    expand(const __grid_constant__ ExpandSeqlens op, uint32_t tile) {
  using RowLens = Lens<rows_per_thread>;
  extern __shared__ Mark marks[];  // [tile]
  __shared__ uint32_t warp_counts[2][num_threads / kLanes];
  const uint32_t first = blockIdx.x * tile;
  const uint32_t last = min(first + tile, op.total);
  const bool counts_all = blockIdx.x == 0;
  uint32_t row = threadIdx.x * rows_per_thread;
  constexpr auto load = one_chunk ? RowLens::load : RowLens::load_at_once;
  RowLens next_q_lens = load(op.q_lens, row, op.num_rows);
  RowLens next_kv_lens = load(op.kv_lens, row, op.num_rows);
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < tile; i += num_threads) marks[i].row = kNoRow;

  constexpr uint32_t kChunk = num_threads * rows_per_thread;
  uint32_t counted = 0;  // query tokens of the rows before `chunk`
  uint32_t buffer = 0;
  for (uint32_t chunk = 0; one_chunk || (chunk < op.num_rows && (counts_all || counted < last));
       chunk += kChunk) {
    const RowLens q_lens = next_q_lens;
    const RowLens kv_lens = next_kv_lens;
    if (!one_chunk && chunk + kChunk < op.num_rows) {
      next_q_lens = load(op.q_lens, row + kChunk, op.num_rows);
      next_kv_lens = load(op.kv_lens, row + kChunk, op.num_rows);
    }
    uint32_t count = 0;
#pragma unroll
    for (uint32_t i = 0; i < rows_per_thread; ++i) {
      count = add_counts(count, count_queries(q_lens.of[i]));
    }
    uint32_t chunk_count;
    const uint32_t before = exclusive_scan(count, warp_counts[buffer], chunk_count);
    uint32_t begin = add_counts(counted, before);
    if (all_results && counts_all && op.offsets != nullptr) {
      write_offsets(op, row, begin, q_lens.of);
    }
    // Of many rows, most are not in the tile.
    if (one_chunk || (begin < last && add_counts(begin, count) > first)) {
#pragma unroll
      for (uint32_t i = 0; i < rows_per_thread; ++i) {
        const uint32_t queries = count_queries(q_lens.of[i]);
        const uint32_t end = add_counts(begin, queries);
        const Mark mark{static_cast<int32_t>(row + i), row_shift(kv_lens.of[i], queries, begin)};
#pragma unroll 1
        for (uint32_t place = max(begin, first); place < min(end, last);
             place = (place | (kLanes - 1)) + 1) {
          marks[place - first] = mark;
        }
        begin = end;
      }
    }
    counted = add_counts(counted, chunk_count);
    if (one_chunk) break;
    buffer ^= 1;
    row += kChunk;
  }
  if (counts_all && threadIdx.x == 0) {
    *op.required = counted;
    if (all_results && op.offsets != nullptr) op.offsets[op.num_rows] = counted;
  }
  __syncthreads();
  write_tile<num_threads, all_results>(op, marks, first, last, counted);
}

constexpr uint32_t kMaxBlocks = 512;
constexpr uint32_t kMaxTile = 4096;
constexpr uint32_t kFewRowsTile = 256;  // of one chunk of rows, which takes little to count anew

// The places a block writes, a multiple of `step`. Each block counts the rows anew, so the more
// rows, the fewer blocks.
uint32_t tile_size(const ExpandSeqlens& op, uint32_t step) {
  const uint32_t least = std::max(op.num_rows / 32, op.total / kMaxBlocks);
  return std::min((least / step + 1) * step, kMaxTile);
}

template <uint32_t num_threads, uint32_t rows_per_thread, bool one_chunk, bool all_results>
cudaError_t launch_with(const ExpandSeqlens& op, cudaStream_t stream) {
  const uint32_t tile = tile_size(op, one_chunk ? kFewRowsTile : num_threads);
  const uint32_t blocks = op.total == 0 ? 1 : (op.total - 1) / tile + 1;
  expand<num_threads, rows_per_thread, one_chunk, all_results>
      <<<blocks, num_threads, tile * sizeof(Mark), stream>>>(op, tile);
  return cudaGetLastError();
}

// As few threads and rows a thread as count all rows at once, because both take time.
template <bool all_results>
cudaError_t launch_for(const ExpandSeqlens& op, cudaStream_t stream) {
  if (op.num_rows <= 256) return launch_with<256, 1, true, all_results>(op, stream);
  if (op.num_rows <= 512) return launch_with<256, 2, true, all_results>(op, stream);
  if (op.num_rows <= 1024) return launch_with<512, 2, true, all_results>(op, stream);
  return launch_with<1024, 4, false, all_results>(op, stream);
}

}  // namespace

cudaError_t launch(const ExpandSeqlens& op, cudaStream_t stream) {
  const bool all_results = op.offsets != nullptr || op.row_ids != nullptr;
  return all_results ? launch_for<true>(op, stream) : launch_for<false>(op, stream);
}

}  // namespace jax_sa
