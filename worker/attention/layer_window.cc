#include "worker/attention/layer_window.h"

#include <algorithm>

#include "kernels/core/status_macros.h"

namespace infllm::worker {

using kernels::Buffer;
using kernels::KvSegment;

absl::StatusOr<std::shared_ptr<LayerWindow::Page>> LayerWindow::NewPage(int64_t capacity,
                                                                        bool raw) const {
  // Whole floats, so that Copy() may use a float op.
  const size_t bytes = size_t(shape_.kv_heads * capacity * shape_.head_dim) * SizeOf(shape_.dtype);
  const size_t rounded = (bytes + 3) / 4 * 4;
  auto page = std::make_shared<Page>();
  page->value_offset = raw ? bytes : 0;
  INFLLM_ASSIGN_OR_RETURN(page->k_rotated, backend_->Allocate(rounded));
  INFLLM_ASSIGN_OR_RETURN(page->kv, backend_->Allocate(raw ? (2 * bytes + 3) / 4 * 4 : rounded));
  return page;
}

absl::Status LayerWindow::AddSlot() {
  Slot slot;
  if (!free_.empty()) {
    slot = std::move(free_.back());
    free_.pop_back();
  }
  if (slot.page == nullptr) {
    INFLLM_ASSIGN_OR_RETURN(slot.page, NewPage(shape_.page_tokens, shape_.raw_pages));
  }
  if (shape_.mass) {
    const size_t bytes = size_t(shape_.q_heads * shape_.page_tokens) * sizeof(float);
    if (slot.mass.data() == nullptr) {
      INFLLM_ASSIGN_OR_RETURN(slot.mass, backend_->Allocate(bytes));
    }
    INFLLM_RETURN_IF_ERROR(backend_->Zero(slot.mass.data(), bytes));
  }
  pages_.push_back(std::move(slot));
  return absl::OkStatus();
}

absl::Status LayerWindow::Append(const float* k, const float* k_rotated, const float* v,
                                 int64_t tokens) {
  const int64_t row = shape_.kv_heads * shape_.head_dim;
  while (tokens > 0) {
    const bool is_sink = tokens_ < shape_.sink_tokens;
    const int64_t capacity = is_sink ? shape_.sink_tokens : shape_.page_tokens;
    const int64_t offset = is_sink ? tokens_ : (tokens_ - shape_.sink_tokens) % shape_.page_tokens;
    if (is_sink && sinks_.page == nullptr) {
      INFLLM_ASSIGN_OR_RETURN(sinks_.page, NewPage(capacity, shape_.raw_sinks));
    } else if (!is_sink && offset == 0) {
      INFLLM_RETURN_IF_ERROR(AddSlot());
    }
    const Page& page = is_sink ? *sinks_.page : *pages_.back().page;
    const int64_t count = std::min(tokens, capacity - offset);
    const size_t byte_offset = size_t(offset * shape_.head_dim) * SizeOf(shape_.dtype);
    kernels::StorePageArgs args{.dtype = shape_.dtype,
                                .head_stride = capacity * shape_.head_dim,
                                .tokens = count,
                                .heads = shape_.kv_heads,
                                .head_dim = shape_.head_dim};
    args.src = k_rotated;
    args.dst = page.k_rotated.data() + byte_offset;
    INFLLM_RETURN_IF_ERROR(backend_->StorePage(args));
    args.src = v;
    args.dst = page.kv.data() + page.value_offset + byte_offset;
    INFLLM_RETURN_IF_ERROR(backend_->StorePage(args));
    if (page.value_offset > 0) {
      args.src = k;
      args.dst = page.kv.data() + byte_offset;
      INFLLM_RETURN_IF_ERROR(backend_->StorePage(args));
    }
    tokens_ += count;
    tokens -= count;
    k += count * row;
    k_rotated += count * row;
    v += count * row;
  }
  return absl::OkStatus();
}

const std::byte* LayerWindow::page_record(int64_t page) const {
  INFLLM_CHECK(shape_.raw_pages && page >= first_page_);
  return pages_[page - first_page_].page->kv.data();
}

const float* LayerWindow::page_mass(int64_t page) const {
  INFLLM_CHECK(page >= first_page_);
  return pages_[page - first_page_].mass.as<float>();
}

void LayerWindow::DropPagesBefore(int64_t page) {
  while (first_page_ < page && !pages_.empty()) {
    Slot slot = std::move(pages_.front());
    pages_.pop_front();
    ++first_page_;
    if (slot.page.use_count() > 1) slot.page.reset();  // a fork reads it still
    if (free_.size() < 2) free_.push_back(std::move(slot));
  }
}

void LayerWindow::AddSegment(const Slot& slot, int64_t capacity, int64_t slot_begin, int64_t begin,
                             int64_t end, Keys keys, bool mass, std::vector<KvSegment>& out) const {
  const int64_t from = std::max(begin, slot_begin);
  const int64_t to = std::min(end, slot_begin + capacity);
  if (from >= to) return;
  const Page& page = *slot.page;
  const size_t byte_offset = size_t((from - slot_begin) * shape_.head_dim) * SizeOf(shape_.dtype);
  out.push_back({.k = (keys == Keys::kRaw ? page.kv : page.k_rotated).data() + byte_offset,
                 .v = page.kv.data() + page.value_offset + byte_offset,
                 .head_stride = capacity * shape_.head_dim,
                 .position = from,
                 .tokens = to - from,
                 .mass = mass && slot.mass.data() != nullptr
                             ? slot.mass.as<float>() + (from - slot_begin)
                             : nullptr,
                 .mass_stride = capacity});
}

void LayerWindow::AddSegments(int64_t begin, int64_t end, Keys keys, bool mass,
                              std::vector<KvSegment>& out) const {
  begin = std::max<int64_t>(begin, 0);
  end = std::min(end, tokens_);
  if (begin < shape_.sink_tokens && sinks_.page != nullptr) {
    AddSegment(sinks_, shape_.sink_tokens, 0, begin, end, keys, mass, out);
  }
  const int64_t first =
      std::max(first_page_, std::max<int64_t>(0, begin - shape_.sink_tokens) / shape_.page_tokens);
  for (int64_t page = first; page < first_page_ + int64_t(pages_.size()); ++page) {
    if (page_begin(page) >= end) break;
    AddSegment(pages_[page - first_page_], shape_.page_tokens, page_begin(page), begin, end, keys,
               mass, out);
  }
}

absl::Status LayerWindow::Copy(const Buffer& from, Buffer& to) const {
  INFLLM_ASSIGN_OR_RETURN(to, backend_->Allocate(from.size_bytes()));
  const int64_t floats = int64_t(from.size_bytes() / sizeof(float));
  return backend_->CopyColumns(from.as<float>(), floats, 0, to.as<float>(), floats, 0, 1, floats);
}

absl::StatusOr<LayerWindow> LayerWindow::Fork() const {
  LayerWindow fork(*backend_, shape_);
  fork.tokens_ = tokens_;
  fork.first_page_ = first_page_;
  auto fork_slot = [&](const Slot& slot, bool growing) -> absl::StatusOr<Slot> {
    Slot copy;
    copy.page = slot.page;
    if (growing && slot.page != nullptr) {
      copy.page = std::make_shared<Page>();
      copy.page->value_offset = slot.page->value_offset;
      INFLLM_RETURN_IF_ERROR(Copy(slot.page->k_rotated, copy.page->k_rotated));
      INFLLM_RETURN_IF_ERROR(Copy(slot.page->kv, copy.page->kv));
    }
    if (slot.mass.data() != nullptr) INFLLM_RETURN_IF_ERROR(Copy(slot.mass, copy.mass));
    return copy;
  };
  INFLLM_ASSIGN_OR_RETURN(fork.sinks_, fork_slot(sinks_, tokens_ < shape_.sink_tokens));
  for (size_t i = 0; i < pages_.size(); ++i) {
    const bool growing = first_page_ + int64_t(i) >= full_pages();
    INFLLM_ASSIGN_OR_RETURN(Slot slot, fork_slot(pages_[i], growing));
    fork.pages_.push_back(std::move(slot));
  }
  return fork;
}

int64_t LayerWindow::size_bytes() const {
  int64_t bytes = 0;
  auto add = [&](const Slot& slot) {
    bytes += int64_t(slot.mass.size_bytes());
    if (slot.page == nullptr) return;
    bytes += int64_t(slot.page->k_rotated.size_bytes() + slot.page->kv.size_bytes());
  };
  add(sinks_);
  for (const Slot& slot : pages_) add(slot);
  for (const Slot& slot : free_) add(slot);
  return bytes;
}

}  // namespace infllm::worker
