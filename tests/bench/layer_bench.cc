// One decoder layer of Mistral-7B's shape at the end of contexts of up to 10 million tokens: the
// time of each phase of prefill and decode, beside its floor in flops or bytes, measured in the
// same run. The contexts are placed into the memory store, not read: every block has a
// representative of its own, but blocks share payloads, of which there are 512 MiB
// (placed_store.h). Random queries miss the block cache nearly always: the worst case. A phase's
// time is the sum of the best times of its operations over all steps, since other tenants of the
// machine only ever add to a time.
//   layer_bench [--contexts 8192,131072,1048576,10485760] [--thread-counts 1,2] [--json]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "memstore/in_process_store.h"
#include "tests/bench/ceilings.h"
#include "tests/bench/method_flags.h"
#include "tests/bench/placed_store.h"
#include "tests/bench/random_model.h"
#include "tests/bench/timed_backend.h"
#include "worker/attention/attention_policy.h"
#include "worker/engine/loaded_model.h"
#include "worker/transformer/decoder.h"

namespace infllm::bench {
namespace {

using kernels::ThreadPool;

constexpr int64_t kPayloadBytes = int64_t{512} << 20;

struct Flags {
  worker::ModelConfig model = {.model_type = "llama",
                               .hidden_size = 4096,
                               .intermediate_size = 14336,
                               .layers = 1,
                               .q_heads = 32,
                               .kv_heads = 8,
                               .head_dim = 128,
                               .vocab_size = 1024,
                               .rms_norm_eps = 1e-5f};
  worker::AttentionOptions attention;
  std::vector<int64_t> contexts = {8192, 131072, 1048576, 10485760};
  std::vector<int> thread_counts = {1, ThreadPool::DefaultThreads()};
  std::vector<int64_t> rows = {512, 1};
  int steps = 12;
  bool processor_time = false;
  bool json = false;
};

// What a phase took, and what it cannot be faster than.
struct PhaseRow {
  const char* phase;
  double seconds;
  double floor;  // 0: none is known
};

class LayerBench {
 public:
  LayerBench(const Flags& flags, const std::string& directory, int threads)
      : flags_(flags),
        directory_(directory),
        pool_(threads),
        cpu_(kernels::NewCpuBackend(pool_)),
        backend_(*cpu_, threads, flags.processor_time) {}

  absl::Status Run(nlohmann::ordered_json& out) {
    INFLLM_ASSIGN_OR_RETURN(model_,
                            worker::LoadModel(directory_, backend_, backend_.preferred_dtype()));
    if (backend_.preferred_dtype() != kernels::DType::kBF16) {
      return absl::UnimplementedError("contexts are placed in bf16, which this CPU does not have");
    }
    for (const int64_t context : flags_.contexts) {
      for (const int64_t rows : flags_.rows) {
        INFLLM_RETURN_IF_ERROR(Measure(context, rows, out));
      }
    }
    return absl::OkStatus();
  }

 private:
  // A step of so many random tokens.
  absl::Status Step(worker::AttentionPolicy& policy, worker::Decoder& decoder,
                    worker::AttentionState& state, int64_t rows) {
    std::vector<int32_t> tokens(static_cast<size_t>(rows));
    for (int32_t& token : tokens) {
      token = static_cast<int32_t>(random_() % static_cast<uint32_t>(flags_.model.vocab_size));
    }
    worker::StepPart part{.state = &state, .tokens = rows};
    INFLLM_RETURN_IF_ERROR(policy.Plan({&part, 1}));
    INFLLM_RETURN_IF_ERROR(decoder.Reserve(rows, /*keep_inputs=*/false));
    INFLLM_RETURN_IF_ERROR(decoder.Embed(tokens));
    INFLLM_RETURN_IF_ERROR(decoder.RunLayer(0, policy, /*keep_inputs=*/false));
    INFLLM_RETURN_IF_ERROR(policy.EnqueueEnd());
    policy.End();
    return part.status;
  }

  absl::Status Measure(int64_t context, int64_t rows, nlohmann::ordered_json& out) {
    const worker::AttentionOptions& options = flags_.attention;
    const memstore::Geometry geometry = {.layers = 1,
                                         .q_heads = static_cast<int32_t>(flags_.model.q_heads),
                                         .kv_heads = static_cast<int32_t>(flags_.model.kv_heads),
                                         .head_dim = static_cast<int32_t>(flags_.model.head_dim),
                                         .block_tokens = static_cast<int32_t>(options.block_tokens),
                                         .dtype = kernels::DType::kBF16,
                                         .representative = options.representative};
    const auto payload_bytes = static_cast<int64_t>(geometry.payload_bytes());
    // All whole pages of the context have been stored.
    const int64_t blocks = (context - options.n_init) / options.block_tokens;
    const auto store =
        memstore::NewInProcessStore({.ram_capacity_bytes = 4 * kPayloadBytes}, *cpu_, nullptr)
            .value();
    PlacedStore placed(*store, geometry, blocks, kPayloadBytes / payload_bytes);
    INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<worker::AttentionPolicy> policy,
                            worker::AttentionPolicy::New(flags_.model, options,
                                                         {.backend = &backend_,
                                                          .pool = &pool_,
                                                          .store = &placed,
                                                          .kv_dtype = kernels::DType::kBF16,
                                                          .kv_bytes = int64_t{1} << 30}));
    INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<worker::AttentionState> state,
                            policy->NewState());
    while (state->window.tokens() < context) {
      state->window.Append(std::min(options.n_local, context - state->window.tokens()));
      state->window.DropPagesBefore(worker::SelectableBlocks(options, state->window.tokens()));
    }
    state->far->stored_blocks = state->far->published_blocks = blocks;
    worker::Decoder decoder(flags_.model, *model_->weights, backend_,
                            kernels::Backend::kMainStream);
    // The window holds what the arena's memory held, zeros; a few steps write some of it.
    BestStep best;
    double bandwidth = 0, best_wall = 1e9;
    for (int step = 0; step < flags_.steps; ++step) {
      if (step % 4 == 0)
        bandwidth =
            std::max(bandwidth, ReadBandwidthNow(pool_, 4, [&] { return backend_.Clock(); }));
      const double start = Now();
      backend_.BeginStep();
      INFLLM_RETURN_IF_ERROR(Step(*policy, decoder, *state, rows));
      const StepLog& log = backend_.EndStep();
      best_wall = std::min(best_wall, Now() - start);
      if (step > 0) best.Take(log);  // the first one touches memory for the first time
    }
    ThreadPool one_thread(1);  // the peak of many at once needs a machine without other work
    const double flops =
        pool_.threads() * Bf16PeakFlops(one_thread, kernels::SupportedIsas().back());

    const Work& work = best.work();
    const double stored = static_cast<double>(rows) / static_cast<double>(options.block_tokens) *
                          static_cast<double>(payload_bytes);
    const PhaseRow phases[] = {
        {"products", best.seconds(Phase::kGemm),
         std::max(work.gemm_flops / flops, work.gemm_bytes / bandwidth)},
        {"select", best.seconds(Phase::kSelect), work.select_bytes / bandwidth},
        {"attend", best.seconds(Phase::kAttend),
         std::max(work.attend_flops / flops, work.attend_bytes / bandwidth)},
        // Of the steps that complete a block at all: each byte is read and written.
        {"representatives", best.seconds(Phase::kPublish), 0},
        {"store and host", best.seconds(Phase::kHost), rows > 1 ? 2 * stored / bandwidth : 0},
        {"other operations", best.seconds(Phase::kOther), 0},
        {"whole step", best.seconds(), 0},
        {"best whole step", best_wall, 0}};
    for (const PhaseRow& row : phases) {
      const double times_floor = row.floor > 0 ? row.seconds / row.floor : 0;
      out.push_back({{"context", context},
                     {"rows", rows},
                     {"threads", pool_.threads()},
                     {"phase", row.phase},
                     {"ms", row.seconds * 1e3},
                     {"floor_ms", row.floor * 1e3},
                     {"times_floor", times_floor}});
      if (flags_.json) continue;
      absl::PrintF("| %d | %d | %d | %s | %.3f |", context, rows, pool_.threads(), row.phase,
                   row.seconds * 1e3);
      if (row.floor > 0) {
        absl::PrintF(" %.3f | %.2f |\n", row.floor * 1e3, times_floor);
      } else {
        absl::PrintF(" | |\n");
      }
      std::fflush(stdout);
    }
    return absl::OkStatus();
  }

  const Flags& flags_;
  const std::string directory_;
  ThreadPool pool_;
  const std::unique_ptr<kernels::Backend> cpu_;
  TimedBackend backend_;
  std::unique_ptr<worker::LoadedModel> model_;
  std::minstd_rand random_{7};
};

absl::Status Run(const Flags& flags) {
  const TemporaryDirectory directory;
  INFLLM_RETURN_IF_ERROR(WriteRandomModel(flags.model, directory.path()));
  auto out = nlohmann::ordered_json::array();
  if (!flags.json) {
    absl::PrintF("| context | rows | threads | phase | ms | floor ms | times floor |\n");
    absl::PrintF("|--:|--:|--:|---|--:|--:|--:|\n");
  }
  for (const int threads : flags.thread_counts) {
    INFLLM_RETURN_IF_ERROR(LayerBench(flags, directory.path(), threads).Run(out));
  }
  if (flags.json) absl::PrintF("%s\n", out.dump(1));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app{"One layer of Mistral-7B's shape before very long contexts"};
  Flags flags;
  app.add_option("--contexts", flags.contexts, "tokens")->delimiter(',')->capture_default_str();
  app.add_option("--thread-counts", flags.thread_counts, "compute threads, one after the other")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--rows", flags.rows, "tokens of a step")->delimiter(',')->capture_default_str();
  app.add_option("--steps", flags.steps, "of each kind")->capture_default_str();
  app.add_flag("--processor-time", flags.processor_time,
               "count processor time, by threads: for a machine with other work");
  app.add_flag("--json", flags.json, "print JSON");
  AddMethodFlags(app, flags.attention);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "layer_bench: %s\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace infllm::bench

int main(int argc, char** argv) { return infllm::bench::Main(argc, argv); }
