#include "worker/attention/mean_key.h"

#include "kernels/core/status_macros.h"

namespace infllm::worker {

int64_t MassPagesFor(const AttentionState& state, int64_t more_tokens, int64_t page_tokens) {
  const KvWindow& window = state.window;
  const int64_t behind = window.tokens() + more_tokens - window.page_begin(0);
  const int64_t pages = behind <= 0 ? 0 : (behind + page_tokens - 1) / page_tokens;
  return pages - state.far->first_mass_page - static_cast<int64_t>(state.far->mass_pages.size());
}

absl::Status GrowMass(AttentionState& state, int64_t page_tokens, int64_t layers,
                      int64_t part_bytes, kernels::Backend& backend, kernels::Stream stream) {
  FarMemory& far = *state.far;
  for (int64_t more = MassPagesFor(state, 0, page_tokens); more > 0; --more) {
    const PageNumber page = far.mass_arena->Take();
    far.mass_pages.push_back(page);
    for (int64_t layer = 0; layer < layers; ++layer) {
      INFLLM_RETURN_IF_ERROR(
          backend.Zero(stream, far.mass_arena->address(page) + far.mass_arena->layer_offset(layer),
                       static_cast<size_t>(part_bytes)));
    }
  }
  return absl::OkStatus();
}

void DropMassBefore(FarMemory& far, int64_t page) {
  while (far.first_mass_page < page && !far.mass_pages.empty()) {
    far.mass_arena->GiveBack(far.mass_pages.front());
    far.mass_pages.pop_front();
    ++far.first_mass_page;
  }
}

const float* MassOf(const FarMemory& far, int64_t page, int64_t layer) {
  const PageNumber mass = far.mass_pages[static_cast<size_t>(page - far.first_mass_page)];
  return reinterpret_cast<const float*>(far.mass_arena->address(mass) +
                                        far.mass_arena->layer_offset(layer));
}

absl::Status ForkMass(const FarMemory& from, FarMemory& to, kernels::Backend& backend,
                      kernels::Stream stream) {
  to.first_mass_page = from.first_mass_page;
  for (const PageNumber page : from.mass_pages) {
    to.mass_pages.push_back(to.mass_arena->Take());
    INFLLM_RETURN_IF_ERROR(to.mass_arena->Copy(backend, stream, page, to.mass_pages.back()));
  }
  return absl::OkStatus();
}

void AddMassPointers(const AttentionState& state, int64_t page_tokens,
                     std::span<const kernels::PageEntry> entries, std::vector<float*>& out) {
  const int64_t sink_tokens = state.window.page_begin(0);
  for (const kernels::PageEntry& entry : entries) {
    if (entry.position < sink_tokens) {
      out.push_back(nullptr);
    } else {
      // Layer 0: attention adds the offset of the layer.
      out.push_back(
          const_cast<float*>(MassOf(*state.far, (entry.position - sink_tokens) / page_tokens, 0)));
    }
  }
}

}  // namespace infllm::worker
