#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "memstore/block.h"
#include "memstore/memory_store.h"

namespace infllm::memstore {

// What one query is scored against.
struct RankQuery {
  std::span<const float> query;           // [q_heads, head_dim]
  const Geometry* geometry = nullptr;     // of its context
  std::shared_ptr<const IndexView> view;  // shared by queries of one context
  int64_t k = 0;
};
struct RankedBlock {
  int64_t index = 0;
  float score = 0;
};

// Exact top-k of many queries at once, on a stream of its own. Thread-safe; calls run beside each
// other.
class Selector {
 public:
  // `backend` must outlive the selector.
  explicit Selector(kernels::Backend& backend) : backend_(backend) {}

  // Per query the min(k, blocks) best of its view, ascending; ties go to the smaller index. All
  // queries whose scores fit in memory together are ranked by one call of the backend, which
  // passes once over representatives that several of them share.
  // REQUIRES: queries of the size of their geometry.
  absl::StatusOr<std::vector<std::vector<RankedBlock>>> Rank(kernels::Scoring scoring,
                                                             std::span<const RankQuery> queries);

 private:
  // Of one call at a time.
  struct Workspace {
    kernels::Stream stream{};
    kernels::Buffer device;  // queries, scores
    kernels::Buffer shared;  // queries, lists of items, results
  };

  absl::StatusOr<std::unique_ptr<Workspace>> TakeWorkspace();
  void ReturnWorkspace(std::unique_ptr<Workspace> workspace);
  // `best` is parallel to `queries`.
  absl::Status RankTogether(Workspace& workspace, kernels::Scoring scoring,
                            std::span<const RankQuery> queries,
                            std::span<std::vector<RankedBlock>> best);

  kernels::Backend& backend_;
  std::mutex mu_;
  std::vector<std::unique_ptr<Workspace>> idle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace infllm::memstore
