// fused_copy in one launch: a block has a tile of one tensor, and each of its threads 16 bytes.
#include <algorithm>
#include <iterator>
#include <utility>

#include "fused_copy.h"
#include "host_device.h"
#include "kernels.h"

namespace jax_sa {
namespace {

constexpr int32_t kThreadBits = 8;
constexpr int32_t kThreads = 1 << kThreadBits;
constexpr int64_t kThreadBytes = 16;
constexpr int64_t kTileBytes = kThreads * kThreadBytes;
// Of a tensor of which the device says how much to copy: it may be little.
constexpr int64_t kMaxDynamicBlocks = 1024;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Divides numbers below 2^31 without a division (Granlund and Montgomery 1994).
struct Divisor {
  uint32_t value;
  uint32_t factor;
  uint8_t shift;

  static Divisor of(uint32_t value) {
    uint8_t shift = 0;
    while ((uint64_t{1} << shift) < value) ++shift;
    const uint64_t excess = (uint64_t{1} << shift) - value;
    return {value, static_cast<uint32_t>((excess << 32) / value + 1), shift};
  }
  __device__ uint32_t divide(uint32_t number) const {
    return (__umulhi(number, factor) + number) >> shift;
  }
};

// The part of a tensor that is copied, in words of its rows. In 32 bits, because nearly all that a
// small copy takes is the time of its instructions.
struct Extent {
  uint32_t rows;
  uint32_t words;      // of a row, whole ones
  uint8_t tail_bytes;  // that follow them

  JAX_SA_SHARED_FN static Extent of(const Part& part, int32_t word_bytes) {
    const auto row_bytes = static_cast<uint64_t>(part.row_bytes);
    return {static_cast<uint32_t>(part.rows), static_cast<uint32_t>(row_bytes / word_bytes),
            static_cast<uint8_t>(row_bytes % word_bytes)};
  }
};

// How a tensor is divided into tiles, row by row. The threads of a block stand side by side over
// one row or, where rows have fewer words than there are threads, over several; a thread that has
// several words goes on along the row, or down the rows. The sides of a tile are powers of two.
struct Tiles {
  Divisor per_row;    // tiles side by side
  uint8_t lane_bits;  // log2 of the threads that stand side by side
};

// log2 of a tile's rows.
JAX_SA_SHARED_FN int32_t row_bits_of_tile(int32_t lane_bits, int64_t word_bytes) {
  int32_t bits = kThreadBits - lane_bits;
  for (; lane_bits < kThreadBits && word_bytes < kThreadBytes; word_bytes *= 2) ++bits;
  return bits;
}

template <int32_t capacity>
struct Table {
  Tensor tensors[capacity];
  Extent most[capacity];
  Tiles tiles[capacity];
  int32_t first_block[capacity + 1];  // the number of blocks from the last tensor on
};

// The beginning of a word, from and to addresses as aligned as the largest power of two in `bytes`.
template <class Word>
struct PartOfWord {
  int2 by_8;
  int32_t by_4;
  int16_t by_2;
  int8_t by_1;

  __device__ void load(const char* from, int32_t bytes) {
    if (sizeof(Word) > 8 && bytes & 8) by_8 = *reinterpret_cast<const int2*>(from);
    if (sizeof(Word) > 4 && bytes & 4) by_4 = *reinterpret_cast<const int32_t*>(from + (bytes & 8));
    if (sizeof(Word) > 2 && bytes & 2)
      by_2 = *reinterpret_cast<const int16_t*>(from + (bytes & 12));
    if (sizeof(Word) > 1 && bytes & 1) by_1 = *reinterpret_cast<const int8_t*>(from + (bytes & 14));
  }
  __device__ void store(char* to, int32_t bytes) const {
    if (sizeof(Word) > 8 && bytes & 8) *reinterpret_cast<int2*>(to) = by_8;
    if (sizeof(Word) > 4 && bytes & 4) *reinterpret_cast<int32_t*>(to + (bytes & 8)) = by_4;
    if (sizeof(Word) > 2 && bytes & 2) *reinterpret_cast<int16_t*>(to + (bytes & 12)) = by_2;
    if (sizeof(Word) > 1 && bytes & 1) *reinterpret_cast<int8_t*>(to + (bytes & 14)) = by_1;
  }
};

// Writes a tensor in words to which its rows are aligned.
template <class Word>
class Writer {
 public:
  __device__ Writer(const Tensor& tensor, const Tiles& tiles, const Extent& copied)
      : tensor_(tensor), tiles_(tiles), copied_(copied) {}

  // The tile after the last that is written to.
  __device__ uint32_t end_tile(const Part& part) const {
    const Part written = written_part(tensor_, part);
    const auto last_row_tile = static_cast<uint32_t>((written.rows - 1) >> tile_row_bits());
    const auto tiles_in_row =
        static_cast<uint32_t>((written.row_bytes + kTileBytes - 1) / kTileBytes);
    return written.rows > 0 ? last_row_tile * tiles_.per_row.value + tiles_in_row : 0;
  }

  __device__ void write_tile(uint32_t tile) const {
    const uint32_t row_tile = tiles_.per_row.divide(tile);
    const uint32_t column_tile = tile - row_tile * tiles_.per_row.value;
    const uint32_t row = (row_tile << tile_row_bits()) + (threadIdx.x >> tiles_.lane_bits);
    const uint32_t word =
        column_tile * (kThreads * kWords) + (threadIdx.x & ((1 << tiles_.lane_bits) - 1));
    const int32_t row_step = is_along() ? 0 : kThreads >> tiles_.lane_bits;
    const int32_t word_step = is_along() ? kThreads : 0;
    const auto copied_bytes = [&](int32_t i) {  // of word i
      if (row + i * row_step >= copied_.rows) return 0;
      if (word + i * word_step < copied_.words) return kWordBytes;
      return word + i * word_step == copied_.words ? int32_t{copied_.tail_bytes} : 0;
    };
    const char* const from = tensor_.source + row * tensor_.source_stride + place(word);
    char* const to = tensor_.destination + row * tensor_.destination_stride + place(word);
    const int64_t from_step = row_step * tensor_.source_stride + place(word_step);
    const int64_t to_step = row_step * tensor_.destination_stride + place(word_step);
    // Every load comes before the first store, so that they overlap.
    Word words[kWords];
    PartOfWord<Word> parts[kWords];
    int32_t copied[kWords];
#pragma unroll
    for (int32_t i = 0; i < kWords; ++i) {
      copied[i] = copied_bytes(i);
      if (copied[i] == kWordBytes) {
        words[i] = *reinterpret_cast<const Word*>(from + i * from_step);
      } else if (copied[i] > 0) {
        parts[i].load(from + i * from_step, copied[i]);
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kWords; ++i) {
      if (copied[i] == kWordBytes) {
        *reinterpret_cast<Word*>(to + i * to_step) = words[i];
      } else if (copied[i] > 0) {
        parts[i].store(to + i * to_step, copied[i]);
      }
    }
    if (!tensor_.fills) return;
#pragma unroll 1
    for (int32_t i = 0; i < kWords; ++i) {
      fill_rest(row + i * row_step, place(word + i * word_step), copied_bytes(i));
    }
  }

 private:
  static constexpr int32_t kWordBytes = sizeof(Word);
  static constexpr int32_t kWords = kThreadBytes / kWordBytes;  // of a thread in a tile

  __device__ bool is_along() const { return tiles_.lane_bits == kThreadBits; }
  __device__ int32_t tile_row_bits() const {
    return row_bits_of_tile(tiles_.lane_bits, kWordBytes);
  }
  // The byte of its row at which a word begins.
  __device__ static int64_t place(uint32_t word) { return int64_t{word} * kWordBytes; }

  // Fills a word from byte `copied` on.
  __device__ void fill_rest(int64_t row, int64_t byte, int32_t copied) const {
    const int64_t left = tensor_.destination_stride - byte;
    if (left <= 0 || row >= tensor_.destination_rows) return;
    char* const to = tensor_.destination + row * tensor_.destination_stride + byte;
    // Another tensor may have narrowed the words to less than this one's items.
    const char* const fill = tensor_.fill + byte % static_cast<int64_t>(sizeof(tensor_.fill));
    if (copied == 0 && left >= kWordBytes) {
      *reinterpret_cast<Word*>(to) = *reinterpret_cast<const Word*>(fill);
      return;
    }
#pragma unroll 1
    for (int64_t i = copied; i < min(left, int64_t{kWordBytes}); ++i) to[i] = fill[i];
  }

  const Tensor& tensor_;
  const Tiles& tiles_;
  const Extent copied_;
};

template <class Word, int32_t capacity, bool is_dynamic>
__global__ void __launch_bounds__(kThreads)
    copy_tensors(const __grid_constant__ Table<capacity> table) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  int32_t i = 0;
#pragma unroll
  for (int32_t next = 1; next < capacity; ++next) i += block >= table.first_block[next];
  const int32_t first_block = table.first_block[i];

  const Tensor& tensor = table.tensors[i];
  if (block == first_block && threadIdx.x == 0) {
    *tensor.clamped = is_dynamic && tensor.is_clamped();
  }
  if constexpr (is_dynamic) {
    const Part part = copied_part(tensor);
    const Writer<Word> writer(tensor, table.tiles[i], Extent::of(part, sizeof(Word)));
    const uint32_t num_blocks = table.first_block[i + 1] - first_block;
    const uint32_t end_tile = writer.end_tile(part);
#pragma unroll 1
    for (uint32_t tile = block - first_block; tile < end_tile; tile += num_blocks) {
      writer.write_tile(tile);
    }
  } else {
    Writer<Word>(tensor, table.tiles[i], table.most[i]).write_tile(block - first_block);
  }
}

// The largest power of two, up to 16, to which the rows of a tensor are aligned.
uintptr_t alignment(const Tensor& tensor) {
  const auto strides =
      tensor.destination_rows > 1 ? tensor.destination_stride | tensor.source_stride : 0;
  const auto bits = reinterpret_cast<uintptr_t>(tensor.destination) |
                    reinterpret_cast<uintptr_t>(tensor.source) | strides | kThreadBytes;
  return bits & -bits;
}

// All that may be written to a tensor.
Part most_written(const Tensor& tensor) { return written_part(tensor, most_copied(tensor)); }

// Whether rows and tiles can be counted in 31 bits, and words, those beyond the end of a row
// included, in 32.
bool fits(const Tensor& tensor, int64_t word_bytes) {
  const Part part = most_written(tensor);
  const int64_t row_words = divide_up(part.row_bytes, word_bytes);
  const int64_t tiles = std::max(divide_up(row_words, kThreads), int64_t{1}) * part.rows;
  return row_words < UINT32_MAX - kTileBytes && tiles < INT32_MAX;
}

// The tiles of a tensor, and the number of blocks for them.
std::pair<Tiles, int64_t> divide(const Tensor& tensor, int64_t word_bytes) {
  const Part part = most_written(tensor);
  uint8_t lane_bits = 0;
  while (lane_bits < kThreadBits && (word_bytes << lane_bits) < part.row_bytes) ++lane_bits;
  const int64_t per_row = lane_bits == kThreadBits ? divide_up(part.row_bytes, kTileBytes) : 1;
  const int64_t tile_rows = int64_t{1} << row_bits_of_tile(lane_bits, word_bytes);
  const int64_t tiles = divide_up(part.rows, tile_rows) * per_row;
  const int64_t most_blocks = tensor.is_dynamic() ? kMaxDynamicBlocks : INT32_MAX;
  const int64_t blocks = std::clamp(tiles, int64_t{1}, most_blocks);
  return {{Divisor::of(static_cast<uint32_t>(per_row)), lane_bits}, blocks};
}

template <int32_t capacity, bool is_dynamic>
cudaError_t launch_table(const FusedCopy& op, cudaStream_t stream) {
  Table<capacity> table;
  static_assert(sizeof(table) <= 4096, "all a kernel can have as parameters");
  uintptr_t word_bytes = kThreadBytes;
  for (int32_t i = 0; i < op.count; ++i) {
    word_bytes = std::min(word_bytes, alignment(op.tensors[i]));
  }
  int64_t blocks = 0;
  for (int32_t i = 0; i < op.count; ++i) {
    if (!fits(op.tensors[i], word_bytes)) return cudaErrorInvalidValue;
    table.tensors[i] = op.tensors[i];
    table.most[i] = Extent::of(most_copied(op.tensors[i]), word_bytes);
    const auto [tiles, tensor_blocks] = divide(op.tensors[i], word_bytes);
    table.tiles[i] = tiles;
    table.first_block[i] = static_cast<int32_t>(blocks);
    blocks += tensor_blocks;  // at least one, which says whether the tensor was clamped
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  }
  std::fill(table.first_block + op.count, std::end(table.first_block),
            static_cast<int32_t>(blocks));
  const auto copy_in = [&](auto word) {
    copy_tensors<decltype(word), capacity, is_dynamic><<<blocks, kThreads, 0, stream>>>(table);
  };
  if (word_bytes == 16) copy_in(int4{});
  if (word_bytes == 8) copy_in(int2{});
  if (word_bytes == 4) copy_in(int32_t{});
  if (word_bytes == 2) copy_in(int16_t{});
  if (word_bytes == 1) copy_in(int8_t{});
  return cudaGetLastError();
}

// Parameters cost time by the byte, and few calls have many tensors.
template <bool is_dynamic>
cudaError_t launch_with(const FusedCopy& op, cudaStream_t stream) {
  if (op.count == 1) return launch_table<1, is_dynamic>(op, stream);
  if (op.count <= 8) return launch_table<8, is_dynamic>(op, stream);
  return launch_table<kMaxTensors, is_dynamic>(op, stream);
}

}  // namespace

cudaError_t launch(const FusedCopy& op, cudaStream_t stream) {
  const bool is_dynamic = std::any_of(op.tensors, op.tensors + op.count,
                                      [](const Tensor& tensor) { return tensor.is_dynamic(); });
  return is_dynamic ? launch_with<true>(op, stream) : launch_with<false>(op, stream);
}

}  // namespace jax_sa
