// Times the kernels alone, as nodes of a CUDA graph, without XLA around them: a line of JSON for
// each case. benchmarks/graph_step.py builds and runs it.
//
// Every slot replays a stretch of the tokens, just short of its capacity: a step appends m tokens
// and drafts 8 more. The stretches of 64 slots begin a stride apart. With a pool, the same tokens
// stand in it too, so that every step finds something there. `graph_us` is the time per step of
// graphs of 100 steps. The others come from single steps between two events, less what an empty
// kernel takes between them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda_check.h"
#include "kernels.h"

namespace {

constexpr int kDraft = 8;
constexpr int kGraphSteps = 100;
constexpr int kGraphs = 8;

struct Case {
  int slots;
  int context;
  int accepted;
  int pool;
  int single_steps;
  int stride;
};

template <class T>
T* device_zeros(int64_t count) {
  T* data;
  CHECK(cudaMalloc(&data, count * sizeof(T)));
  CHECK(cudaMemset(data, 0, count * sizeof(T)));
  return data;
}

template <class T>
T* to_device(const std::vector<T>& host) {
  T* data = device_zeros<T>(host.size());
  CHECK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

__global__ void empty() {}

// Tokens by step: texts[step][slot][accepted].
std::vector<int32_t> step_tokens(const std::vector<int32_t>& tokens, const Case& timed, int begin,
                                 int accepted, int steps) {
  std::vector<int32_t> out;
  for (int step = 0; step < steps; ++step) {
    for (int slot = 0; slot < timed.slots; ++slot) {
      for (int i = 0; i < accepted; ++i) {
        out.push_back(tokens[slot % 64 * timed.stride + begin + step * accepted + i]);
      }
    }
  }
  return out;
}

float milliseconds(cudaEvent_t begin, cudaEvent_t end) {
  float ms;
  CHECK(cudaEventElapsedTime(&ms, begin, end));
  return ms;
}

jax_sa::State empty_state(int num_slots, int max_seq_len) {
  using namespace jax_sa;
  // As `jax_sa.State` has them; the numbers are length, status, clones and seed.
  const int64_t num_entries = 5 * int64_t{max_seq_len} / 2 + 16;
  int64_t index_words = 0;
#define ADD(type, name, size) index_words += int64_t{sizeof(type) / sizeof(int32_t)} * (size);
  JAX_SA_INDEX(ADD)
#undef ADD
  index_words = (index_words + 3) / 4 * 4;
  State state;
  state.numbers = device_zeros<int32_t>(int64_t{num_slots} * kNumNumbers);
  state.tokens = device_zeros<int32_t>(int64_t{num_slots} * max_seq_len);
  state.index = device_zeros<int32_t>(num_slots * index_words);
  state.num_slots = num_slots;
  state.max_seq_len = max_seq_len;
  state.index_words = index_words;
  state.num_entries = num_entries_in(index_words, max_seq_len);
  return state;
}

// A pool of one group, filled with the tokens; of capacity 0, none.
jax_sa::Pool full_pool(const std::vector<int32_t>& tokens, int capacity) {
  using namespace jax_sa;
  if (capacity == 0) return {};
  const Pool pool{device_zeros<int32_t>(capacity),
                  device_zeros<int32_t>(1),
                  device_zeros<int32_t>(1),
                  device_zeros<int32_t>(int64_t{kNumGrams} * entries_per_gram(capacity)),
                  1,
                  capacity};
  const int32_t width = 4096;
  const auto rows = static_cast<int32_t>(tokens.size() / width);
  const Text text{to_device(tokens), to_device(std::vector<int32_t>(rows, width)), width};
  const PoolInsert<BlockTexts> op{
      pool, {text}, nullptr, rows, width, device_zeros<int32_t>(rows), device_zeros<int32_t>(1)};
  for (int done = 0; done < capacity; done += rows * (width + 1)) CHECK(launch(op, nullptr));
  CHECK(cudaDeviceSynchronize());
  return pool;
}

void measure(const std::vector<int32_t>& tokens, const Case& timed) {
  using namespace jax_sa;
  const auto [slots, context, accepted, pool_capacity, single_steps, stride] = timed;
  const PoolView pool{full_pool(tokens, pool_capacity), nullptr};
  const State state = empty_state(slots, context);
  const int steps = (kGraphs + 1) * kGraphSteps + single_steps;
  const int prefill = context - steps * accepted;
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));

  int32_t* prompt = to_device(step_tokens(tokens, timed, 0, prefill, 1));
  int32_t* prompt_lengths = to_device(std::vector<int32_t>(slots, prefill));
  CHECK(cudaEventRecord(begin, stream));
  CHECK(launch(Extend{state, {nullptr, slots}, {prompt, prompt_lengths, prefill}}, stream));
  CHECK(cudaEventRecord(end, stream));
  CHECK(cudaStreamSynchronize(stream));
  const float prefill_ms = milliseconds(begin, end);

  int32_t* texts = to_device(step_tokens(tokens, timed, prefill, accepted, steps));
  int32_t* lengths = to_device(std::vector<int32_t>(slots, accepted));
  const Drafts drafts{device_zeros<int32_t>(slots * kDraft),
                      device_zeros<int32_t>(slots * kDraftNumbers), kDraft};
  const auto step = [&, slots = slots, accepted = accepted](int i) {
    const Text text{texts + int64_t{i} * slots * accepted, lengths, accepted};
    const LookupOptions options{nullptr, 1, 1 << 30, true, true, 1e30};
    CHECK(launch(ExtendLookup{state, {nullptr, slots}, pool, text, options, drafts}, stream));
  };

  int done = 0;
  std::vector<float> graph_us;
  for (int g = 0; g <= kGraphs; ++g, done += kGraphSteps) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kGraphSteps; ++i) step(done + i);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    CHECK(cudaGraphUpload(executable, stream));
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaStreamSynchronize(stream));
    if (g > 0) graph_us.push_back(milliseconds(begin, end) * 1e3f / kGraphSteps);
  }
  std::sort(graph_us.begin(), graph_us.end());

  const auto singles = [&, single_steps = single_steps](auto run) {
    std::vector<cudaEvent_t> events(single_steps + 1);
    for (cudaEvent_t& event : events) CHECK(cudaEventCreate(&event));
    CHECK(cudaEventRecord(events[0], stream));
    for (int i = 0; i < single_steps; ++i) {
      run(i);
      CHECK(cudaEventRecord(events[i + 1], stream));
    }
    CHECK(cudaStreamSynchronize(stream));
    std::vector<float> us;
    for (int i = 0; i < single_steps; ++i)
      us.push_back(milliseconds(events[i], events[i + 1]) * 1e3f);
    std::sort(us.begin(), us.end());
    return us;
  };
  const float base = singles([&](int) { empty<<<1, 32, 0, stream>>>(); })[single_steps / 2];
  const std::vector<float> us = singles([&](int i) { step(done + i); });

  int32_t length, status;
  CHECK(cudaMemcpy(&length, state.numbers + jax_sa::number_length, 4, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(&status, state.numbers + jax_sa::number_status, 4, cudaMemcpyDeviceToHost));
  if (length != context || status != 0) std::exit(2);
  std::printf(
      "{\"slots\": %d, \"max_seq_len\": %d, \"accepted\": %d, \"pool\": %d, \"graph_us\": %.2f, "
      "\"p50_us\": %.2f, \"p99_us\": %.2f, \"p99_9_us\": %.2f, \"max_us\": %.2f, "
      "\"prefill_us_per_token\": %.3f}\n",
      slots, context, accepted, pool_capacity, graph_us[graph_us.size() / 2],
      us[single_steps / 2] - base, us[single_steps * 99 / 100] - base,
      us[single_steps * 999LL / 1000] - base, us.back() - base, prefill_ms * 1e3 / prefill);
  std::fflush(stdout);
  CHECK(cudaDeviceReset());
}

}  // namespace

int main(int argc, char** argv) {
  std::FILE* file = argc > 1 ? std::fopen(argv[1], "rb") : nullptr;
  if (file == nullptr) {
    std::fprintf(stderr, "usage: graph_step TOKENS.bin [STRIDE]\n");
    return 2;
  }
  std::vector<int32_t> tokens(1 << 22);
  tokens.resize(std::fread(tokens.data(), 4, tokens.size(), file));
  if (argc > 2) {
    measure(tokens, {64, 32768, 1, 0, 16384, std::atoi(argv[2])});
    return 0;
  }
  for (const int context : {32768, 131072}) {
    for (const int slots : {1, 64, 256}) {
      for (const int accepted : {1, 4}) {
        for (const int pool : {0, 1 << 20}) {
          measure(tokens, {slots, context, accepted, pool, 2000, 4096});
        }
      }
    }
  }
}
