// The baseline of benchmarks/append.py: the textbook automaton with a hash map for each node.
#include <cstdint>
#include <unordered_map>
#include <vector>

extern "C" int64_t textbook_append(const int32_t* tokens, int64_t count) {
  std::vector<std::unordered_map<int32_t, int32_t>> edges(1);
  std::vector<int32_t> link{-1}, length{0};
  int32_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t current = static_cast<int32_t>(edges.size());
    edges.emplace_back();
    link.push_back(0);
    length.push_back(length[last] + 1);
    int32_t node = last;
    while (node != -1 && edges[node].try_emplace(tokens[i], current).second) node = link[node];
    last = current;
    if (node == -1) continue;
    const int32_t target = edges[node][tokens[i]];
    if (length[target] == length[node] + 1) {
      link[current] = target;
      continue;
    }
    const int32_t clone = static_cast<int32_t>(edges.size());
    edges.push_back(std::unordered_map<int32_t, int32_t>(edges[target]));
    link.push_back(link[target]);
    length.push_back(length[node] + 1);
    for (; node != -1; node = link[node]) {
      const auto edge = edges[node].find(tokens[i]);
      if (edge == edges[node].end() || edge->second != target) break;
      edge->second = clone;
    }
    link[target] = link[current] = clone;
  }
  return static_cast<int64_t>(edges.size());
}
