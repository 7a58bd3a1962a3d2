// Block selection and sampling of the CPU backend. Scoring one query reads every representative
// once, so `of_bandwidth` compares its bytes per second with what the machine reads at best,
// measured in the same run. Several queries that share chunks share that reading: `of_passes`
// compares with as many calls of one query each, `of_fma` with the most products that the machine
// can make. Rates are those of the best iteration.
//   select_bench [--benchmark_filter=...]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/bench/bench_support.h"
#include "tests/bench/ceilings.h"

namespace infllm::bench {
namespace {

using kernels::Backend;
using kernels::BF16;
using kernels::DType;
using kernels::NewCpuBackend;
using kernels::RepresentativeChunk;
using kernels::RepresentativeKind;
using kernels::SampleArgs;
using kernels::SampleItem;
using kernels::ScoreBlocksArgs;
using kernels::ScoreItem;
using kernels::Scoring;
using kernels::ThreadPool;
using kernels::TopKItem;

constexpr kernels::Stream kStream = Backend::kMainStream;

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

struct Layer {
  std::string_view name;
  int64_t blocks;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t head_dim;
};
struct Selection {
  std::string_view kind_name;
  RepresentativeKind kind;
  Scoring scoring;
  DType dtype;
};

// Queries over the same chunk of representatives.
class ScoreProblem {
 public:
  ScoreProblem(const Layer& layer, const Selection& selection, int64_t queries)
      : elements_(layer.blocks * ShapeOf(selection.kind, layer.q_heads, layer.kv_heads).rows() *
                  layer.head_dim),
        query_(Random(queries * layer.q_heads * layer.head_dim, 1)),
        data_(Random(elements_ / (selection.dtype == DType::kBF16 ? 2 : 1), 2)),
        scores_(static_cast<size_t>(queries * layer.blocks)) {
    if (selection.dtype == DType::kBF16) {  // else a float reads as two numbers of any size
      auto* bits = reinterpret_cast<BF16*>(data_.data());
      for (int64_t i = 0; i < elements_; ++i) {
        bits[i] = BF16(static_cast<float>(i % 1999) / 1000.0f - 1.0f);
      }
    }
    chunk_ = {data_.data(), layer.blocks};
    for (int64_t i = 0; i < queries; ++i) {
      items_.push_back({query_.data() + i * layer.q_heads * layer.head_dim, &chunk_, 1,
                        scores_.data() + i * layer.blocks});
    }
    args_.items = items_.data();
    args_.count = queries;
    args_.kind = selection.kind;
    args_.dtype = selection.dtype;
    args_.q_heads = layer.q_heads;
    args_.kv_heads = layer.kv_heads;
    args_.head_dim = layer.head_dim;
    args_.scale = 1 / std::sqrt(static_cast<float>(layer.head_dim));
    args_.scoring = selection.scoring;
  }
  const ScoreBlocksArgs& args() const { return args_; }
  double elements() const { return static_cast<double>(elements_); }
  double bytes() const { return elements() * static_cast<double>(SizeOf(args_.dtype)); }

 private:
  int64_t elements_;
  std::vector<float> query_;
  std::vector<float> data_;
  std::vector<float> scores_;
  RepresentativeChunk chunk_;
  std::vector<ScoreItem> items_;
  ScoreBlocksArgs args_;
};

void RunScoreBlocks(benchmark::State& state, const Layer& layer, const Selection& selection) {
  const ScoreProblem problem(layer, selection, 1);
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool());
  const double bandwidth = ReadBandwidth(Pool());
  const double seconds =
      BestSeconds(state, [&] { return backend->ScoreBlocks(kStream, problem.args()); });
  state.counters["blocks/s"] = static_cast<double>(layer.blocks) / seconds;
  state.counters["B/s"] = problem.bytes() / seconds;
  state.counters["of_bandwidth"] = problem.bytes() / seconds / bandwidth;
}

// The queries of a sequence's exec blocks and of forks of a context, against one call for each. The
// representatives (32 and 64 MiB) may stay in a large last-level cache: then one query alone is
// faster than from memory, and sharing its reading gains less.
void RunQueriesAtOnce(benchmark::State& state) {
  const int64_t queries = state.range(0);
  const ScoreProblem problem({"", 16 << 10, state.range(1), state.range(1), state.range(2)},
                             {"", RepresentativeKind::kBounds, Scoring::kMean, DType::kBF16},
                             queries);
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool());
  const double peak = FmaPeakFlops(Pool(), kernels::SupportedIsas().back());
  ScoreBlocksArgs one = problem.args();
  one.count = 1;
  double alone = std::numeric_limits<double>::infinity(), at_once = alone;
  for (auto _ : state) {  // in turns, so that both meet the same other load
    alone = std::min(alone, SecondsOf([&] { return backend->ScoreBlocks(kStream, one); }));
    at_once =
        std::min(at_once, SecondsOf([&] { return backend->ScoreBlocks(kStream, problem.args()); }));
  }
  state.counters["of_passes"] = at_once / (alone * static_cast<double>(queries));
  state.counters["of_fma"] = 2 * problem.elements() * static_cast<double>(queries) / at_once / peak;
  state.counters["B/s_alone"] = problem.bytes() / alone;
}
BENCHMARK(RunQueriesAtOnce)
    ->Name("score/queries_at_once")
    ->ArgNames({"queries", "heads", "dim"})
    ->ArgsProduct({{1, 4, 8, 32}, {8}, {64, 128}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void RunTopK(benchmark::State& state) {
  const std::vector<float> scores = Random(state.range(0), 3);
  std::vector<int64_t> index(static_cast<size_t>(state.range(1)));
  std::vector<float> score(index.size());
  const TopKItem item{scores.data(), state.range(0), state.range(1), index.data(), score.data()};
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool());
  const double seconds = BestSeconds(state, [&] { return backend->TopK(kStream, {&item, 1}); });
  state.counters["scores/s"] = static_cast<double>(state.range(0)) / seconds;
}
BENCHMARK(RunTopK)->Name("topk")->Args({16 << 10, 16})->Args({1 << 20, 96})->UseRealTime();

// Logits as peaked as a language model's.
void RunSample(benchmark::State& state, SampleItem item, bool logprob) {
  constexpr int64_t kVocab = 151936;
  std::vector<float> logits = Random(kVocab, 4);
  for (int64_t i = 0; i < kVocab; ++i) {
    logits[static_cast<size_t>(i * 7919 % kVocab)] -= 2.0f * std::log1p(static_cast<float>(i));
  }
  int32_t token = 0;
  double probability = 0;
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool());
  SampleArgs args{logits.data(), &item, 1, kVocab, &token, logprob ? &probability : nullptr};
  const double seconds = BestSeconds(state, [&] {
    item.uniform = std::fmod(item.uniform + 0.61803, 1.0);
    return backend->Sample(kStream, args);
  });
  state.counters["best_us"] = seconds * 1e6;
}
BENCHMARK_CAPTURE(RunSample, greedy, SampleItem{}, false)->UseRealTime();
BENCHMARK_CAPTURE(RunSample, greedy_logprob, SampleItem{}, true)->UseRealTime();
BENCHMARK_CAPTURE(RunSample, all, SampleItem{.temperature = 1}, false)->UseRealTime();
BENCHMARK_CAPTURE(RunSample, top_p, SampleItem{.temperature = 1, .top_p = 0.9}, false)
    ->UseRealTime();
BENCHMARK_CAPTURE(RunSample, top_k, SampleItem{.temperature = 1, .top_k = 40}, false)
    ->UseRealTime();

void Register(const Layer& layer, const Selection& selection) {
  const std::string name = "score/" + std::string(layer.name) + "/" +
                           std::string(selection.kind_name) +
                           (selection.scoring == Scoring::kMean ? "/mean/" : "/head_vote/") +
                           std::string(Name(selection.dtype));
  benchmark::RegisterBenchmark(
      name.c_str(), [=](benchmark::State& state) { RunScoreBlocks(state, layer, selection); })
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

void RegisterAll() {
  const Layer mistral = {"h32_kv8_d128", 32 << 10, 32, 8, 128};  // 128 MiB and more: in no cache
  for (const auto& [name, kind] : {std::pair{"mean_key", RepresentativeKind::kMeanKey},
                                   {"bounds", RepresentativeKind::kBounds}}) {
    for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        Register(mistral, {name, kind, scoring, dtype});
      }
    }
  }
  const Layer small = {"h8_kv8_d8", 16 << 10, 8, 8, 8};
  for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
    Register(small, {"mean_key", RepresentativeKind::kMeanKey, scoring, DType::kF32});
  }
}

}  // namespace
}  // namespace infllm::bench

int main(int argc, char** argv) {
  infllm::bench::RegisterAll();
  benchmark::AddCustomContext("threads", std::to_string(infllm::bench::Pool().threads()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
