// Block selection of the CPU backend. Scoring reads every representative once, so `of_bandwidth`
// compares its bytes per second with what the machine reads at best, measured in the same run.
// Several queries at once share that reading: `of_passes` compares with as many calls of one query.
// Rates are those of the best iteration.
//   select_bench [--benchmark_filter=...]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
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
using kernels::RepresentativeShape;
using kernels::ScoreBlocksArgs;
using kernels::Scoring;
using kernels::ThreadPool;

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

struct Layer {
  std::string_view name;
  int64_t elements;  // of all representatives
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

void RunScoreBlocks(benchmark::State& state, const Layer& layer, const Selection& selection) {
  const RepresentativeShape shape = ShapeOf(selection.kind, layer.q_heads, layer.kv_heads);
  const int64_t blocks = layer.elements / (shape.rows() * layer.head_dim);
  const std::vector<float> query = Random(layer.q_heads * layer.head_dim, 1);
  std::vector<float> data = Random(layer.elements / (selection.dtype == DType::kBF16 ? 2 : 1), 2);
  if (selection.dtype == DType::kBF16) {  // else a float reads as two numbers of any size
    auto* bits = reinterpret_cast<BF16*>(data.data());
    for (int64_t i = 0; i < layer.elements; ++i) {
      bits[i] = BF16(static_cast<float>(i % 1999) / 1000.0f - 1.0f);
    }
  }
  const RepresentativeChunk chunk{data.data(), blocks};
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool());
  ScoreBlocksArgs args;
  args.query = query.data();
  args.chunks = {&chunk, 1};
  args.kind = selection.kind;
  args.dtype = selection.dtype;
  args.q_heads = layer.q_heads;
  args.kv_heads = layer.kv_heads;
  args.head_dim = layer.head_dim;
  args.scale = 1 / std::sqrt(static_cast<float>(layer.head_dim));
  args.scoring = selection.scoring;
  std::vector<float> scores(static_cast<size_t>(blocks));
  args.out = scores.data();
  const double bandwidth = ReadBandwidth(Pool());
  const double seconds = BestSeconds(state, [&] { return backend->ScoreBlocks(args); });
  const double bytes =
      static_cast<double>(layer.elements) * static_cast<double>(SizeOf(selection.dtype));
  state.counters["blocks/s"] = static_cast<double>(blocks) / seconds;
  state.counters["B/s"] = bytes / seconds;
  state.counters["of_bandwidth"] = bytes / seconds / bandwidth;
}

// Several queries in one call, against one call for each.
void RunQueriesAtOnce(benchmark::State& state) {
  constexpr int64_t kHeads = 8, kDim = 128, kElements = int64_t{64} << 20;
  const int64_t queries = state.range(0), blocks = kElements / (2 * kHeads * kDim);
  const std::vector<BF16> data(kElements, BF16(0.5f));
  const std::vector<float> query = Random(queries * kHeads * kDim, 1);
  const RepresentativeChunk chunk{data.data(), blocks};
  std::vector<float> scores(static_cast<size_t>(queries * blocks));
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool());
  ScoreBlocksArgs args;
  args.query = query.data();
  args.chunks = {&chunk, 1};
  args.out = scores.data();
  args.kind = RepresentativeKind::kBounds;
  args.dtype = DType::kBF16;
  args.q_heads = args.kv_heads = kHeads;
  args.head_dim = kDim;
  ScoreBlocksArgs together = args;
  together.queries = queries;
  double alone = std::numeric_limits<double>::infinity(), at_once = alone;
  for (auto _ : state) {  // in turns, so that both meet the same other load
    alone = std::min(alone, SecondsOf([&] { return backend->ScoreBlocks(args); }));
    at_once = std::min(at_once, SecondsOf([&] { return backend->ScoreBlocks(together); }));
  }
  state.counters["of_passes"] = at_once / (alone * static_cast<double>(queries));
}
BENCHMARK(RunQueriesAtOnce)
    ->Name("score/queries_at_once")
    ->Arg(1)
    ->Arg(4)
    ->Arg(8)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void RunTopK(benchmark::State& state) {
  const std::vector<float> scores = Random(state.range(0), 3);
  std::vector<int64_t> best(static_cast<size_t>(state.range(1)));
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool());
  const double seconds = BestSeconds(
      state, [&] { return backend->TopK(scores.data(), state.range(0), state.range(1), best); });
  state.counters["scores/s"] = static_cast<double>(state.range(0)) / seconds;
}
BENCHMARK(RunTopK)->Name("topk")->Args({16 << 10, 16})->Args({1 << 20, 96})->UseRealTime();

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
  const Layer mistral = {"h32_kv8_d128", int64_t{64} << 20, 32, 8, 128};  // in no cache
  for (const auto& [name, kind] : {std::pair{"mean_key", RepresentativeKind::kMeanKey},
                                   {"bounds", RepresentativeKind::kBounds}}) {
    for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        Register(mistral, {name, kind, scoring, dtype});
      }
    }
  }
  const Layer small = {"h8_kv8_d8", int64_t{1} << 20, 8, 8, 8};
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
