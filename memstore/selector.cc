#include "memstore/selector.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "kernels/core/status_macros.h"

namespace infllm::memstore {
namespace {

using kernels::RepresentativeChunk;
using kernels::ScoreItem;
using kernels::TopKItem;

// Scores that one call of the backend writes: 16 queries of a million blocks. A query of more is
// scored by itself.
constexpr int64_t kMaxScores = int64_t{16} << 20;
// Workspaces whose memory is kept for the next call; more have some only while they are used.
constexpr size_t kWarmWorkspaces = 4;

// What one call of SelectBlocks has in common.
auto ShapeOf(const RankQuery& query) {
  const Geometry& g = *query.geometry;
  return std::tuple(g.representative, g.dtype, g.q_heads, g.kv_heads, g.head_dim);
}

// Places arrays one behind the other in a buffer that is not there yet.
class Layout {
 public:
  // Returns the offset in bytes.
  template <typename T>
  size_t Place(size_t count) {
    const size_t at = bytes_;
    bytes_ += (count * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

template <typename T>
T* At(const kernels::Buffer& buffer, size_t offset) {
  return reinterpret_cast<T*>(buffer.data() + offset);
}

// Grows in powers of two: contexts grow by a few blocks at a time.
template <typename Allocate>
absl::Status Reserve(kernels::Buffer& buffer, size_t bytes, Allocate allocate) {
  if (buffer.size_bytes() >= bytes) return absl::OkStatus();
  buffer = {};
  INFLLM_ASSIGN_OR_RETURN(buffer, allocate(std::bit_ceil(bytes)));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::vector<RankedBlock>>> Selector::Rank(
    kernels::Scoring scoring, std::span<const RankQuery> queries) {
  std::vector<std::vector<RankedBlock>> best(queries.size());
  std::vector<size_t> order;  // queries that have an answer, those of one shape together
  for (size_t i = 0; i < queries.size(); ++i) {
    INFLLM_CHECK(queries[i].query.size() == queries[i].geometry->query_floats());
    if (queries[i].k > 0 && queries[i].view->blocks > 0) order.push_back(i);
  }
  if (order.empty()) return best;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return ShapeOf(queries[a]) < ShapeOf(queries[b]); });

  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<Workspace> workspace, TakeWorkspace());
  absl::Status status;
  for (size_t next = 0; next < order.size() && status.ok();) {
    std::vector<RankQuery> together;
    const size_t first = next;
    for (int64_t scores = 0; next < order.size(); ++next) {
      scores += queries[order[next]].view->blocks;
      if (scores > kMaxScores && next > first) break;
      together.push_back(queries[order[next]]);
    }
    std::vector<std::vector<RankedBlock>> answers(together.size());
    status = RankTogether(*workspace, scoring, together, answers);
    for (size_t i = 0; i < answers.size(); ++i) best[order[first + i]] = std::move(answers[i]);
  }
  // What has been enqueued before an error still uses the workspace.
  if (!status.ok()) backend_.Synchronize(workspace->stream).IgnoreError();
  ReturnWorkspace(std::move(workspace));
  if (!status.ok()) return status;
  return best;
}

absl::Status Selector::RankTogether(Workspace& workspace, kernels::Scoring scoring,
                                    std::span<const RankQuery> queries,
                                    std::span<std::vector<RankedBlock>> best) {
  size_t query_floats = 0, scores = 0, results = 0, chunks = 0;
  std::unordered_map<const IndexView*, size_t> first_chunk;  // of each view, in the array of all
  for (const RankQuery& query : queries) {
    query_floats += query.query.size();
    scores += static_cast<size_t>(query.view->blocks);
    results += static_cast<size_t>(std::min(query.k, query.view->blocks));
    if (first_chunk.emplace(query.view.get(), chunks).second) chunks += query.view->chunks.size();
  }
  Layout device, shared;
  const size_t device_queries = device.Place<float>(query_floats);
  const size_t device_scores = device.Place<float>(scores);
  const size_t shared_queries = shared.Place<float>(query_floats);
  const size_t shared_chunks = shared.Place<RepresentativeChunk>(chunks);
  const size_t score_items = shared.Place<ScoreItem>(queries.size());
  const size_t top_items = shared.Place<TopKItem>(queries.size());
  const size_t result_indices = shared.Place<int64_t>(results);
  const size_t result_scores = shared.Place<float>(results);
  INFLLM_RETURN_IF_ERROR(Reserve(workspace.device, device.bytes(),
                                 [&](size_t bytes) { return backend_.Allocate(bytes); }));
  INFLLM_RETURN_IF_ERROR(Reserve(workspace.shared, shared.bytes(),
                                 [&](size_t bytes) { return backend_.AllocateHost(bytes); }));

  auto* const all_chunks = At<RepresentativeChunk>(workspace.shared, shared_chunks);
  for (const auto& [view, first] : first_chunk) {
    std::copy(view->chunks.begin(), view->chunks.end(), all_chunks + first);
  }
  auto* const score = At<ScoreItem>(workspace.shared, score_items);
  auto* const top = At<TopKItem>(workspace.shared, top_items);
  auto* query_out = At<float>(workspace.shared, shared_queries);
  const auto* query_in = At<float>(workspace.device, device_queries);
  auto* scored = At<float>(workspace.device, device_scores);
  auto* index = At<int64_t>(workspace.shared, result_indices);
  auto* best_score = At<float>(workspace.shared, result_scores);
  for (size_t i = 0; i < queries.size(); ++i) {
    const RankQuery& query = queries[i];
    const int64_t blocks = query.view->blocks, k = std::min(query.k, blocks);
    std::copy(query.query.begin(), query.query.end(), query_out);
    score[i] = {.query = query_in,
                .chunks = all_chunks + first_chunk[query.view.get()],
                .chunk_count = static_cast<int64_t>(query.view->chunks.size()),
                .out = scored};
    top[i] = {.scores = scored, .n = blocks, .k = k, .out_index = index, .out_score = best_score};
    query_out += query.query.size();
    query_in += query.query.size();
    scored += blocks;
    index += k;
    best_score += k;
  }

  INFLLM_RETURN_IF_ERROR(
      backend_.Copy(workspace.stream, At<float>(workspace.device, device_queries),
                    At<float>(workspace.shared, shared_queries), query_floats * sizeof(float)));
  for (size_t first = 0, end = 0; first < queries.size(); first = end) {
    while (end < queries.size() && ShapeOf(queries[end]) == ShapeOf(queries[first])) ++end;
    const Geometry& geometry = *queries[first].geometry;
    const auto count = static_cast<int64_t>(end - first);
    INFLLM_RETURN_IF_ERROR(backend_.SelectBlocks(
        workspace.stream,
        {.score = {.items = score + first,
                   .count = count,
                   .kind = geometry.representative,
                   .dtype = geometry.dtype,
                   .q_heads = geometry.q_heads,
                   .kv_heads = geometry.kv_heads,
                   .head_dim = geometry.head_dim,
                   .scale = 1.0f / std::sqrt(static_cast<float>(geometry.head_dim)),
                   .scoring = scoring},
         .best = {.items = top + first, .count = count}}));
  }
  INFLLM_RETURN_IF_ERROR(backend_.Synchronize(workspace.stream));

  for (size_t i = 0; i < queries.size(); ++i) {
    best[i].reserve(static_cast<size_t>(top[i].k));
    for (int64_t j = 0; j < top[i].k; ++j) {
      best[i].push_back({.index = top[i].out_index[j], .score = top[i].out_score[j]});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Selector::Workspace>> Selector::TakeWorkspace() {
  {
    const std::lock_guard lock(mu_);
    if (!idle_.empty()) {
      std::unique_ptr<Workspace> workspace = std::move(idle_.back());
      idle_.pop_back();
      return workspace;
    }
  }
  auto workspace = std::make_unique<Workspace>();
  INFLLM_ASSIGN_OR_RETURN(workspace->stream, backend_.NewStream());
  return workspace;
}

// Streams live as long as the backend, so even a workspace without memory is kept.
void Selector::ReturnWorkspace(std::unique_ptr<Workspace> workspace) {
  const std::lock_guard lock(mu_);
  if (idle_.size() < kWarmWorkspaces) {
    idle_.push_back(std::move(workspace));
  } else {
    workspace->device = {};
    workspace->shared = {};
    idle_.insert(idle_.begin(), std::move(workspace));
  }
}

}  // namespace infllm::memstore
