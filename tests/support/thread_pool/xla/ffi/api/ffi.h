// XLA's thread pool as the ops on the host use it, for `host_threads.cc`: threads that
// ThreadSanitizer sees, where those inside jaxlib were compiled without it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

namespace xla::ffi {

class Threads {
 public:
  explicit Threads(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Threads() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int64_t size() const { return static_cast<int64_t>(threads_.size()); }
  void schedule(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push(std::move(task));
    }
    wake_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return ended_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::queue<std::function<void()>> tasks_;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

class ThreadPool {
 public:
  explicit ThreadPool(Threads* threads) : threads_(threads) {}
  int64_t num_threads() const { return threads_->size(); }
  void Schedule(std::function<void()> task) { threads_->schedule(std::move(task)); }

 private:
  Threads* threads_;
};

}  // namespace xla::ffi
