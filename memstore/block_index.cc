#include "memstore/block_index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::memstore {
namespace {

// A chunk holds as many blocks as the index held before it, within these bounds: small contexts
// stay small, large ones have few chunks.
constexpr int64_t kMinChunkBlocks = 8;
constexpr int64_t kMaxChunkBytes = 4 << 20;

class ChunkedIndex final : public BlockIndex {
 public:
  ChunkedIndex(kernels::Backend& backend, int64_t q_heads, int64_t head_dim,
               std::atomic<int64_t>& allocated_bytes)
      : backend_(backend),
        q_heads_(q_heads),
        head_dim_(head_dim),
        allocated_bytes_(allocated_bytes) {}

  int64_t size() const override { return size_; }
  size_t size_bytes() const override { return size_ * width() * sizeof(float); }

  absl::Status Add(std::span<const float> representatives) override {
    if (representatives.size() % width() != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("representatives have ", representatives.size(), " floats, which is not a ",
                       "multiple of q_heads * head_dim = ", width()));
    }
    while (!representatives.empty()) {
      if (room_ == 0) INFLLM_RETURN_IF_ERROR(AddChunk(representatives.size() / width()));
      const size_t floats = std::min(representatives.size(), static_cast<size_t>(room_) * width());
      View& last = views_.back();
      std::memcpy(last.storage->data() + last.blocks * width(), representatives.data(),
                  floats * sizeof(float));
      const int64_t blocks = static_cast<int64_t>(floats / width());
      last.blocks += blocks;
      room_ -= blocks;
      size_ += blocks;
      representatives = representatives.subspan(floats);
    }
    return absl::OkStatus();
  }

  std::span<const float> representative(int64_t block) const override {
    INFLLM_CHECK(block >= 0 && block < size_);
    const auto view = std::upper_bound(views_.begin(), views_.end(), block,
                                       [](int64_t b, const View& v) { return b < v.first; }) -
                      1;
    return {view->storage->data() + (block - view->first) * width(), width()};
  }

  absl::StatusOr<std::vector<ScoredBlock>> TopK(std::span<const float> query, int64_t k,
                                                kernels::Scoring scoring) override {
    if (query.size() != width()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "query has ", query.size(), " floats, expected q_heads * head_dim = ", width()));
    }
    k = std::min(k, size_);
    if (k <= 0) return std::vector<ScoredBlock>();
    chunks_.clear();
    for (const View& view : views_) {
      chunks_.push_back({.data = view.storage->data(), .blocks = view.blocks});
    }
    scores_.resize(size_);
    INFLLM_RETURN_IF_ERROR(backend_.ScoreBlocks({
        .query = query.data(),
        .chunks = chunks_,
        .out = scores_.data(),
        .q_heads = q_heads_,
        .head_dim = head_dim_,
        .scale = 1.0f / std::sqrt(static_cast<float>(head_dim_)),
        .scoring = scoring,
    }));
    std::vector<int64_t> best(k);
    INFLLM_RETURN_IF_ERROR(backend_.TopK(scores_.data(), size_, k, best));
    std::vector<ScoredBlock> result;
    result.reserve(k);
    for (int64_t index : best) result.push_back({.index = index, .score = scores_[index]});
    return result;
  }

  // Shares every chunk. The last one may have room: it stays the original's to fill, behind the
  // blocks that the fork can see; the fork opens a chunk of its own.
  std::unique_ptr<BlockIndex> Fork() const override {
    auto fork = std::make_unique<ChunkedIndex>(backend_, q_heads_, head_dim_, allocated_bytes_);
    fork->views_ = views_;
    fork->size_ = size_;
    return fork;
  }

 private:
  class Storage {
   public:
    Storage(kernels::Buffer buffer, std::atomic<int64_t>& allocated_bytes)
        : buffer_(std::move(buffer)), allocated_bytes_(allocated_bytes) {
      allocated_bytes_ += static_cast<int64_t>(buffer_.size_bytes());
    }
    ~Storage() { allocated_bytes_ -= static_cast<int64_t>(buffer_.size_bytes()); }
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;
    float* data() const { return buffer_.as<float>(); }

   private:
    kernels::Buffer buffer_;
    std::atomic<int64_t>& allocated_bytes_;
  };
  struct View {
    std::shared_ptr<const Storage> storage;  // shared with forks
    int64_t first = 0;                       // index of its first block
    int64_t blocks = 0;                      // filled, as far as this index can see
  };

  size_t width() const { return static_cast<size_t>(q_heads_ * head_dim_); }

  absl::Status AddChunk(int64_t wanted_blocks) {
    const int64_t block_bytes = static_cast<int64_t>(width() * sizeof(float));
    const int64_t most = std::max(kMinChunkBlocks, kMaxChunkBytes / block_bytes);
    const int64_t blocks = std::clamp(std::max(size_, wanted_blocks), kMinChunkBlocks, most);
    INFLLM_ASSIGN_OR_RETURN(kernels::Buffer buffer, backend_.Allocate(blocks * block_bytes));
    views_.push_back({.storage = std::make_shared<Storage>(std::move(buffer), allocated_bytes_),
                      .first = size_});
    room_ = blocks;
    return absl::OkStatus();
  }

  kernels::Backend& backend_;
  const int64_t q_heads_;
  const int64_t head_dim_;
  std::atomic<int64_t>& allocated_bytes_;
  std::vector<View> views_;
  int64_t size_ = 0;
  int64_t room_ = 0;  // blocks that the last chunk can still take from this index
  std::vector<kernels::RepresentativeChunk> chunks_;  // scratch of TopK
  std::vector<float> scores_;                         // scratch of TopK
};

}  // namespace

std::unique_ptr<BlockIndex> NewBlockIndex(kernels::Backend& backend, int64_t q_heads,
                                          int64_t head_dim, std::atomic<int64_t>& allocated_bytes) {
  return std::make_unique<ChunkedIndex>(backend, q_heads, head_dim, allocated_bytes);
}

}  // namespace infllm::memstore
