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
  ChunkedIndex(kernels::Backend& backend, const Geometry& geometry,
               std::atomic<int64_t>& allocated_bytes)
      : backend_(backend),
        geometry_(geometry),
        floats_(geometry.representative_floats()),
        block_bytes_(floats_ * kernels::SizeOf(geometry.dtype)),
        allocated_bytes_(allocated_bytes) {}

  int64_t size() const override { return size_; }
  size_t size_bytes() const override { return size_ * block_bytes_; }

  absl::Status Add(std::span<const float> representatives) override {
    if (representatives.size() % floats_ != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("representatives have ", representatives.size(), " floats, which is not a ",
                       "multiple of slots * heads * head_dim = ", floats_));
    }
    while (!representatives.empty()) {
      if (room_ == 0) INFLLM_RETURN_IF_ERROR(AddChunk(representatives.size() / floats_));
      const size_t blocks = std::min(representatives.size() / floats_, static_cast<size_t>(room_));
      View& last = views_.back();
      Store(representatives.first(blocks * floats_),
            last.storage->data() + last.blocks * block_bytes_);
      last.blocks += static_cast<int64_t>(blocks);
      room_ -= static_cast<int64_t>(blocks);
      size_ += static_cast<int64_t>(blocks);
      representatives = representatives.subspan(blocks * floats_);
    }
    return absl::OkStatus();
  }

  bool Holds(int64_t block, std::span<const float> representative) const override {
    INFLLM_CHECK(block >= 0 && block < size_);
    if (representative.size() != floats_) return false;
    const auto view = std::upper_bound(views_.begin(), views_.end(), block,
                                       [](int64_t b, const View& v) { return b < v.first; }) -
                      1;
    const std::byte* kept = view->storage->data() + (block - view->first) * block_bytes_;
    if (geometry_.dtype == kernels::DType::kF32) {
      return std::memcmp(kept, representative.data(), block_bytes_) == 0;
    }
    const auto* bits = reinterpret_cast<const uint16_t*>(kept);
    return std::equal(representative.begin(), representative.end(), bits,
                      [](float value, uint16_t b) { return kernels::BF16(value).bits == b; });
  }

  absl::StatusOr<std::vector<ScoredBlock>> TopK(std::span<const float> query, int64_t k,
                                                kernels::Scoring scoring) override {
    if (query.size() != geometry_.query_floats()) {
      return absl::InvalidArgumentError(
          absl::StrCat("query has ", query.size(),
                       " floats, expected q_heads * head_dim = ", geometry_.query_floats()));
    }
    std::vector<ScoredBlock> result;
    k = std::min(k, size_);
    if (k <= 0) return result;
    INFLLM_RETURN_IF_ERROR(ScoreAll(query, scoring));
    best_.resize(k);
    INFLLM_RETURN_IF_ERROR(backend_.TopK(scores_.data(), size_, k, best_));
    result.reserve(k);
    for (int64_t index : best_) result.push_back({.index = index, .score = scores_[index]});
    return result;
  }

  // Shares every chunk. The last one may have room: it stays the original's to fill, behind the
  // blocks that the fork can see; the fork opens a chunk of its own.
  std::unique_ptr<BlockIndex> Fork() const override {
    auto fork = std::make_unique<ChunkedIndex>(backend_, geometry_, allocated_bytes_);
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
    std::byte* data() const { return buffer_.as<std::byte>(); }

   private:
    kernels::Buffer buffer_;
    std::atomic<int64_t>& allocated_bytes_;
  };
  struct View {
    std::shared_ptr<const Storage> storage;  // shared with forks
    int64_t first = 0;                       // index of its first block
    int64_t blocks = 0;                      // filled, as far as this index can see
  };

  // scores_ of the query.
  absl::Status ScoreAll(std::span<const float> query, kernels::Scoring scoring) {
    chunks_.clear();
    for (const View& view : views_) {
      chunks_.push_back({.data = view.storage->data(), .blocks = view.blocks});
    }
    scores_.resize(size_);
    return backend_.ScoreBlocks({
        .query = query.data(),
        .chunks = chunks_,
        .out = scores_.data(),
        .kind = geometry_.representative,
        .dtype = geometry_.dtype,
        .q_heads = geometry_.q_heads,
        .kv_heads = geometry_.kv_heads,
        .head_dim = geometry_.head_dim,
        .scale = 1.0f / std::sqrt(static_cast<float>(geometry_.head_dim)),
        .scoring = scoring,
    });
  }

  // Writes to `out` in the geometry's dtype.
  void Store(std::span<const float> representatives, std::byte* out) const {
    if (geometry_.dtype == kernels::DType::kF32) {
      std::memcpy(out, representatives.data(), representatives.size_bytes());
      return;
    }
    std::transform(representatives.begin(), representatives.end(), reinterpret_cast<uint16_t*>(out),
                   [](float value) { return kernels::BF16(value).bits; });
  }

  absl::Status AddChunk(int64_t wanted_blocks) {
    const auto block_bytes = static_cast<int64_t>(block_bytes_);
    const int64_t most = std::max(int64_t{1}, kMaxChunkBytes / block_bytes);
    const int64_t blocks =
        std::clamp(std::max(size_, wanted_blocks), std::min(kMinChunkBlocks, most), most);
    INFLLM_ASSIGN_OR_RETURN(kernels::Buffer buffer, backend_.Allocate(blocks * block_bytes));
    views_.push_back({.storage = std::make_shared<Storage>(std::move(buffer), allocated_bytes_),
                      .first = size_});
    room_ = blocks;
    return absl::OkStatus();
  }

  kernels::Backend& backend_;
  const Geometry geometry_;
  const size_t floats_;       // of one block's representative
  const size_t block_bytes_;  // of it as it is kept
  std::atomic<int64_t>& allocated_bytes_;
  std::vector<View> views_;
  int64_t size_ = 0;
  int64_t room_ = 0;  // blocks that the last chunk can still take from this index

  // Scratch of TopK.
  std::vector<kernels::RepresentativeChunk> chunks_;
  std::vector<float> scores_;  // [size_]
  std::vector<int64_t> best_;
};

}  // namespace

std::unique_ptr<BlockIndex> NewBlockIndex(kernels::Backend& backend, const Geometry& geometry,
                                          std::atomic<int64_t>& allocated_bytes) {
  return std::make_unique<ChunkedIndex>(backend, geometry, allocated_bytes);
}

}  // namespace infllm::memstore
