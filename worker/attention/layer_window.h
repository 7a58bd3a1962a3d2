#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace infllm::worker {

// The keys and values that one layer of one context keeps on its device: the first `sink_tokens`
// tokens, and after them pages of `page_tokens` tokens, of which the oldest can be dropped.
// Attention reads the pages in place (kernels::KvSegment). Not thread-safe.
class LayerWindow {
 public:
  struct Shape {
    int64_t sink_tokens = 0;
    int64_t page_tokens = 0;
    int64_t q_heads = 0;
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
    kernels::DType dtype = kernels::DType::kF32;
    bool raw_pages = false;  // pages keep un-rotated keys too: they will become memory blocks
    bool raw_sinks = false;  // the sinks do
    bool mass = false;       // pages accumulate the attention probability that their tokens draw
  };
  enum class Keys : uint8_t { kRotated, kRaw };

  // `backend` must outlive the object.
  LayerWindow(kernels::Backend& backend, const Shape& shape) : backend_(&backend), shape_(shape) {}

  // Adds tokens at the end. k (raw), k_rotated and v are [tokens, kv_heads, head_dim].
  absl::Status Append(const float* k, const float* k_rotated, const float* v, int64_t tokens);

  // Tokens appended so far, dropped ones included.
  int64_t tokens() const { return tokens_; }
  // Pages are counted from the first one after the sinks, dropped ones included.
  int64_t first_page() const { return first_page_; }
  int64_t full_pages() const {
    return tokens_ <= shape_.sink_tokens ? 0 : (tokens_ - shape_.sink_tokens) / shape_.page_tokens;
  }
  int64_t page_begin(int64_t page) const { return shape_.sink_tokens + page * shape_.page_tokens; }
  int64_t page_end(int64_t page) const { return page_begin(page + 1); }
  // Raw keys, then values: [2, kv_heads, page_tokens, head_dim]. REQUIRES: raw_pages, page kept.
  const std::byte* page_record(int64_t page) const;
  // [q_heads, page_tokens], null without mass. REQUIRES: page kept.
  const float* page_mass(int64_t page) const;
  void DropPagesBefore(int64_t page);

  // Appends segments over the kept tokens of [begin, end), sinks first. With `mass`, pages collect.
  void AddSegments(int64_t begin, int64_t end, Keys keys, bool mass,
                   std::vector<kernels::KvSegment>& out) const;

  // Shares the full pages and copies the one that is still growing, and all mass.
  absl::StatusOr<LayerWindow> Fork() const;

  int64_t size_bytes() const;

 private:
  // `kv` holds raw keys, then values; without raw keys, values only.
  struct Page {
    kernels::Buffer k_rotated;
    kernels::Buffer kv;
    size_t value_offset = 0;
  };
  struct Slot {
    std::shared_ptr<Page> page;  // shared by forks of the context; full pages never change
    kernels::Buffer mass;        // [q_heads, page_tokens] f32, this context's own
  };

  absl::StatusOr<std::shared_ptr<Page>> NewPage(int64_t capacity, bool raw) const;
  absl::Status AddSlot();
  absl::Status Copy(const kernels::Buffer& from, kernels::Buffer& to) const;
  void AddSegment(const Slot& slot, int64_t capacity, int64_t slot_begin, int64_t begin,
                  int64_t end, Keys keys, bool mass, std::vector<kernels::KvSegment>& out) const;

  kernels::Backend* backend_;
  Shape shape_;
  int64_t tokens_ = 0;
  int64_t first_page_ = 0;
  Slot sinks_;
  std::deque<Slot> pages_;
  std::vector<Slot> free_;  // dropped slots, for reuse
};

}  // namespace infllm::worker
