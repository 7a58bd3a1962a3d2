#include "worker/attention/far_keys.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/attention/rotation.h"

namespace infllm::worker {

using kernels::KvSegment;

absl::Status FarKeys::Collect(const LayerWindow& window, const memstore::Selection& selection,
                              std::span<const std::byte* const> records, int64_t end,
                              AttentionScratch& scratch) {
  const AttentionOptions& options = context_->options;
  const bool sequential = options.far_positions == FarPositions::kSequential;
  // Tokens that the last query no longer has in its window.
  const int64_t far_end = end - options.n_local;
  segments_.clear();
  block_begins_.clear();
  window.AddSegments(0, std::min(far_end, options.n_init), LayerWindow::Keys::kRaw, false,
                     segments_);
  sinks_ = segments_.size();
  window.AddSegments(options.n_init, far_end,
                     sequential ? LayerWindow::Keys::kRotated : LayerWindow::Keys::kRaw, false,
                     segments_);
  for (size_t i = 0; i < selection.blocks.size(); ++i) {
    block_begins_.push_back(segments_.size());
    INFLLM_RETURN_IF_ERROR(AddBlock(selection.blocks[i], records[i], window));
  }
  block_begins_.push_back(segments_.size());
  if (!sequential) return absl::OkStatus();
  return RotateSegments(window, static_cast<int64_t>(selection.blocks.size()), scratch);
}

absl::Status FarKeys::AddBlock(const memstore::SelectedBlock& block, const std::byte* record,
                               const LayerWindow& window) {
  const int64_t heads = context_->model.kv_heads, tokens = context_->options.block_tokens;
  const int64_t head_stride = tokens * context_->model.head_dim;
  KvSegment segment{
      .k = record,
      .v = record + static_cast<size_t>(heads * head_stride) * SizeOf(context_->kv_dtype),
      .head_stride = head_stride,
      .position = window.page_begin(block.index),
      .tokens = tokens};
  const uint64_t all = heads >= 64 ? ~uint64_t{0} : (uint64_t{1} << heads) - 1;
  const uint64_t selecting = block.kv_heads & all;
  if (selecting == 0) {
    return absl::InternalError(absl::StrCat("the memory store returned block ", block.index,
                                            ", which no KV head has selected"));
  }
  if (selecting == all) {
    segments_.push_back(segment);
    return absl::OkStatus();
  }
  for (int64_t head = 0; head < heads; ++head) {
    if ((selecting >> head & 1) == 0) continue;
    segment.kv_head = head;
    segments_.push_back(segment);
  }
  return absl::OkStatus();
}

// Where KV heads select for themselves, it is the union of their blocks that is put in a row: a
// head sees gaps where only others read, but all heads agree on where a block stands.
absl::Status FarKeys::RotateSegments(const LayerWindow& window, int64_t blocks,
                                     AttentionScratch& scratch) {
  if (sinks_ == 0 && blocks == 0) return absl::OkStatus();
  const AttentionOptions& options = context_->options;
  const int64_t dim = context_->model.head_dim;
  const int64_t rows = options.n_init + blocks * options.block_tokens;
  const int64_t base = window.page_begin(window.first_page());
  INFLLM_ASSIGN_OR_RETURN(const float* table, RopeRows(*context_->backend, context_->rope,
                                                       base - rows, rows, scratch.far_rope));
  const auto page_bytes = [&](int64_t tokens) {
    return static_cast<size_t>(context_->model.kv_heads * tokens * dim) *
           SizeOf(context_->kv_dtype);
  };
  const size_t sink_bytes = page_bytes(options.n_init);
  const size_t block_bytes = page_bytes(options.block_tokens);
  INFLLM_RETURN_IF_ERROR(Reserve(*context_->backend,
                                 sink_bytes + static_cast<size_t>(blocks) * block_bytes,
                                 scratch.far_keys));
  // Sinks lie at the start of their page and of the row: they are far from the first one on.
  for (size_t s = 0; s < sinks_; ++s) {
    INFLLM_RETURN_IF_ERROR(RotateSegment(table, scratch.far_keys.data(), segments_[s]));
  }
  table += options.n_init * dim;
  std::byte* page = scratch.far_keys.data() + sink_bytes;
  for (int64_t i = 0; i < blocks; ++i) {
    for (size_t s = block_begins_[i]; s < block_begins_[i + 1]; ++s) {
      INFLLM_RETURN_IF_ERROR(RotateSegment(table, page, segments_[s]));
    }
    table += options.block_tokens * dim;
    page += block_bytes;
  }
  return absl::OkStatus();
}

// Into `page`, laid out like the page that the segment is of; only the heads that read it.
absl::Status FarKeys::RotateSegment(const float* table, std::byte* page, KvSegment& segment) {
  const int64_t head = std::max<int64_t>(segment.kv_head, 0);
  const size_t offset =
      static_cast<size_t>(head * segment.head_stride) * SizeOf(context_->kv_dtype);
  INFLLM_RETURN_IF_ERROR(
      context_->backend->RotatePage({.k = static_cast<const std::byte*>(segment.k) + offset,
                                     .table = table,
                                     .out = page + offset,
                                     .dtype = context_->kv_dtype,
                                     .head_stride = segment.head_stride,
                                     .out_head_stride = segment.head_stride,
                                     .tokens = segment.tokens,
                                     .kv_heads = segment.kv_head < 0 ? context_->model.kv_heads : 1,
                                     .head_dim = context_->model.head_dim}));
  segment.k = page;
  return absl::OkStatus();
}

void FarKeys::SumByBlock(std::span<const float> segment_sums,
                         std::vector<float>& block_sums) const {
  block_sums.clear();
  for (size_t i = 0; i + 1 < block_begins_.size(); ++i) {
    block_sums.push_back(std::accumulate(segment_sums.begin() + block_begins_[i],
                                         segment_sums.begin() + block_begins_[i + 1], 0.0f));
  }
}

}  // namespace infllm::worker
