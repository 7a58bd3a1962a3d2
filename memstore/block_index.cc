#include "memstore/block_index.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::memstore {
namespace {

// A chunk holds as many blocks as the index added before it, within these bounds: small contexts
// and small forks of large ones stay small, large ones have few chunks.
constexpr int64_t kMinChunkBlocks = 8;
constexpr int64_t kMaxChunkBytes = 4 << 20;

}  // namespace

BlockIndex::Chunk::Chunk(kernels::Buffer buffer, size_t codes_at,
                         std::atomic<int64_t>& allocated_bytes)
    : buffer_(std::move(buffer)), codes_at_(codes_at), allocated_bytes_(allocated_bytes) {
  allocated_bytes_ += static_cast<int64_t>(buffer_.size_bytes());
}

BlockIndex::Chunk::~Chunk() { allocated_bytes_ -= static_cast<int64_t>(buffer_.size_bytes()); }

BlockIndex::BlockIndex(kernels::Backend& backend, kernels::Stream stream, const Geometry& geometry,
                       std::atomic<int64_t>& allocated_bytes)
    : backend_(&backend),
      stream_(stream),
      geometry_(geometry),
      floats_(geometry.representative_floats()),
      block_bytes_(floats_ * kernels::SizeOf(geometry.dtype)),
      coded_(geometry.representative == kernels::RepresentativeKind::kBounds &&
             backend.EncodeBounds(stream, EncodeArgs()).ok()),
      allocated_bytes_(&allocated_bytes),
      chunks_(std::make_shared<const Chunks>()) {}

absl::Status BlockIndex::Add(std::span<const float> representatives) {
  if (representatives.size() % floats_ != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("representatives have ", representatives.size(), " floats, which is not a ",
                     "multiple of slots * heads * head_dim = ", floats_));
  }
  return AddKept(Converted(representatives));
}

absl::Status BlockIndex::AddKept(std::span<const std::byte> kept) {
  INFLLM_CHECK(kept.size() % block_bytes_ == 0);
  for (std::span<const std::byte> rest = kept; !rest.empty();) {
    if (room_ == 0) INFLLM_RETURN_IF_ERROR(AddChunk(rest.size() / block_bytes_));
    Extent& last = extents_.back();
    const size_t bytes = std::min(rest.size(), static_cast<size_t>(room_) * block_bytes_);
    INFLLM_RETURN_IF_ERROR(backend_->Copy(
        stream_, chunks_->back()->data() + last.blocks * block_bytes_, rest.data(), bytes));
    const auto blocks = static_cast<int64_t>(bytes / block_bytes_);
    INFLLM_RETURN_IF_ERROR(EncodeLast(last.blocks + blocks));
    // Here, because `kept` must stay until then, and readers do not wait for this stream.
    INFLLM_RETURN_IF_ERROR(backend_->Synchronize(stream_));
    last.blocks += blocks;
    room_ -= blocks;
    size_ += blocks;
    rest = rest.subspan(bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> BlockIndex::Holds(int64_t block, std::span<const float> representative) const {
  INFLLM_CHECK(block >= 0 && block < size_);
  if (representative.size() != floats_) return false;
  INFLLM_ASSIGN_OR_RETURN(const std::string kept, Read(block, 1));
  return std::ranges::equal(std::as_bytes(std::span(kept)), Converted(representative));
}

size_t BlockIndex::ExtentOf(int64_t block) const {
  const auto after = std::upper_bound(extents_.begin(), extents_.end(), block,
                                      [](int64_t b, const Extent& e) { return b < e.first; });
  return static_cast<size_t>(after - extents_.begin()) - 1;
}

absl::StatusOr<std::string> BlockIndex::Read(int64_t first, int64_t blocks) const {
  INFLLM_CHECK(first >= 0 && blocks >= 0 && first + blocks <= size_);
  std::string kept(static_cast<size_t>(blocks) * block_bytes_, '\0');
  for (int64_t done = 0; done < blocks;) {
    const size_t i = ExtentOf(first + done);
    const int64_t at = first + done - extents_[i].first;
    const int64_t count = std::min(blocks - done, extents_[i].blocks - at);
    INFLLM_RETURN_IF_ERROR(backend_->Copy(stream_, kept.data() + done * block_bytes_,
                                          (*chunks_)[i]->data() + at * block_bytes_,
                                          static_cast<size_t>(count) * block_bytes_));
    done += count;
  }
  INFLLM_RETURN_IF_ERROR(backend_->Synchronize(stream_));
  return kept;
}

IndexView BlockIndex::View() const {
  IndexView view{.blocks = size_, .pin = chunks_};
  view.chunks.reserve(extents_.size());
  for (size_t i = 0; i < extents_.size(); ++i) {
    const Chunk& chunk = *(*chunks_)[i];
    view.chunks.push_back({.data = chunk.data(),
                           .blocks = extents_[i].blocks,
                           .codes = coded_ ? chunk.codes() : nullptr});
  }
  return view;
}

// The last chunk may have room: it stays the original's to fill, behind the blocks that the fork
// can see; the fork opens a chunk of its own.
BlockIndex BlockIndex::Fork(int64_t blocks) const {
  INFLLM_CHECK(blocks >= 0 && blocks <= size_);
  BlockIndex fork = *this;
  fork.room_ = 0;
  fork.shared_ = blocks;
  if (blocks == size_) return fork;
  fork.size_ = blocks;
  fork.extents_.resize(blocks == 0 ? 0 : ExtentOf(blocks - 1) + 1);
  if (blocks > 0) fork.extents_.back().blocks = blocks - fork.extents_.back().first;
  fork.chunks_ =
      std::make_shared<const Chunks>(chunks_->begin(), chunks_->begin() + fork.extents_.size());
  return fork;
}

void BlockIndex::Join(const BlockIndex& fork) {
  Chunks chunks = *chunks_;
  for (size_t i = 0; i < fork.extents_.size(); ++i) {
    extents_.push_back(
        {.first = size_ + fork.extents_[i].first, .blocks = fork.extents_[i].blocks});
    chunks.push_back((*fork.chunks_)[i]);
  }
  chunks_ = std::make_shared<const Chunks>(std::move(chunks));
  size_ += fork.size_;
  shared_ += fork.size_;
  room_ = 0;
}

absl::Status BlockIndex::AddChunk(int64_t wanted_blocks) {
  const auto block_bytes = static_cast<int64_t>(block_bytes_);
  const int64_t most = std::max(int64_t{1}, kMaxChunkBytes / block_bytes);
  const int64_t blocks =
      std::clamp(std::max(size_ - shared_, wanted_blocks), std::min(kMinChunkBlocks, most), most);
  const size_t codes_at = (static_cast<size_t>(blocks) * block_bytes_ + 63) / 64 * 64;
  const int64_t runs = coded_ ? blocks / kernels::kRunBlocks : 0;
  const size_t code_bytes =
      static_cast<size_t>(runs) * kernels::RunCodeBytes(static_cast<int64_t>(floats_));
  INFLLM_ASSIGN_OR_RETURN(
      kernels::Buffer buffer,
      backend_->Allocate(runs > 0 ? codes_at + code_bytes : blocks * block_bytes_));
  Chunks chunks = *chunks_;
  chunks.push_back(std::make_shared<const Chunk>(std::move(buffer), codes_at, *allocated_bytes_));
  chunks_ = std::make_shared<const Chunks>(std::move(chunks));
  extents_.push_back({.first = size_});
  room_ = blocks;
  return absl::OkStatus();
}

kernels::EncodeBoundsArgs BlockIndex::EncodeArgs() const {
  return {.dtype = geometry_.dtype, .kv_heads = geometry_.kv_heads, .head_dim = geometry_.head_dim};
}

absl::Status BlockIndex::EncodeLast(int64_t blocks) {
  const int64_t first = extents_.back().blocks / kernels::kRunBlocks;
  kernels::EncodeBoundsArgs args = EncodeArgs();
  args.runs = blocks / kernels::kRunBlocks - first;
  if (!coded_ || args.runs == 0) return absl::OkStatus();
  const Chunk& chunk = *chunks_->back();
  args.bounds = chunk.data() + first * kernels::kRunBlocks * block_bytes_;
  args.codes = chunk.codes() + first * kernels::RunCodeBytes(static_cast<int64_t>(floats_));
  return backend_->EncodeBounds(stream_, args);
}

std::vector<std::byte> BlockIndex::Converted(std::span<const float> representatives) const {
  std::vector<std::byte> kept(representatives.size() * kernels::SizeOf(geometry_.dtype));
  if (geometry_.dtype == kernels::DType::kF32) {
    std::ranges::copy(std::as_bytes(representatives), kept.begin());
  } else {
    std::transform(representatives.begin(), representatives.end(),
                   reinterpret_cast<uint16_t*>(kept.data()),
                   [](float value) { return kernels::BF16(value).bits; });
  }
  return kept;
}

}  // namespace infllm::memstore
