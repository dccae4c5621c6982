// Times expand_seqlens and fused_copy alone, as nodes of a CUDA graph, without XLA around them.
//
//     nvcc -std=c++17 -O3 -arch=native -I ffi benchmarks/graph_ops.cu ffi/{seqlens,fused_copy}.cu
//       -o graph_ops
//     ./graph_ops
//
// Microseconds per node, the median of graphs of 100 equal nodes that run one after the other,
// beside the simplest kernels' and, for copies, cudaMemcpy's. Results are checked.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "cuda_check.h"
#include "kernels.h"

namespace {

using namespace jax_sa;

constexpr int kNodes = 100;
constexpr int kGraphs = 30;
constexpr int kFill = -1;

__global__ void empty() {}

// A thread for each word.
template <class Word>
__global__ void copy_words(Word* to, const Word* from) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  to[i] = from[i];
}

cudaStream_t stream;

// Device memory that is given back with the object; bytes that nothing wrote are 0x5A.
template <class T>
struct Device {
  T* data = nullptr;
  int64_t count;

  explicit Device(int64_t count) : count(count) {
    CHECK(cudaMalloc(&data, std::max<int64_t>(count, 1) * sizeof(T)));
    CHECK(cudaMemset(data, 0x5A, count * sizeof(T)));
  }
  explicit Device(const std::vector<T>& host) : Device(static_cast<int64_t>(host.size())) {
    CHECK(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }

  std::vector<T> read() const {
    std::vector<T> host(count);
    CHECK(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
};

// Microseconds per node of a graph of calls of `run`.
template <class Run>
float node_us(Run run, int nodes = kNodes) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < nodes; ++i) CHECK(run());
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<float> us;
  for (int g = 0; g < kGraphs; ++g) {
    float ms;
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    us.push_back(ms * 1e3f / nodes);
  }
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

// What the ops cannot be faster than.
void measure_floors() {
  constexpr int kBytes = 8 << 20;
  const Device<char> from(kBytes), to(kBytes);
  const auto print = [](const char* what, float us) { std::printf("%s: %.2f us\n", what, us); };
  print("empty kernel", node_us([] {
          empty<<<1, 32, 0, stream>>>();
          return cudaGetLastError();
        }));
  print("9 x 256 threads, a word each", node_us([&] {
          copy_words<<<9, 256, 0, stream>>>(reinterpret_cast<int32_t*>(to.data),
                                            reinterpret_cast<const int32_t*>(from.data));
          return cudaGetLastError();
        }));
  print("the simplest copy of 8 MB", node_us([&] {
          copy_words<<<kBytes / 4096, 256, 0, stream>>>(reinterpret_cast<int4*>(to.data),
                                                        reinterpret_cast<const int4*>(from.data));
          return cudaGetLastError();
        }));
}

void require(bool correct, const char* what) {
  if (correct) return;
  std::fprintf(stderr, "%s: wrong result\n", what);
  std::exit(2);
}

// Rows of 0 to 2 * mean - 1 query tokens, or of exactly `mean` where that is more than 64.
void measure_seqlens(int64_t num_rows, int mean, bool all_results) {
  std::vector<int32_t> kv_lens(num_rows), q_lens(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) {
    q_lens[i] = mean > 64 ? mean : std::rand() % (2 * mean);
    kv_lens[i] = std::rand() % 100000;
  }
  const auto total = std::accumulate(q_lens.begin(), q_lens.end(), uint32_t{0}) + 5;
  const Device<int32_t> kv(kv_lens), q(q_lens), values(total), required(1);
  const Device<int32_t> offsets(num_rows + 1), row_ids(total);
  const ExpandSeqlens op{kv.data,
                         q.data,
                         values.data,
                         required.data,
                         all_results ? offsets.data : nullptr,
                         all_results ? row_ids.data : nullptr,
                         static_cast<uint32_t>(num_rows),
                         total,
                         kFill};
  const float us = node_us([&] { return launch(op, stream); });

  std::vector<int32_t> expected, expected_row_ids, expected_offsets;
  for (int32_t i = 0; i < num_rows; ++i) {
    expected_offsets.push_back(static_cast<int32_t>(expected.size()));
    for (int32_t j = 1; j <= q_lens[i]; ++j) {
      expected.push_back(std::max(kv_lens[i] - q_lens[i] + j, 0));
      expected_row_ids.push_back(i);
    }
  }
  const auto count = static_cast<int32_t>(expected.size());
  expected_offsets.push_back(count);
  expected.resize(total, kFill);
  expected_row_ids.resize(total, static_cast<int32_t>(num_rows));
  require(values.read() == expected && required.read()[0] == count, "expand_seqlens");
  if (all_results) {
    require(offsets.read() == expected_offsets && row_ids.read() == expected_row_ids,
            "expand_seqlens");
  }
  std::printf("expand_seqlens %6ld rows of %5d, %8u places%s: %7.2f us\n", num_rows, mean, total,
              all_results ? ", all results" : "", us);
  std::fflush(stdout);
}

// The beginning of `count` tensors [rows, columns] of 4-byte items, copied into rows of `width`
// items: all rows or, if `dynamic`, as many as the device asks for.
void measure_copy(int count, int64_t rows, int64_t columns, int64_t width, bool dynamic,
                  int64_t asked) {
  const int nodes = rows * width > 100'000'000 ? 10 : kNodes;
  const Device<int32_t> sizes(std::vector<int32_t>{static_cast<int32_t>(asked)});
  const Device<bool> clamped(count);
  std::vector<int32_t> numbers(count * rows * columns);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int32_t>(i * 2654435761u);
  const Device<int32_t> sources(numbers), destinations(count * rows * width);
  FusedCopy op{};
  op.count = count;
  for (int i = 0; i < count; ++i) {
    Tensor& tensor = op.tensors[i];
    tensor.destination = reinterpret_cast<char*>(destinations.data + i * rows * width);
    tensor.source = reinterpret_cast<char*>(sources.data + i * rows * columns);
    tensor.clamped = clamped.data + i;
    if (columns == width) {  // one row whose items are what were rows
      tensor.rows = {nullptr, 0, 1};
      tensor.columns = {dynamic ? sizes.data : nullptr, 0, rows};
    } else {
      tensor.rows = {dynamic ? sizes.data : nullptr, 0, rows};
      tensor.columns = {nullptr, 0, columns};
    }
    tensor.item_bytes = columns == width ? width * 4 : 4;
    tensor.destination_rows = tensor.rows.most;
    tensor.destination_stride = width * 4;
    tensor.source_stride = columns * 4;
  }
  const float us = node_us([&] { return launch(op, stream); }, nodes);
  const std::vector<int32_t> got = destinations.read();
  for (int64_t row = 0; row < count * rows; ++row) {
    const int64_t copied = row % rows < asked ? columns : 0;
    require(std::memcmp(&got[row * width], &numbers[row * columns], copied * 4) == 0 &&
                std::all_of(&got[row * width] + copied, &got[row * width] + width,
                            [](int32_t item) { return item == 0x5A5A5A5A; }),
            "fused_copy");
  }
  const float memcpy_us = node_us(
      [&] {
        for (int i = 0; i < count; ++i) {
          const Tensor& tensor = op.tensors[i];
          const cudaError_t error =
              columns == width
                  ? cudaMemcpyAsync(tensor.destination, tensor.source, asked * columns * 4,
                                    cudaMemcpyDeviceToDevice, stream)
                  : cudaMemcpy2DAsync(tensor.destination, width * 4, tensor.source, columns * 4,
                                      columns * 4, asked, cudaMemcpyDeviceToDevice, stream);
          if (error != cudaSuccess) return error;
        }
        return cudaSuccess;
      },
      nodes);
  const double bytes = 8.0 * count * asked * columns;
  std::printf(
      "fused_copy %d x [%ld, %ld] of [%ld, %ld]%s: %8.2f us (%4.0f GB/s), cudaMemcpy %8.2f us\n",
      count, asked, columns, rows, width, dynamic ? ", dynamic" : "", us, bytes / us / 1e3,
      memcpy_us);
  std::fflush(stdout);
}

}  // namespace

int main() {
  CHECK(cudaStreamCreate(&stream));
  measure_floors();
  for (const bool all_results : {false, true}) {
    for (const int64_t rows : {0, 1, 64, 256, 1024, 4096, 16384, 65536}) {
      measure_seqlens(rows, 4, all_results);
    }
    measure_seqlens(1024, 16, all_results);
    measure_seqlens(1, 65536, all_results);
    measure_seqlens(64, 65536, all_results);
  }
  struct Shape {
    int count;
    int64_t rows, columns, width;
  };
  const Shape shapes[] = {
      {6, 1, 1, 1},           {6, 1, 64, 64},         {6, 1, 257, 257},     {6, 1, 1024, 1024},
      {6, 1, 8192, 8192},     {24, 1, 1024, 1024},    {1, 256, 64, 8192},   {1, 256, 8192, 8192},
      {1, 256, 8192, 8200},   {1, 256, 8191, 8193},   {6, 256, 8192, 8192}, {1, 4096, 8192, 8192},
      {1, 16384, 8192, 8192}, {1, 16384, 8191, 8193},
  };
  for (const bool dynamic : {false, true}) {
    for (const auto [count, rows, columns, width] : shapes) {
      measure_copy(count, rows, columns, width, dynamic, rows);
    }
  }
  measure_copy(1, 256, 8192, 8192, true, 1);
  measure_copy(1, 4096, 8192, 8200, true, 1);
  measure_copy(1, 16384, 8192, 8192, true, 1);
  measure_floors();
}
