#include "kernels/core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/core/cpu_limit.h"
#include "kernels/core/status_macros.h"

namespace infllm::kernels {
namespace {

using Body = absl::FunctionRef<void(int64_t begin, int64_t end, int worker)>;

// Waking a sleeping thread costs 15-60 us on a virtual machine, about the time between two ops of
// a decode step; spinning for longer only takes the CPU from somebody who could use it.
constexpr std::chrono::microseconds kSpin{40};

// Set while a thread runs a body: ParallelFor from there would wait for itself.
thread_local bool t_inside_body = false;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Until `done()`, but no longer than kSpin. Returns done().
template <typename Done>
bool Spin(Done done) {
  if (done()) return true;
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

// One job at a time. `unclaimed` counts its chunks that nobody has taken: whoever decrements it
// from above zero owns a chunk, and the job stays alive until that chunk has been counted out of
// `unfinished`. So a worker that wakes up late either takes a chunk of whatever job is current,
// or finds nothing and touches nothing.
struct ThreadPool::Impl {
  struct Job {
    const Body* body = nullptr;
    int64_t items = 0;
    int64_t grain = 0;
    int64_t chunks = 0;
  };

  std::mutex callers;  // one ParallelFor at a time
  Job job;             // written while unclaimed <= 0 and unfinished == 0
  alignas(64) std::atomic<int64_t> unclaimed{0};
  alignas(64) std::atomic<int64_t> unfinished{0};
  alignas(64) std::atomic<uint64_t> epoch{0};  // grows with each job, and once to stop
  std::atomic<int> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};

  std::mutex sleep;
  std::condition_variable wake;
  std::condition_variable finished;
  std::vector<std::thread> workers;

  void RunChunks(int worker) {
    int64_t ran = 0;
    t_inside_body = true;
    // The load keeps idle workers from fighting over the line.
    while (unclaimed.load(std::memory_order_relaxed) > 0) {
      const int64_t left = unclaimed.fetch_sub(1, std::memory_order_acq_rel);
      if (left <= 0) break;
      const int64_t begin = (job.chunks - left) * job.grain;
      (*job.body)(begin, std::min(begin + job.grain, job.items), worker);
      ++ran;
    }
    t_inside_body = false;
    // The sequentially consistent pairs (unfinished, caller_sleeps) here and (epoch, sleepers)
    // below make sure that either the sleeper sees the change or the changer sees the sleeper.
    if (ran > 0 && unfinished.fetch_sub(ran) == ran && caller_sleeps.load()) {
      { std::lock_guard lock(sleep); }  // the caller is between its check and its wait no more
      finished.notify_one();
    }
  }

  void WorkerLoop(int worker) {
    uint64_t seen = 0;
    while (true) {
      const auto changed = [&] { return epoch.load() != seen; };
      if (!Spin(changed)) {
        std::unique_lock lock(sleep);
        sleepers.fetch_add(1);
        wake.wait(lock, changed);
        sleepers.fetch_sub(1);
      }
      if (stop.load()) return;
      seen = epoch.load();
      RunChunks(worker);
    }
  }

  // Announces what changed, and wakes up to `count` of the workers if not enough are awake.
  void NextEpoch(int64_t count) {
    epoch.fetch_add(1);
    const int asleep = sleepers.load();
    if (asleep == 0) return;
    const int64_t awake = static_cast<int64_t>(workers.size()) - asleep;
    { std::lock_guard lock(sleep); }  // nobody is between its check and its wait any more
    if (count >= static_cast<int64_t>(workers.size())) {
      wake.notify_all();
    } else {
      for (int64_t i = awake; i < count; ++i) wake.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  INFLLM_CHECK(threads >= 0);
  if (threads == 0) threads = DefaultThreads();
  for (int i = 1; i < threads; ++i) {
    impl_->workers.emplace_back([impl = impl_.get(), i] { impl->WorkerLoop(i); });
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true);
  impl_->NextEpoch(threads());
  for (std::thread& worker : impl_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::ParallelFor(int64_t items, int64_t grain, Body body) {
  INFLLM_CHECK(items >= 0 && grain > 0);
  INFLLM_CHECK(!t_inside_body);
  if (items == 0) return;
  Impl& impl = *impl_;
  std::lock_guard lock(impl.callers);
  const int64_t chunks = (items - 1) / grain + 1;
  if (chunks == 1 || impl.workers.empty()) {
    t_inside_body = true;
    for (int64_t begin = 0; begin < items; begin += grain) {
      body(begin, std::min(begin + grain, items), 0);
    }
    t_inside_body = false;
    return;
  }
  impl.job = {&body, items, grain, chunks};
  impl.unfinished.store(chunks);
  impl.unclaimed.store(chunks, std::memory_order_release);
  impl.NextEpoch(chunks - 1);
  impl.RunChunks(0);

  const auto done = [&] { return impl.unfinished.load() == 0; };
  if (Spin(done)) return;
  std::unique_lock sleep_lock(impl.sleep);
  impl.caller_sleeps.store(true);
  impl.finished.wait(sleep_lock, done);
  impl.caller_sleeps.store(false);
}

int ThreadPool::DefaultThreads() {
  const int cpus = AvailableCpus();
  return cpus <= 2 ? cpus : cpus - 1;
}

}  // namespace infllm::kernels
