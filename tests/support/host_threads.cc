// The ops on the host with many rows and threads, for ThreadSanitizer: two callers at once, each
// with states and a pool of its own, share one pool of threads, as XLA's programs do.
//
// Every row of a batch has the same text, and every group of followers is noted from the same
// logits, so that whatever one thread left must be what all others left.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "draft_tree.h"
#include "followers_host.h"
#include "pool_insert_host.h"
#include "rows_host.h"
#include "scan_host.h"

namespace jax_sa {
namespace {

constexpr int32_t kSlots = 48, kCapacity = 640, kWidth = 32, kDraft = 6, kNodes = 16;
constexpr int32_t kPoolTokens = 4096, kGroups = 2;
constexpr int32_t kVocabulary = 200, kPlaces = 2 * kGroups * kVocabulary;

using Ints = std::vector<int32_t>;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "error: %s differs between rows or groups\n", what);
  std::abort();
}

// Whether the same elements stand in every slot's part.
bool all_same(const Ints& values, int64_t stride) {
  for (size_t i = stride; i < values.size(); ++i) {
    if (values[i] != values[i - stride]) return false;
  }
  return true;
}

// `numbers`, `tokens` and `index` of a state, on a boundary on which edges are loaded in one piece.
struct OwnState {
  explicit OwnState(int32_t num_entries) {
    int64_t words = int64_t{num_entries} * (sizeof(Edge) / sizeof(int32_t));
    const int64_t max_seq_len = kCapacity;
#define JAX_SA_ADD(type, name, size) words += int64_t{sizeof(type) / sizeof(int32_t)} * (size);
    JAX_SA_INDEX_BEHIND_EDGES(JAX_SA_ADD)
#undef JAX_SA_ADD
    words = (words + 3) / 4 * 4;
    numbers.resize(kSlots * kNumNumbers);
    tokens.resize(kSlots * kCapacity);
    index.resize(kSlots * words / 4);
    auto* const begin = reinterpret_cast<int32_t*>(index.data());
    state = {numbers.data(), tokens.data(), begin, kSlots, kCapacity, num_entries, words};
  }

  Ints numbers, tokens;
  std::vector<Edge> index;
  State state;
};

// Notes what a model said of every token, first at random, then the same in all groups. Both places
// are side by side, and the last one counts.
void note_all(const Followers& followers, xla::ffi::ThreadPool workers, std::mt19937& random) {
  Ints tokens(kPlaces), groups(kPlaces);
  std::vector<float> logits(kPlaces * kVocabulary), last(kVocabulary * kVocabulary);
  for (float& logit : logits) logit = static_cast<float>(random() % 500);
  for (float& logit : last) logit = static_cast<float>(random() % 500);
  for (int32_t place = 0; place < kPlaces; ++place) {
    tokens[place] = place / 2 / kGroups;
    groups[place] = place / 2 % kGroups;
    if (place % 2 == 0) continue;
    std::copy_n(last.begin() + tokens[place] * kVocabulary, kVocabulary,
                logits.begin() + place * kVocabulary);
  }
  run(NoteFollowers{followers, groups.data(), tokens.data(), logits.data(), kPlaces}, workers);
}

void run_all(xla::ffi::Threads* threads, uint32_t seed) {
  const xla::ffi::ThreadPool workers(threads);
  std::mt19937 random(seed);
  OwnState own(5 * kCapacity / 2 + 16);
  Ints length(kSlots), status(kSlots), scanned(kSlots * kCapacity), match(kSlots * kCapacity);
  const ScanState scan{length.data(), status.data(), scanned.data(),
                       match.data(),  kSlots,        kCapacity};
  Ints ring(kGroups * kPoolTokens), head(kGroups), said(kGroups);
  Ints table(kGroups * kNumGrams * kPoolTokens / 2);
  const Pool pool{ring.data(), head.data(), said.data(), table.data(), kGroups, kPoolTokens};
  Ints block(kSlots * kWidth), lengths(kSlots, kWidth), groups(kSlots), behind(kSlots);
  Ints shifts(kGroups), drafted(kSlots * kDraft), numbers(kDraftNumbers * kSlots);
  Ints nodes(5 * kSlots * kNodes), count(kSlots);
  Ints known(kGroups * kVocabulary * kNumFollowers, kNoFollower);
  const Rows rows{nullptr, kSlots};
  const Text text{block.data(), lengths.data(), kWidth};
  const Drafts drafts{drafted.data(), numbers.data(), kDraft};
  const auto field = [&](int32_t i) { return nodes.data() + int64_t{i} * kSlots * kNodes; };
  const Trees trees{field(0), field(1), field(2), field(3), field(4), count.data(), kNodes};
  const LookupOptions options{nullptr, 1, kCapacity, true, true, 1e9};
  const PoolView seen{pool, nullptr};
  const Followers followers{known.data(), kGroups, kVocabulary};
  const Growing growing{{followers, groups.data()}, make_growth()};

  for (int32_t done = 0; done < kCapacity; done += kWidth) {
    for (int32_t i = 0; i < kWidth; ++i) {
      const auto token = static_cast<int32_t>(random() % 3);
      for (int32_t row = 0; row < kSlots; ++row) block[row * kWidth + i] = token;
    }
    for (int32_t row = 0; row < kSlots; ++row) groups[row] = row % kGroups;
    run(
        PoolInsert<BlockTexts>{
            pool, {text}, groups.data(), kSlots, kWidth, behind.data(), shifts.data()},
        workers);
    if (done / kWidth % 2 == 0) {
      run(ExtendLookup{own.state, rows, seen, text, options, drafts}, workers);
    } else {
      run(Extend{own.state, rows, text}, workers);
      run(Lookup{own.state, rows, seen, options, drafts}, workers);
    }
    check(all_same(drafted, kDraft) && all_same(numbers, kDraftNumbers), "a draft");
    note_all(followers, workers, random);
    check(all_same(known, int64_t{kVocabulary} * kNumFollowers), "what follows a token");
    run(LookupTree{own.state, rows, seen, {nullptr, 0, 1}, growing, options, trees, kNodes},
        workers);
    check(all_same(count, 1), "the size of a tree");
    for (int32_t i = 0; i < 5; ++i) {
      check(all_same(Ints(field(i), field(i) + kSlots * kNodes), kNodes), "a tree");
    }
    run(Scan{scan, rows, text, options, drafts}, workers);
    check(all_same(drafted, kDraft) && all_same(match, kCapacity), "a scan");
  }
  check(all_same(own.tokens, kCapacity) && all_same(own.numbers, kNumNumbers), "a text");
}

}  // namespace
}  // namespace jax_sa

int main() {
  xla::ffi::Threads threads(6);
  std::thread other([&] { jax_sa::run_all(&threads, 1); });
  jax_sa::run_all(&threads, 2);
  other.join();
  std::puts("the same in every row");
}
