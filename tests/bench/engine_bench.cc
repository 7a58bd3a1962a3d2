// The engine on a small Llama with random weights: how decoding gains from many sequences, how near
// prefill is to the machine's peak, what the fixed order of sums costs, and how long a decoder
// waits for a reader. Everything beside its ceiling, measured in the same run; times are the best
// of several turns, since other tenants of the machine only ever add to them.
//   engine_bench [--threads 2] [--parts decode,prefill,gemm,gap] [--json]
//   engine_bench --write-model DIR    only writes the model, for tests/bench/compare_with
#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "memstore/in_process_store.h"
#include "tests/bench/ceilings.h"
#include "tests/bench/method_flags.h"
#include "tests/bench/onednn.h"
#include "tests/bench/random_model.h"
#include "tests/bench/report.h"
#include "tests/bench/timed_backend.h"
#include "worker/engine/engine.h"
#include "worker/engine/scheduler.h"

namespace infllm::bench {
namespace {

using kernels::DType;
using worker::Engine;
using worker::SequenceId;
using worker::StepItem;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int64_t kDecoders[] = {1, 8, 32};
constexpr int64_t kMostDecoders = 32;
constexpr int64_t kPrefillRows = 512;

struct Flags {
  worker::ModelConfig model = {.model_type = "llama",
                               .hidden_size = 1024,
                               .intermediate_size = 2816,
                               .layers = 16,
                               .q_heads = 16,
                               .kv_heads = 16,
                               .head_dim = 64,
                               .vocab_size = 32000,
                               .rms_norm_eps = 1e-5f};
  // A window as such a model might have been trained on, and as many far tokens.
  worker::AttentionOptions attention = {.n_init = 16,
                                        .n_local = 256,
                                        .block_tokens = 32,
                                        .top_k = 8,
                                        .exec_block = 256,
                                        .cache_blocks = 32};
  int threads = 2;
  int64_t context = 65536;
  int64_t distinct_context = 1024;
  int64_t question = 64;
  int64_t steps = 8;
  int turns = 4;
  int64_t step_tokens = 512;
  int64_t ram_bytes = int64_t{12} << 30;
  std::vector<std::string> parts = {"decode", "prefill", "gemm", "gap"};
  std::string write_model;
  bool processor_time = false;
  bool json = false;
};

// A sequence and the token that it reads next.
struct Decoder {
  SequenceId id{};
  int32_t next = 1;
};

class Bench {
 public:
  explicit Bench(const Flags& flags)
      : flags_(flags),
        pool_(flags.threads),
        cpu_(kernels::NewCpuBackend(pool_)),
        backend_(*cpu_, flags.threads, flags.processor_time),
        isa_(kernels::SupportedIsas().back()) {}

  absl::Status Run() {
    const TemporaryDirectory directory;
    INFLLM_RETURN_IF_ERROR(WriteRandomModel(flags_.model, directory.path()));
    INFLLM_ASSIGN_OR_RETURN(
        model_, worker::LoadModel(directory.path(), backend_, backend_.preferred_dtype()));
    store_ = memstore::NewInProcessStore({.ram_capacity_bytes = flags_.ram_bytes}, *cpu_, nullptr)
                 .value();
    INFLLM_ASSIGN_OR_RETURN(engine_, Engine::New(*model_, backend_, pool_, store_.get(),
                                                 {.attention = flags_.attention,
                                                  .kv_dtype = backend_.preferred_dtype(),
                                                  .kv_bytes = int64_t{4} << 30}));
    kernels::ThreadPool one_thread(
        1);  // the peak of many at once needs a machine without other work
    const double peak = Bf16PeakFlops(one_thread, isa_);
    peak_ = flags_.threads * (peak > 0 ? peak : FmaPeakFlops(one_thread, isa_));
    report_.Add("peak of products from registers", peak_ * 1e-9, "GFLOP/s");
    if (Wants("gemm")) INFLLM_RETURN_IF_ERROR(MeasureGemm());
    if (Wants("decode")) INFLLM_RETURN_IF_ERROR(MeasureDistinct());
    if (Wants("decode") || Wants("prefill") || Wants("gap")) {
      INFLLM_ASSIGN_OR_RETURN(long_text_, NewReader(flags_.context, 1, /*tell=*/true));
    }
    if (Wants("decode")) INFLLM_RETURN_IF_ERROR(MeasureForks());
    if (Wants("prefill")) INFLLM_RETURN_IF_ERROR(MeasurePrefill());
    if (Wants("gap")) INFLLM_RETURN_IF_ERROR(MeasureGap());
    report_.Print(flags_.json);
    return absl::OkStatus();
  }

 private:
  bool Wants(const char* part) const {
    return std::find(flags_.parts.begin(), flags_.parts.end(), part) != flags_.parts.end();
  }

  std::vector<int32_t> RandomTokens(int64_t count, uint32_t seed) const {
    std::minstd_rand random(seed);
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) {
      token = static_cast<int32_t>(random() % static_cast<uint32_t>(flags_.model.vocab_size));
    }
    return tokens;
  }

  // A sequence that has read so many random tokens.
  absl::StatusOr<SequenceId> NewReader(int64_t tokens, uint32_t seed, bool tell) {
    INFLLM_ASSIGN_OR_RETURN(const SequenceId id, engine_->NewSequence());
    const double start = Now();
    INFLLM_RETURN_IF_ERROR(Read(id, RandomTokens(tokens, seed)));
    if (tell) {
      report_.Add(absl::StrCat("reading ", tokens, " tokens"),
                  static_cast<double>(tokens) / (Now() - start), "tokens/s");
    }
    return id;
  }
  absl::Status Read(SequenceId id, std::vector<int32_t> tokens) {
    worker::Scheduler scheduler(*engine_, {.step_tokens = flags_.step_tokens});
    absl::Status status;
    scheduler.Add({.sequence = id,
                   .tokens = std::move(tokens),
                   .on_done = [&](const worker::Outcome& outcome) { status = outcome.status; }});
    INFLLM_RETURN_IF_ERROR(scheduler.Run());
    return status;
  }

  // One token of each.
  absl::Status Decode(std::span<Decoder> decoders) {
    std::vector<StepItem> items;
    for (const Decoder& decoder : decoders) {
      items.push_back(
          {.sequence = decoder.id, .tokens = {&decoder.next, 1}, .want = StepItem::Want::kSample});
    }
    INFLLM_RETURN_IF_ERROR(engine_->Step(items));
    for (size_t i = 0; i < items.size(); ++i) {
      INFLLM_RETURN_IF_ERROR(items[i].status);
      decoders[i].next = items[i].token;
    }
    return absl::OkStatus();
  }

  // Rates of 1, 8, ... of `decoders`, in turns.
  absl::Status MeasureDecode(const std::string& what, std::span<Decoder> decoders) {
    std::vector<BestStep> best(std::size(kDecoders));
    std::vector<double> best_turn(best.size(), kNever);
    double bandwidth = 0;
    for (int turn = 0; turn < flags_.turns; ++turn) {
      bandwidth = std::max(bandwidth, ReadBandwidthNow(pool_, 8, [&] { return backend_.Clock(); }));
      for (size_t i = 0; i < best.size(); ++i) {
        const std::span<Decoder> some = decoders.first(static_cast<size_t>(kDecoders[i]));
        const double start = Now();
        for (int64_t step = 0; step < flags_.steps; ++step) {
          backend_.BeginStep();
          INFLLM_RETURN_IF_ERROR(Decode(some));
          best[i].Take(backend_.EndStep());
        }
        best_turn[i] = std::min(best_turn[i], Now() - start);
      }
    }
    report_.Add(what + ": read bandwidth meanwhile", bandwidth * 1e-9, "GB/s");
    for (size_t i = 0; i < best.size(); ++i) {
      const auto n = static_cast<double>(kDecoders[i]);
      const std::string name = absl::StrCat(what, ", ", kDecoders[i], " at a time: ");
      report_.Add(name + "rate", n / best[i].seconds(), "tokens/s");
      report_.Add(name + "rate of the best turn", n * double(flags_.steps) / best_turn[i],
                  "tokens/s");
      if (i > 0) {
        report_.Add(name + "by the rate of one", n * best[0].seconds() / best[i].seconds(), "x",
                    kDecoders[i] == 8 ? ">= 4" : ">= 9");
        report_.Add(name + "by the rate of one, best turns", n * best_turn[0] / best_turn[i], "x");
      }
      AddPhases(name, best[i]);
      const Work& work = best[i].work();
      report_.Add(name + "products by their weights at read bandwidth",
                  best[i].seconds(Phase::kGemm) / (work.gemm_bytes / bandwidth), "x");
      report_.Add(name + "attention by its keys and values at read bandwidth",
                  best[i].seconds(Phase::kAttend) / (work.attend_bytes / bandwidth), "x",
                  "<= 1.05");
      report_.Add(name + "whole step by its bytes at read bandwidth",
                  best[i].seconds() /
                      ((work.gemm_bytes + work.attend_bytes + work.select_bytes) / bandwidth),
                  "x");
    }
    return absl::OkStatus();
  }

  absl::Status MeasureDistinct() {
    std::vector<Decoder> decoders;
    for (int64_t i = 0; i < kMostDecoders; ++i) {
      INFLLM_ASSIGN_OR_RETURN(
          const SequenceId id,
          NewReader(flags_.distinct_context, static_cast<uint32_t>(i + 2), /*tell=*/false));
      decoders.push_back({.id = id, .next = static_cast<int32_t>(i + 1)});
    }
    const absl::Status status = MeasureDecode("decoding distinct texts", decoders);
    for (const Decoder& decoder : decoders) engine_->Drop(decoder.id);
    return status;
  }

  absl::Status MeasureForks() {
    std::vector<Decoder> decoders;
    for (int64_t i = 0; i < kMostDecoders; ++i) {
      INFLLM_ASSIGN_OR_RETURN(const SequenceId id, engine_->Fork(long_text_));
      INFLLM_RETURN_IF_ERROR(
          Read(id, RandomTokens(flags_.question, static_cast<uint32_t>(1000 + i))));
      decoders.push_back({.id = id, .next = static_cast<int32_t>(i + 1)});
    }
    const absl::Status status = MeasureDecode("decoding forks", decoders);
    for (const Decoder& decoder : decoders) engine_->Drop(decoder.id);
    return status;
  }

  void AddPhases(const std::string& name, const BestStep& step) {
    report_.Add(name + "step", step.seconds() * 1e3, "ms");
    const std::pair<const char*, Phase> phases[] = {
        {"products", Phase::kGemm},          {"attention", Phase::kAttend},
        {"selection", Phase::kSelect},       {"representatives", Phase::kPublish},
        {"other operations", Phase::kOther}, {"host and store", Phase::kHost}};
    for (const auto& [what, phase] : phases) {
      report_.Add(name + what, step.seconds(phase) * 1e3, "ms");
    }
  }

  absl::Status MeasurePrefill() {
    BestStep best;
    double best_wall = kNever;
    for (int turn = 0; turn < flags_.turns; ++turn) {
      MeasureProductPeak();
      INFLLM_ASSIGN_OR_RETURN(const SequenceId id, engine_->Fork(long_text_));
      for (int step = 0; step < 4; ++step) {
        const std::vector<int32_t> tokens =
            RandomTokens(kPrefillRows, static_cast<uint32_t>(100 + 4 * turn + step));
        StepItem item{.sequence = id, .tokens = tokens};
        const double start = Now();
        backend_.BeginStep();
        INFLLM_RETURN_IF_ERROR(engine_->Step({&item, 1}));
        best.Take(backend_.EndStep());
        best_wall = std::min(best_wall, Now() - start);
        INFLLM_RETURN_IF_ERROR(item.status);
      }
      engine_->Drop(id);
    }
    const std::string name = absl::StrCat("prefill of ", kPrefillRows, " rows: ");
    const Work& work = best.work();
    const double product_rate = work.gemm_flops / best.seconds(Phase::kGemm);
    const double step_rate = (work.gemm_flops + work.attend_flops) / best.seconds();
    report_.Add(name + "rate", kPrefillRows / best.seconds(), "tokens/s");
    report_.Add(name + "rate of the best step", kPrefillRows / best_wall, "tokens/s");
    AddPhases(name, best);
    report_.Add(name + "attention", work.attend_flops / best.seconds(Phase::kAttend) * 1e-9,
                "GFLOP/s");
    report_.Add(name + "products, of the register peak", product_rate / peak_, "");
    report_.Add(name + "whole step, of the register peak", step_rate / peak_, "");
    if (product_peak_ > 0) {
      report_.Add("oneDNN's best product meanwhile", product_peak_ * 1e-9, "GFLOP/s");
      report_.Add(name + "products, of oneDNN's best product", product_rate / product_peak_, "",
                  ">= 0.7");
      report_.Add(name + "whole step, of oneDNN's best product", step_rate / product_peak_, "",
                  ">= 0.7");
    }
    return absl::OkStatus();
  }

  // All products of a pass through the layers, ours and oneDNN's in turns; each layer has weights
  // of its own, so that few rows read them from memory as decoding does.
  absl::Status MeasureGemm() {
    for (const int64_t rows : {1, 8, 32, 512}) {
      const auto floats = static_cast<size_t>(
          rows * std::max(flags_.model.hidden_size, 2 * flags_.model.intermediate_size));
      std::vector<float> x(floats, 0.25f), y(floats);
      const std::string name = absl::StrCat("products of all layers, ", rows, " rows: ");
      std::vector<const kernels::PackedWeight*> weights;
      for (const worker::LayerWeights& layer : model_->weights->layers) {
        for (const kernels::Weight* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
          weights.push_back(&weight->packed);
        }
      }
      std::vector<double> ours(weights.size(), kNever);
#ifdef INFLLM_HAVE_ONEDNN
      std::vector<double> theirs(weights.size(), kNever);
      std::vector<std::unique_ptr<OneDnn>> products;
      for (const kernels::PackedWeight* weight : weights) {
        products.push_back(std::make_unique<OneDnn>(rows, weight->in_features, weight->out_features,
                                                    backend_.preferred_dtype(), flags_.threads));
      }
#endif
      for (int turn = 0; turn < 2 * flags_.turns; ++turn) {
        for (int pass = 0; pass < 3; ++pass) {
          for (size_t i = 0; i < weights.size(); ++i) {
            const double start = backend_.Clock();
            INFLLM_RETURN_IF_ERROR(
                cpu_->Linear(kernels::Backend::kMainStream,
                             {.x = x.data(), .weight = *weights[i], .y = y.data(), .rows = rows}));
            ours[i] = std::min(ours[i], backend_.Clock() - start);
          }
        }
#ifdef INFLLM_HAVE_ONEDNN
        for (int pass = 0; pass < 3; ++pass) {
          for (size_t i = 0; i < weights.size(); ++i) {
            const double start = backend_.Clock();
            (*products[i])();
            theirs[i] = std::min(theirs[i], backend_.Clock() - start);
          }
        }
#endif
      }
      const double our_seconds = std::accumulate(ours.begin(), ours.end(), 0.0);
      report_.Add(name + "ours", our_seconds * 1e3, "ms");
#ifdef INFLLM_HAVE_ONEDNN
      const double their_seconds = std::accumulate(theirs.begin(), theirs.end(), 0.0);
      report_.Add(name + "oneDNN's", their_seconds * 1e3, "ms");
      report_.Add(name + "ours by oneDNN's", our_seconds / their_seconds, "x", "<= 1.05");
      for (size_t i = 0; rows == kPrefillRows && i < weights.size(); ++i) {
        const auto flops =
            2.0 * static_cast<double>(rows * weights[i]->in_features * weights[i]->out_features);
        product_peak_ = std::max(product_peak_, flops / theirs[i]);
      }
#endif
    }
    return absl::OkStatus();
  }

  // The best rate of oneDNN at a layer's products of many rows.
  void MeasureProductPeak() {
#ifdef INFLLM_HAVE_ONEDNN
    const worker::LayerWeights& layer = model_->weights->layers[0];
    for (const kernels::Weight* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      const int64_t in = weight->packed.in_features, out = weight->packed.out_features;
      OneDnn product(kPrefillRows, in, out, backend_.preferred_dtype(), flags_.threads);
      for (int i = 0; i < 10; ++i) {
        const double start = backend_.Clock();
        product();
        product_peak_ = std::max(product_peak_, 2.0 * static_cast<double>(kPrefillRows * in * out) /
                                                    (backend_.Clock() - start));
      }
    }
#endif
  }

  // The longest time between two tokens of a decoder while another sequence reads.
  absl::Status MeasureGap() {
    double best_ratio = kNever, best_gap = 0, best_step = 0;
    for (int turn = 0; turn < flags_.turns; ++turn) {
      INFLLM_ASSIGN_OR_RETURN(const SequenceId reader, engine_->Fork(long_text_));
      INFLLM_ASSIGN_OR_RETURN(const SequenceId decoder, engine_->Fork(long_text_));
      const int64_t tokens = 8 * flags_.step_tokens;
      // A step at its token budget: the reader alone.
      std::vector<double> alone;
      {
        worker::Scheduler scheduler(*engine_, {.step_tokens = flags_.step_tokens});
        scheduler.Add({.sequence = reader, .tokens = RandomTokens(tokens, 7)});
        while (!scheduler.idle()) {
          const double start = Now();
          INFLLM_RETURN_IF_ERROR(scheduler.Step());
          alone.push_back(Now() - start);
        }
      }
      std::sort(alone.begin(), alone.end());
      const double step = alone[alone.size() / 2];

      bool reading = true;
      double last = 0, gap = 0;
      worker::Scheduler scheduler(*engine_, {.step_tokens = flags_.step_tokens});
      scheduler.Add({.sequence = decoder,
                     .tokens = {1},
                     .max_tokens = std::numeric_limits<int64_t>::max(),
                     .on_token = [&](int32_t) {
                       const double now = Now();
                       if (last > 0) gap = std::max(gap, now - last);
                       last = now;
                       return reading;
                     }});
      scheduler.Add({.sequence = reader,
                     .tokens = RandomTokens(tokens, 8),
                     .on_done = [&](const worker::Outcome&) { reading = false; }});
      INFLLM_RETURN_IF_ERROR(scheduler.Run());
      engine_->Drop(reader);
      engine_->Drop(decoder);
      if (gap / step < best_ratio) {
        best_ratio = gap / step;
        best_gap = gap;
        best_step = step;
      }
    }
    report_.Add("a step that reads its token budget", best_step * 1e3, "ms");
    report_.Add("longest gap between tokens beside a reader", best_gap * 1e3, "ms");
    report_.Add("longest gap by that step", best_ratio, "x", "<= 1.5");
    return absl::OkStatus();
  }

  const Flags& flags_;
  kernels::ThreadPool pool_;
  const std::unique_ptr<kernels::Backend> cpu_;
  TimedBackend backend_;
  const kernels::Isa isa_;
  std::unique_ptr<worker::LoadedModel> model_;
  std::unique_ptr<memstore::MemoryStore> store_;
  std::unique_ptr<Engine> engine_;
  SequenceId long_text_{};
  double peak_ = 0;
  double product_peak_ = 0;  // of oneDNN
  Report report_;
};

int Main(int argc, char** argv) {
  CLI::App app{"The engine on a small Llama with random weights"};
  Flags flags;
  const auto add = [&](const char* name, auto& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str();
  };
  add("--threads", flags.threads, "compute threads");
  add("--width", flags.model.hidden_size, "of the model");
  add("--layers", flags.model.layers, "of the model");
  add("--q-heads", flags.model.q_heads, "of the model");
  add("--kv-heads", flags.model.kv_heads, "of the model");
  add("--head-dim", flags.model.head_dim, "of the model");
  add("--ffn", flags.model.intermediate_size, "width of the model's feed-forward part");
  add("--vocab", flags.model.vocab_size, "of the model");
  add("--context", flags.context, "tokens of the text that is forked");
  add("--distinct-context", flags.distinct_context, "tokens of each of 32 distinct texts");
  add("--question", flags.question, "tokens that each of 32 forks reads of its own");
  add("--steps", flags.steps, "decoding steps in one turn");
  add("--turns", flags.turns, "the best of which counts");
  add("--step-tokens", flags.step_tokens, "token budget of a step");
  add("--ram-bytes", flags.ram_bytes, "RAM for far blocks");
  app.add_option("--parts", flags.parts, "of the benchmark")
      ->delimiter(',')
      ->check(CLI::IsMember({"decode", "prefill", "gemm", "gap"}))
      ->capture_default_str();
  app.add_option("--write-model", flags.write_model, "only write the model into this directory");
  app.add_flag("--processor-time", flags.processor_time,
               "count the processor time of steps, by threads: for a machine with other work");
  app.add_flag("--json", flags.json, "print JSON");
  AddMethodFlags(app, flags.attention);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = flags.write_model.empty()
                                  ? Bench(flags).Run()
                                  : WriteRandomModel(flags.model, flags.write_model);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "engine_bench: %s\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace infllm::bench

int main(int argc, char** argv) { return infllm::bench::Main(argc, argv); }
