// A backend on the host that tells where the time of a step goes.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "tests/bench/forwarding_backend.h"

namespace infllm::bench {

inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Processor time of all threads of this process.
inline double ProcessorSeconds() {
  timespec time;
  INFLLM_CHECK(::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) == 0);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

enum class Phase : uint8_t {
  kGemm,
  kAttend,  // the rotation and storing of keys included
  kSelect,
  kPublish,  // making representatives
  kOther,
  kHost,  // between operations: planning, and the memory store
};

// What operations have to do, as far as it has a floor.
struct Work {
  double gemm_flops = 0;
  double gemm_bytes = 0;  // of weights, once for each product
  double attend_flops = 0;
  double attend_bytes = 0;  // of keys and values, once for each span
  double select_bytes = 0;  // of representatives, once for items that share them
};

// The operations of one step in their order, and what the host did before each and after the last.
struct StepLog {
  struct Entry {
    Phase phase;
    double seconds;
  };
  std::vector<Entry> entries;
  Work work;
};

// The best time of each entry over several steps of the same operations. Another tenant of the
// machine disturbs any long step, but not each of its operations every time.
class BestStep {
 public:
  void Take(const StepLog& step) {
    if (best_.entries.size() != step.entries.size()) {
      INFLLM_CHECK(best_.entries.empty());
      best_ = step;
      return;
    }
    for (size_t i = 0; i < step.entries.size(); ++i) {
      double& best = best_.entries[i].seconds;
      best = std::min(best, step.entries[i].seconds);
    }
  }
  double seconds(Phase phase) const {
    double seconds = 0;
    for (const StepLog::Entry& entry : best_.entries) {
      if (entry.phase == phase) seconds += entry.seconds;
    }
    return seconds;
  }
  double seconds() const {
    double seconds = 0;
    for (const StepLog::Entry& entry : best_.entries) seconds += entry.seconds;
    return seconds;
  }
  const Work& work() const { return best_.work; }
  const std::vector<StepLog::Entry>& entries() const { return best_.entries; }

 private:
  StepLog best_;
};

// Of a host-accessible backend, whose operations are done when their call returns. Operations of
// one step at a time: not thread-safe.
class TimedBackend final : public ForwardingBackend {
 public:
  // `backend` must outlive the object. With processor_time an operation is said to take the
  // processor time of all threads by their number, as it would if nobody else used the machine and
  // all had the same to do; the host alone takes all of it. For machines that other work shares.
  TimedBackend(kernels::Backend& backend, int threads, bool processor_time)
      : ForwardingBackend(backend), threads_(threads), processor_time_(processor_time) {}

  // Seconds, as those of an operation are counted.
  double Clock() const { return processor_time_ ? ProcessorSeconds() / threads_ : Now(); }

  void BeginStep() {
    log_.entries.clear();
    log_.work = {};
    last_ = Clock();
  }
  // Valid until the next step begins.
  const StepLog& EndStep() {
    log_.entries.push_back({Phase::kHost, HostSeconds(Clock() - last_)});
    return log_;
  }

  absl::Status Copy(kernels::Stream stream, void* to, const void* from, size_t bytes) override {
    return Timed(Phase::kOther, [&] { return backend_.Copy(stream, to, from, bytes); });
  }
  absl::Status Zero(kernels::Stream stream, void* device, size_t bytes) override {
    return Timed(Phase::kOther, [&] { return backend_.Zero(stream, device, bytes); });
  }
#define INFLLM_TIME_OP(Name)                                                            \
  absl::Status Name(kernels::Stream stream, const kernels::Name##Args& args) override { \
    return Timed(PhaseOf(args), [&] { return backend_.Name(stream, args); });           \
  }
  INFLLM_KERNEL_OPS(INFLLM_TIME_OP)
#undef INFLLM_TIME_OP

 private:
  template <typename Op>
  absl::Status Timed(Phase phase, Op op) {
    const double start = Clock();
    absl::Status status = op();
    const double end = Clock();
    log_.entries.push_back({Phase::kHost, HostSeconds(start - last_)});
    log_.entries.push_back({phase, end - start});
    last_ = end;
    return status;
  }
  double HostSeconds(double seconds) const {
    return processor_time_ ? seconds * threads_ : seconds;
  }

  // The phase of an operation; also counts its work.
  template <typename Args>
  Phase PhaseOf(const Args&) {
    return Phase::kOther;
  }
  Phase PhaseOf(const kernels::LinearArgs& args) {
    const auto weights = static_cast<double>(args.weight.in_features) *
                         static_cast<double>(args.weight.out_features);
    log_.work.gemm_flops += 2 * weights * static_cast<double>(args.rows);
    log_.work.gemm_bytes += weights * static_cast<double>(SizeOf(backend_.preferred_dtype()));
    return Phase::kGemm;
  }
  Phase PhaseOf(const kernels::RotateAndStoreArgs&) { return Phase::kAttend; }
  Phase PhaseOf(const kernels::AttentionArgs& args) {
    const kernels::PageShape& page = args.page;
    for (int64_t i = 0; i < args.span_count; ++i) {
      const kernels::AttentionSpan& span = args.spans[i];
      const auto tokens_of = [](const kernels::PageEntry* entries, int64_t count) {
        int64_t tokens = 0;
        for (int64_t e = 0; e < count; ++e) tokens += entries[e].tokens;
        return tokens;
      };
      const int64_t far =
          tokens_of(span.far, span.far_pages) + tokens_of(span.blocks, span.block_count);
      int64_t pairs = span.rows * far;
      for (int64_t row = 0; row < span.rows; ++row) {
        pairs += std::min(args.window, span.first_position + row + 1);
      }
      log_.work.attend_flops += 4.0 * static_cast<double>(pairs * args.q_heads * page.head_dim);
      log_.work.attend_bytes += 2.0 *
                                static_cast<double>((tokens_of(span.near, span.near_pages) + far) *
                                                    page.kv_heads * page.head_dim) *
                                static_cast<double>(SizeOf(page.dtype));
    }
    return Phase::kAttend;
  }
  Phase PhaseOf(const kernels::MeanQueriesArgs&) { return Phase::kSelect; }
  Phase PhaseOf(const kernels::ScoreBlocksArgs& args) {
    const int64_t rows = ShapeOf(args.kind, args.q_heads, args.kv_heads).rows();
    const void* before = nullptr;
    for (int64_t i = 0; i < args.count; ++i) {
      const kernels::ScoreItem& item = args.items[i];
      if (item.chunk_count == 0 || item.chunks[0].data == before) continue;
      before = item.chunks[0].data;
      for (int64_t c = 0; c < item.chunk_count; ++c) {
        log_.work.select_bytes +=
            static_cast<double>(item.chunks[c].blocks * rows * args.head_dim) *
            static_cast<double>(SizeOf(args.dtype));
      }
    }
    return Phase::kSelect;
  }
  Phase PhaseOf(const kernels::TopKArgs&) { return Phase::kSelect; }
  Phase PhaseOf(const kernels::SelectBlocksArgs& args) { return PhaseOf(args.score); }
  Phase PhaseOf(const kernels::LookUpBlocksArgs&) { return Phase::kSelect; }
  Phase PhaseOf(const kernels::RepresentativesArgs&) { return Phase::kPublish; }
  Phase PhaseOf(const kernels::EncodeBoundsArgs&) { return Phase::kPublish; }

  const int threads_;
  const bool processor_time_;
  StepLog log_;
  double last_ = 0;  // when the last entry ended
};

}  // namespace infllm::bench
