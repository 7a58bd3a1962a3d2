// What codes of bounds (kernels::SelectBlocks) save a model that reads and answers a long text: in
// one run every selection is made with and without them, in turns, and compared bit for bit. Times
// are processor time by the number of threads, for machines that other work shares; the codes
// themselves are made with either. Of --threads 1 unless given.
//   reading_bench --model deploy/demo --text novel.txt [--decode-tokens 64]
#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "services/runtime/flags.h"
#include "services/runtime/runtime.h"
#include "tests/bench/forwarding_backend.h"
#include "tests/bench/timed_backend.h"
#include "worker/engine/scheduler.h"

namespace infllm::bench {
namespace {

struct Spent {
  double coded = 0, flat = 0;  // on selections
  int64_t queries = 0;
};

// Selects twice, and goes on with the last.
class TwiceSelecting final : public ForwardingBackend {
 public:
  explicit TwiceSelecting(std::unique_ptr<kernels::Backend> backend)
      : ForwardingBackend(*backend), owned_(std::move(backend)) {}

  absl::Status SelectBlocks(kernels::Stream stream,
                            const kernels::SelectBlocksArgs& args) override {
    const int64_t count = args.score.count;
    std::vector<kernels::ScoreItem> items(args.score.items, args.score.items + count);
    std::vector<std::vector<kernels::RepresentativeChunk>> chunks;
    for (kernels::ScoreItem& item : items) {
      chunks.emplace_back(item.chunks, item.chunks + item.chunk_count);
      for (kernels::RepresentativeChunk& chunk : chunks.back()) chunk.codes = nullptr;
      item.chunks = chunks.back().data();
    }
    kernels::SelectBlocksArgs flat = args;
    flat.score.items = items.data();
    coded_first_ = !coded_first_;
    INFLLM_RETURN_IF_ERROR(Run(stream, coded_first_ ? args : flat, coded_first_));
    std::vector<int64_t> indices;
    std::vector<float> scores;
    ForBest(args, [&](const kernels::TopKItem& best, int64_t k) {
      indices.insert(indices.end(), best.out_index, best.out_index + k);
      scores.insert(scores.end(), best.out_score, best.out_score + k);
    });
    INFLLM_RETURN_IF_ERROR(Run(stream, coded_first_ ? flat : args, !coded_first_));
    size_t at = 0;
    bool same = true;
    ForBest(args, [&](const kernels::TopKItem& best, int64_t k) {
      const auto n = static_cast<size_t>(k);
      same = same && std::memcmp(best.out_index, indices.data() + at, n * sizeof(int64_t)) == 0 &&
             std::memcmp(best.out_score, scores.data() + at, n * sizeof(float)) == 0;
      at += n;
    });
    spent_.queries += count;
    return same ? absl::OkStatus() : absl::InternalError("codes select other blocks");
  }

  Spent Take() { return std::exchange(spent_, {}); }

 private:
  absl::Status Run(kernels::Stream stream, const kernels::SelectBlocksArgs& args, bool coded) {
    const double start = ProcessorSeconds();
    absl::Status status = ForwardingBackend::SelectBlocks(stream, args);
    (coded ? spent_.coded : spent_.flat) += ProcessorSeconds() - start;
    return status;
  }
  template <typename Body>
  static void ForBest(const kernels::SelectBlocksArgs& args, Body body) {
    for (int64_t i = 0; i < args.best.count; ++i) {
      body(args.best.items[i], std::min(args.best.items[i].k, args.best.items[i].n));
    }
  }

  const std::unique_ptr<kernels::Backend> owned_;
  bool coded_first_ = false;
  Spent spent_;
};

// What some tokens took, by way of selection.
class Section {
 public:
  Section(TwiceSelecting& backend, int threads)
      : backend_(backend), threads_(threads), start_(ProcessorSeconds()) {
    backend_.Take();
  }
  void Print(const std::string& name, int64_t tokens) {
    const double all = ProcessorSeconds() - start_;
    const Spent spent = backend_.Take();
    const double n = static_cast<double>(tokens) * threads_;
    const double queries = static_cast<double>(spent.queries) * threads_;
    absl::PrintF("| %-16s | %8.0f | %8.0f | %8.1f | %8.1f | %5.2f |\n", name,
                 n / (all - spent.coded), n / (all - spent.flat), 1e6 * spent.flat / queries,
                 1e6 * spent.coded / queries, spent.flat / spent.coded);
    std::fflush(stdout);
    start_ = ProcessorSeconds();
  }

 private:
  TwiceSelecting& backend_;
  const int threads_;
  double start_;
};

absl::Status Run(services::RuntimeFlags& flags, const std::string& path, int64_t decode_tokens) {
  INFLLM_ASSIGN_OR_RETURN(const std::string text, services::ReadText(path));
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<worker::ModelRuntime> model,
                          services::LoadModel(flags, {&flags, 1}));
  auto twice = std::make_unique<TwiceSelecting>(std::move(model->backend));
  TwiceSelecting& backend = *twice;
  model->backend = std::move(twice);
  INFLLM_ASSIGN_OR_RETURN(const services::EngineRuntime runtime,
                          services::NewEngine(*model, flags, nullptr));
  INFLLM_RETURN_IF_ERROR(services::RequireTokenizer(*model->model, flags.model));
  INFLLM_ASSIGN_OR_RETURN(const worker::SequenceId sequence, runtime.engine->NewSequence());
  std::vector<int32_t> tokens = model->model->tokenizer->Encode(text);
  const auto length = static_cast<int64_t>(tokens.size());
  absl::PrintF(
      "%d tokens\n\n| %-16s | flat t/s | coded t/s | flat us/q | coded us/q | ratio |\n"
      "|---|--:|--:|--:|--:|--:|\n",
      length, "tenth of the text");
  Section section(backend, model->pool->threads());
  int64_t read = 0, tenth = 1;
  worker::Scheduler scheduler(*runtime.engine, {.step_tokens = runtime.step_tokens});
  absl::Status status;
  scheduler.Add({.sequence = sequence,
                 .tokens = std::move(tokens),
                 .max_tokens = decode_tokens,
                 .on_read =
                     [&](int64_t done) {
                       if (done < (length - 1) * tenth / 10) return;  // the last token answers
                       section.Print(absl::StrFormat("%d", tenth++), done - read);
                       read = done;
                     },
                 .on_done = [&](const worker::Outcome& outcome) { status = outcome.status; }});
  INFLLM_RETURN_IF_ERROR(scheduler.Run());
  INFLLM_RETURN_IF_ERROR(status);
  section.Print("decode", decode_tokens);
  INFLLM_ASSIGN_OR_RETURN(const memstore::StoreStats stats, runtime.store->Stats());
  const worker::ModelConfig& config = model->model->config;
  const auto bounds = static_cast<double>(stats.blocks * 2 * config.kv_heads * config.head_dim) *
                      static_cast<double>(SizeOf(model->dtype));
  absl::PrintF("\nindex: %.1f MB, %.3f of its bounds\n",
               static_cast<double>(stats.representative_bytes) * 1e-6,
               static_cast<double>(stats.representative_bytes) / bounds);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app{"Selection with and without codes while a model reads a text"};
  services::RuntimeFlags flags;
  flags.threads = 1;
  AddRuntimeFlags(app, flags);
  std::string text;
  int64_t decode_tokens = 64;
  app.add_option("--text", text, "file to read, may be an xz archive")->required();
  app.add_option("--decode-tokens", decode_tokens, "tokens to generate after it")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(flags, text, decode_tokens);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "%s\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace infllm::bench

int main(int argc, char** argv) { return infllm::bench::Main(argc, argv); }
