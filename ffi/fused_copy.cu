// fused_copy in one launch: every tensor has some of the blocks, in proportion to its bytes.
#include <algorithm>
#include <iterator>

#include "fused_copy.h"
#include "kernels.h"

namespace jax_sa {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kUnroll = 8;  // words that a thread of a large copy has in flight
constexpr int32_t kTileWords = kThreads * kUnroll;

template <int32_t capacity>
struct Table {
  Tensor tensors[capacity];
  int32_t first_block[capacity + 1];  // the number of blocks from the last tensor on
};

// This block among those that share a tensor.
struct Share {
  int32_t block;
  int32_t num_blocks;

  __device__ uint32_t thread() const { return block * kThreads + threadIdx.x; }
  __device__ uint32_t num_threads() const { return num_blocks * kThreads; }
};

// Copies less than 16 bytes, from and to addresses as aligned as the largest power of two in them.
// Every load comes before the first store, so that they overlap.
__device__ void copy_less_than_16(char* to, const char* from, int64_t bytes) {
  int2 by_8;
  int32_t by_4;
  int16_t by_2;
  int8_t by_1;
  if (bytes & 8) by_8 = *reinterpret_cast<const int2*>(from);
  if (bytes & 4) by_4 = *reinterpret_cast<const int32_t*>(from + (bytes & 8));
  if (bytes & 2) by_2 = *reinterpret_cast<const int16_t*>(from + (bytes & 12));
  if (bytes & 1) by_1 = *reinterpret_cast<const int8_t*>(from + (bytes & 14));
  if (bytes & 8) *reinterpret_cast<int2*>(to) = by_8;
  if (bytes & 4) *reinterpret_cast<int32_t*>(to + (bytes & 8)) = by_4;
  if (bytes & 2) *reinterpret_cast<int16_t*>(to + (bytes & 12)) = by_2;
  if (bytes & 1) *reinterpret_cast<int8_t*>(to + (bytes & 14)) = by_1;
}

// Writes a tensor in words to which its rows are aligned.
template <class Word>
struct Writer {
  static constexpr int64_t kBytes = sizeof(Word);

  const Tensor& tensor;
  const Part part;

  // The words of a row that are copied whole, and all that are written to, the last of them
  // perhaps in part.
  __device__ int64_t copied_words() const { return part.row_bytes / kBytes; }
  __device__ int64_t words() const {
    return ((tensor.fills ? tensor.destination_stride : part.row_bytes) + kBytes - 1) / kBytes;
  }
  __device__ int64_t rows() const { return tensor.fills ? tensor.destination_rows : part.rows; }

  __device__ void write(Share share) const {
    if (rows() * words() > share.num_threads()) {
      copy_tiles(share);
      write_each(share, 0, part.rows, copied_words(), words() - copied_words());
      write_each(share, part.rows, rows() - part.rows, 0, words());
    } else {
      write_each(share, 0, rows(), 0, words());
    }
  }

  __device__ void write_each(Share share, int64_t first_row, int64_t num_rows, int64_t first_column,
                             int64_t num_columns) const {
#pragma unroll 1
    for (int64_t i = share.thread(); i < num_rows * num_columns; i += share.num_threads()) {
      const int64_t row = num_rows > 1 ? static_cast<uint64_t>(i) / num_columns : 0;
      write_word(first_row + row, first_column + i - row * num_columns);
    }
  }

  // Copies a word, fills it, or does first the one and then the other.
  __device__ void write_word(int64_t row, int64_t column) const {
    const int64_t done = column * kBytes;
    char* const to = tensor.destination + row * tensor.destination_stride + done;
    const char* const from = tensor.source + row * tensor.source_stride + done;
    const int64_t copied = row < part.rows ? part.row_bytes - done : 0;
    if (copied >= kBytes) {
      *reinterpret_cast<Word*>(to) = *reinterpret_cast<const Word*>(from);
      return;
    }
    if (copied > 0) copy_less_than_16(to, from, copied);
    if (!tensor.fills) return;
    const int64_t end = min(kBytes, tensor.destination_stride - done);
    // Another tensor may have narrowed the words to less than this one's items.
    const char* const fill = tensor.fill + done % static_cast<int64_t>(sizeof(tensor.fill));
    if (copied <= 0 && end == kBytes) {
      *reinterpret_cast<Word*>(to) = *reinterpret_cast<const Word*>(fill);
      return;
    }
#pragma unroll 1
    for (int64_t i = max(copied, int64_t{0}); i < end; ++i) to[i] = fill[i];
  }

  // Copies the whole words. A block's threads stand side by side over one row or, where rows have
  // fewer words than there are threads, over several rows; from there they take kUnroll steps
  // along the row, or down the rows. The sides of that tile are powers of two, so that no thread
  // has to divide.
  __device__ void copy_tiles(Share share) const {
    const int64_t columns = copied_words();
    if (columns == 0) return;
    const bool along = columns >= kThreads;
    const int32_t bits = 32 - __clz((along ? kThreads : static_cast<int32_t>(columns)) - 1);
    const int64_t row_step = along ? 0 : kThreads >> bits;
    const int64_t column_step = along ? kThreads : 0;
    const int64_t tile_rows = along ? 1 : row_step * kUnroll;
    const int64_t row_tiles = (part.rows + tile_rows - 1) / tile_rows;
    const int64_t column_tiles = along ? (columns + kTileWords - 1) / kTileWords : 1;
    const int64_t to_step = row_step * tensor.destination_stride + column_step * kBytes;
    const int64_t from_step = row_step * tensor.source_stride + column_step * kBytes;
#pragma unroll 1
    for (int64_t tile = share.block; tile < row_tiles * column_tiles; tile += share.num_blocks) {
      const int64_t row_tile = row_tiles > 1 ? static_cast<uint64_t>(tile) / column_tiles : 0;
      const int64_t row = row_tile * tile_rows + (threadIdx.x >> bits);
      const int64_t column =
          (tile - row_tile * column_tiles) * kTileWords + (threadIdx.x & ((1 << bits) - 1));
      char* const to = tensor.destination + row * tensor.destination_stride + column * kBytes;
      const char* const from = tensor.source + row * tensor.source_stride + column * kBytes;
      const auto is_copied = [&](int32_t step) {
        return row + step * row_step < part.rows && column + step * column_step < columns;
      };
      Word words[kUnroll];
#pragma unroll
      for (int32_t i = 0; i < kUnroll; ++i) {
        if (is_copied(i)) words[i] = *reinterpret_cast<const Word*>(from + i * from_step);
      }
#pragma unroll
      for (int32_t i = 0; i < kUnroll; ++i) {
        if (is_copied(i)) *reinterpret_cast<Word*>(to + i * to_step) = words[i];
      }
    }
  }
};

template <class Word, int32_t capacity>
__global__ void __launch_bounds__(kThreads, 2)
    copy_tensors(const __grid_constant__ Table<capacity> table) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  int32_t i = 0;
#pragma unroll
  for (int32_t next = 1; next < capacity; ++next) i += block >= table.first_block[next];
  const int32_t first_block = table.first_block[i];
  const Share share{block - first_block, table.first_block[i + 1] - first_block};

  const Tensor& tensor = table.tensors[i];
  const Part part = copied_part(tensor);
  if (share.thread() == 0) *tensor.clamped = part.clamped;
  Writer<Word>{tensor, part}.write(share);
}

// The most bytes that may be written to a tensor.
int64_t max_bytes(const Tensor& tensor) {
  return tensor.fills ? tensor.destination_rows * tensor.destination_stride
                      : tensor.rows.most * tensor.columns.most * tensor.item_bytes;
}

// A word for each thread as long as that takes no more blocks than a GPU runs at once; then several
// for each, in at most twice as many blocks.
int64_t bytes_per_block(int64_t total) {
  constexpr int64_t kBlocksAtOnce = 512;
  constexpr int64_t kWordBytes = sizeof(int4);
  if (total < kBlocksAtOnce * kThreads * kWordBytes) return kThreads * kWordBytes;
  return std::max(kTileWords * kWordBytes, total / (2 * kBlocksAtOnce));
}

// The largest power of two, up to 16, to which the rows of a tensor are aligned.
uintptr_t alignment(const Tensor& tensor) {
  const auto strides =
      tensor.destination_rows > 1 ? tensor.destination_stride | tensor.source_stride : 0;
  const auto bits = reinterpret_cast<uintptr_t>(tensor.destination) |
                    reinterpret_cast<uintptr_t>(tensor.source) | strides | 16;
  return bits & -bits;
}

template <int32_t capacity>
cudaError_t launch_table(const FusedCopy& op, cudaStream_t stream) {
  Table<capacity> table;
  static_assert(sizeof(table) <= 4096, "all a kernel can have as parameters");
  int64_t total = 0;
  for (int32_t i = 0; i < op.count; ++i) total += max_bytes(op.tensors[i]);
  const int64_t per_block = bytes_per_block(total);
  uintptr_t word_bytes = 16;
  int64_t blocks = 0;
  for (int32_t i = 0; i < op.count; ++i) {
    table.tensors[i] = op.tensors[i];
    table.first_block[i] = static_cast<int32_t>(blocks);
    blocks += std::max<int64_t>((max_bytes(op.tensors[i]) + per_block - 1) / per_block, 1);
    word_bytes = std::min(word_bytes, alignment(op.tensors[i]));
  }
  std::fill(table.first_block + op.count, std::end(table.first_block),
            static_cast<int32_t>(blocks));
  switch (word_bytes) {
    case 16:
      copy_tensors<int4><<<blocks, kThreads, 0, stream>>>(table);
      break;
    case 8:
      copy_tensors<int2><<<blocks, kThreads, 0, stream>>>(table);
      break;
    case 4:
      copy_tensors<int32_t><<<blocks, kThreads, 0, stream>>>(table);
      break;
    case 2:
      copy_tensors<int16_t><<<blocks, kThreads, 0, stream>>>(table);
      break;
    default:
      copy_tensors<int8_t><<<blocks, kThreads, 0, stream>>>(table);
      break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(const FusedCopy& op, cudaStream_t stream) {
  // Parameters cost time by the byte, and few calls have many tensors.
  return op.count <= 8 ? launch_table<8>(op, stream) : launch_table<kMaxTensors>(op, stream);
}

}  // namespace jax_sa
