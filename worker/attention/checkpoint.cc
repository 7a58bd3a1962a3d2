#include "worker/attention/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/attention/mean_key.h"
#include "worker/attention/shared_scratch.h"

namespace infllm::worker {
namespace {

constexpr uint64_t kMagic = 0x504b434d4c464e49;  // "INFLMCKP"
// Rows that are rotated together.
constexpr int64_t kChunkRows = 512;

// Goes first; then for each layer the rows of the sinks and of the page that grows, then for each
// layer the scores of each kept page.
struct Header {
  uint64_t magic = kMagic;
  int64_t version = 1;
  int64_t tokens = 0;
  int64_t sink_rows = 0;
  int64_t page_rows = 0;  // of the page that grows
  int64_t scored_pages = 0;
};

}  // namespace

Checkpointer::Checkpointer(const ModelConfig& model, const AttentionOptions& options,
                           const kernels::PageShape& page, const Rope& rope,
                           kernels::Backend& backend, kernels::Stream stream, PageArena& arena)
    : model_(model),
      options_(options),
      page_(page),
      rope_(rope),
      backend_(backend),
      stream_(stream),
      arena_(arena) {}

int64_t Checkpointer::row_bytes() const {
  return 2 * page_.kv_heads * page_.head_dim * static_cast<int64_t>(SizeOf(page_.dtype));
}

absl::StatusOr<std::vector<std::byte>> Checkpointer::Save(const AttentionState& state) const {
  const KvWindow& window = state.window;
  const int64_t tokens = window.tokens(), behind = std::max<int64_t>(tokens - sinks(), 0);
  const Header header{.tokens = tokens,
                      .sink_rows = std::min(tokens, sinks()),
                      .page_rows = behind % page_.page_tokens,
                      .scored_pages = static_cast<int64_t>(state.far->mass_pages.size())};
  const int64_t mass_bytes = model_.q_heads * page_.page_tokens * int64_t{sizeof(float)};
  std::vector<std::byte> out(
      sizeof(Header) +
      static_cast<size_t>(model_.layers * ((header.sink_rows + header.page_rows) * row_bytes() +
                                           header.scored_pages * mass_bytes)));
  std::memcpy(out.data(), &header, sizeof(header));
  std::byte* to = out.data() + sizeof(header);

  const auto head_bytes = static_cast<size_t>(page_.head_dim) * SizeOf(page_.dtype);
  std::vector<std::byte> record(static_cast<size_t>(page_.record_bytes()));
  const auto save_rows = [&](int64_t layer, int64_t begin, int64_t end) -> absl::Status {
    const std::byte* copied = nullptr;  // the page in `record`
    for (int64_t token = begin; token < end; ++token) {
      const KvWindow::Place place = window.Find(token);
      if (place.page != copied) {
        copied = place.page;
        INFLLM_RETURN_IF_ERROR(backend_.Copy(stream_, record.data(),
                                             copied + arena_.layer_offset(layer), record.size()));
        INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
      }
      for (const bool values : {false, true}) {
        for (int64_t head = 0; head < page_.kv_heads; ++head) {
          const int64_t element =
              values ? page_.value(head, place.slot) : page_.key(head, place.slot);
          std::memcpy(to, record.data() + element * static_cast<int64_t>(SizeOf(page_.dtype)),
                      head_bytes);
          to += head_bytes;
        }
      }
    }
    return absl::OkStatus();
  };
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    INFLLM_RETURN_IF_ERROR(save_rows(layer, 0, header.sink_rows));
    INFLLM_RETURN_IF_ERROR(save_rows(layer, tokens - header.page_rows, tokens));
  }
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    for (int64_t i = 0; i < header.scored_pages; ++i) {
      INFLLM_RETURN_IF_ERROR(
          backend_.Copy(stream_, to, MassOf(*state.far, state.far->first_mass_page + i, layer),
                        static_cast<size_t>(mass_bytes)));
      to += mass_bytes;
    }
  }
  INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
  return out;
}

absl::Status Checkpointer::Check(const memstore::CommittedContext& committed,
                                 const memstore::ContextOptions& own, int64_t position) const {
  const auto differs = [&](absl::string_view what) {
    return absl::FailedPreconditionError(
        absl::StrCat("context \"", committed.name, "\" was read ", what));
  };
  if (committed.options.model != own.model) return differs("by a model with other weights");
  if (committed.options.recipe != own.recipe) {
    return differs(absl::StrCat("with other settings, which decide what it holds: ",
                                committed.options.recipe, "; these are ", own.recipe));
  }
  if (committed.options.geometry != own.geometry) {
    return differs("with keys and values of another shape or dtype");
  }
  const int64_t blocks = std::max<int64_t>(committed.tokens - sinks(), 0) / page_.page_tokens;
  const int64_t published =
      UsesMass(options_) ? SelectableBlocks(options_, committed.tokens) : blocks;
  if (committed.tokens < 0 || committed.blocks != blocks || committed.published != published) {
    return absl::DataLossError(absl::StrCat(
        "context \"", committed.name, "\" has ", committed.blocks, " blocks, ", committed.published,
        " of them published; ", committed.tokens, " tokens have ", blocks, " and ", published));
  }
  if (position == committed.tokens) return absl::OkStatus();
  if (position < 0 || position > committed.tokens || position % options_.exec_block != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "position ", position, " of context \"", committed.name, "\": must be its end, ",
        committed.tokens, ", or a multiple of --exec-block ", options_.exec_block, " before it"));
  }
  if (!UsesMass(options_)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("with --representatives mean-key a context is opened at its end, ",
                   committed.tokens, ", not at position ", position));
}

absl::Status Checkpointer::Restore(std::span<const std::byte> saved,
                                   const memstore::CommittedContext& committed, int64_t position,
                                   AttentionState& state) const {
  const auto damaged = [&](absl::string_view what, int64_t value, int64_t expected) {
    return absl::DataLossError(absl::StrCat("the checkpoint of context \"", committed.name,
                                            "\" is not one: ", what, " is ", value, ", expected ",
                                            expected));
  };
  Header header;
  if (saved.size() < sizeof(header)) {
    return damaged("its size", static_cast<int64_t>(saved.size()), sizeof(header));
  }
  std::memcpy(&header, saved.data(), sizeof(header));
  const Header expected{
      .tokens = committed.tokens,
      .sink_rows = std::min(committed.tokens, sinks()),
      .page_rows = std::max<int64_t>(committed.tokens - sinks(), 0) % page_.page_tokens,
      .scored_pages = header.scored_pages};
  if (std::memcmp(&header, &expected, sizeof(header)) != 0) {
    return damaged("its number of tokens", header.tokens, committed.tokens);
  }

  KvWindow& window = state.window;
  window.SkipPages(SelectableBlocks(options_, position));
  window.Append(position);
  const int64_t part_bytes = model_.q_heads * page_.page_tokens * int64_t{sizeof(float)};
  if (UsesMass(options_)) {
    state.far->first_mass_page = SelectableBlocks(options_, position);
    INFLLM_RETURN_IF_ERROR(
        GrowMass(state, page_.page_tokens, model_.layers, part_bytes, backend_, stream_));
  }
  const auto scored = static_cast<int64_t>(state.far->mass_pages.size());
  const int64_t layer_bytes = (header.sink_rows + header.page_rows) * row_bytes();
  const int64_t bytes =
      int64_t{sizeof(header)} + model_.layers * (layer_bytes + scored * part_bytes);
  if (header.scored_pages != scored) {
    return damaged("its number of scored pages", header.scored_pages, scored);
  }
  if (static_cast<int64_t>(saved.size()) != bytes) {
    return damaged("its size", static_cast<int64_t>(saved.size()), bytes);
  }

  saved = saved.subspan(sizeof(header));
  SharedScratch scratch(backend_);
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    INFLLM_RETURN_IF_ERROR(RestoreLayer(layer, saved.first(static_cast<size_t>(layer_bytes)),
                                        committed, position, state, scratch));
    saved = saved.subspan(static_cast<size_t>(layer_bytes));
  }
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    for (int64_t i = 0; i < scored; ++i) {
      const float* const mass = MassOf(*state.far, state.far->first_mass_page + i, layer);
      INFLLM_RETURN_IF_ERROR(backend_.Copy(stream_, const_cast<float*>(mass), saved.data(),
                                           static_cast<size_t>(part_bytes)));
      saved = saved.subspan(static_cast<size_t>(part_bytes));
    }
  }
  return backend_.Synchronize(stream_);
}

// `rows`: those of the sinks, then of the page that grew. The others come from the store.
absl::Status Checkpointer::RestoreLayer(int64_t layer, std::span<const std::byte> rows,
                                        const memstore::CommittedContext& committed,
                                        int64_t position, AttentionState& state,
                                        SharedScratch& scratch) const {
  const KvWindow& window = state.window;
  const int64_t first_page = SelectableBlocks(options_, position);
  const int64_t behind = std::max<int64_t>(position - sinks(), 0);
  const int64_t end_page = (behind + page_.page_tokens - 1) / page_.page_tokens;
  std::vector<int64_t> stored;
  for (int64_t page = first_page; page < std::min(end_page, committed.blocks); ++page) {
    stored.push_back(page);
  }
  std::vector<memstore::BlockHandle> blocks;
  if (!stored.empty()) {
    INFLLM_ASSIGN_OR_RETURN(
        blocks, state.far->store->Fetch(committed.id, static_cast<int32_t>(layer), stored));
  }
  std::vector<int64_t> tokens;
  for (int64_t t = 0; t < std::min(position, sinks()); ++t) tokens.push_back(t);
  for (int64_t t = window.page_begin(first_page); t < position; ++t) tokens.push_back(t);

  const int64_t dim = page_.head_dim, kv_width = page_.kv_heads * dim;
  const int64_t q_width = model_.q_heads * dim, width = q_width + 2 * kv_width;
  const auto size = static_cast<int64_t>(SizeOf(page_.dtype));
  const auto to_float = [&](const std::byte* from, int64_t count, float* out) {
    if (page_.dtype == kernels::DType::kF32) {
      std::memcpy(out, from, static_cast<size_t>(count) * sizeof(float));
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      kernels::BF16 value;
      std::memcpy(&value, from + i * size, sizeof(value));
      out[i] = static_cast<float>(value);
    }
  };
  for (size_t begin = 0; begin < tokens.size(); begin += kChunkRows) {
    scratch.Reset();
    const size_t count = std::min<size_t>(kChunkRows, tokens.size() - begin);
    INFLLM_ASSIGN_OR_RETURN(float* const qkv,
                            scratch.Get<float>(count * static_cast<size_t>(width)));
    INFLLM_ASSIGN_OR_RETURN(float* const q,
                            scratch.Get<float>(count * static_cast<size_t>(q_width)));
    INFLLM_ASSIGN_OR_RETURN(float* const angles,
                            scratch.Get<float>(count * static_cast<size_t>(dim)));
    INFLLM_ASSIGN_OR_RETURN(std::byte * * const pages, scratch.Get<std::byte*>(count));
    INFLLM_ASSIGN_OR_RETURN(int32_t* const slots, scratch.Get<int32_t>(count));
    std::fill_n(qkv, count * static_cast<size_t>(width), 0.0f);
    for (size_t i = 0; i < count; ++i) {
      const int64_t token = tokens[begin + i];
      const KvWindow::Place place = window.Find(token);
      pages[i] = place.page;
      slots[i] = place.slot;
      rope_.Fill(token, {angles + i * static_cast<size_t>(dim), static_cast<size_t>(dim)});
      float* const k = qkv + static_cast<int64_t>(i) * width + q_width;
      const int64_t page = token < sinks() ? -1 : (token - sinks()) / page_.page_tokens;
      if (page >= 0 && page < committed.blocks) {
        const std::byte* const record =
            blocks[static_cast<size_t>(page - first_page)].payload().data();
        for (int64_t head = 0; head < page_.kv_heads; ++head) {
          to_float(record + page_.key(head, place.slot) * size, dim, k + head * dim);
          to_float(record + page_.value(head, place.slot) * size, dim, k + kv_width + head * dim);
        }
      } else {
        const int64_t grown = token - window.page_begin(committed.blocks);  // in the page that grew
        const int64_t row = page < 0 ? token : std::min(committed.tokens, sinks()) + grown;
        to_float(rows.data() + row * row_bytes(), 2 * kv_width, k);
      }
    }
    INFLLM_RETURN_IF_ERROR(
        backend_.RotateAndStore(stream_, {.qkv = qkv,
                                          .angles = angles,
                                          .q_near = q,
                                          .pages = pages,
                                          .slots = slots,
                                          .layer_offset = arena_.layer_offset(layer),
                                          .rows = static_cast<int64_t>(count),
                                          .q_heads = model_.q_heads,
                                          .page = page_}));
    INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
  }
  return absl::OkStatus();
}

}  // namespace infllm::worker
