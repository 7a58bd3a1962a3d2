// Attention of the CPU backend against what the machine can do: the counters
// `of_peak` and `of_bandwidth` are ratios to ceilings measured in the same run. Rates are those of
// the best iteration: other tenants of the machine only ever add to a time.
//   attention_bench [--benchmark_filter=...]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/bench/bench_support.h"
#include "tests/bench/ceilings.h"

namespace infllm::bench {
namespace {

using kernels::AttentionArgs;
using kernels::AttentionSpan;
using kernels::Backend;
using kernels::BF16;
using kernels::DType;
using kernels::Isa;
using kernels::NewCpuBackend;
using kernels::PageEntry;
using kernels::PageShape;
using kernels::SupportedIsas;
using kernels::ThreadPool;

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

// A decoder layer's worth of inputs for `spans` sequences: near keys up to the last query, and
// blocks before them.
struct Layer {
  int64_t tokens = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;
  int64_t block_tokens = 0;
  int64_t page = 128;
  DType dtype = DType::kF32;
  bool mass = false;
  int64_t spans = 1;
};

class LayerInputs {
 public:
  explicit LayerInputs(const Layer& layer)
      : layer_(layer),
        shape_{layer.kv_heads, layer.head_dim, layer.page, layer.dtype},
        q_(Random(layer.spans * layer.tokens * layer.q_heads * layer.head_dim, 1)),
        out_(q_.size()),
        sequences_(static_cast<size_t>(layer.spans)) {
    const int64_t first = layer.block_tokens + layer.window;
    for (int64_t i = 0; i < layer.spans; ++i) {
      Sequence& sequence = sequences_[static_cast<size_t>(i)];
      sequence.blocks = Fill(0, layer.block_tokens);
      sequence.near = Fill(first - layer.window + 1, first + layer.tokens);
      AttentionSpan span;
      span.first_row = i * layer.tokens;
      span.rows = layer.tokens;
      span.first_position = first;
      span.near = sequence.near.data();
      span.near_pages = static_cast<int64_t>(sequence.near.size());
      span.blocks = sequence.blocks.data();
      span.block_count = static_cast<int64_t>(sequence.blocks.size());
      if (layer.mass) {
        for (size_t page = 0; page < sequence.near.size(); ++page) {
          pages_.emplace_back(static_cast<size_t>(layer.q_heads * layer.page));
          sequence.mass.push_back(pages_.back().data());
        }
        span.near_mass = sequence.mass.data();
      }
      spans_.push_back(span);
    }
    args_.q_near = q_.data();
    args_.q_far = q_.data();
    args_.out = out_.data();
    args_.spans = spans_.data();
    args_.span_count = layer.spans;
    args_.q_heads = layer.q_heads;
    args_.page = shape_;
    args_.window = layer.window;
    args_.scale = 1 / std::sqrt(static_cast<float>(layer.head_dim));
  }

  const AttentionArgs& args() const { return args_; }
  // 4 head_dim flops for each query and visible key: one product with K, one with V.
  double flops() const {
    const double visible = static_cast<double>(layer_.window + layer_.block_tokens);
    const int64_t rows = layer_.spans * layer_.tokens * layer_.q_heads;
    return 4.0 * visible * static_cast<double>(rows * layer_.head_dim);
  }
  double kv_bytes() const {
    const int64_t keys = layer_.window + layer_.tokens - 1 + layer_.block_tokens;
    return 2.0 * static_cast<double>(layer_.spans * keys * layer_.kv_heads * layer_.head_dim) *
           static_cast<double>(SizeOf(layer_.dtype));
  }

 private:
  struct Sequence {
    std::vector<PageEntry> near, blocks;
    std::vector<float*> mass;
  };

  std::vector<PageEntry> Fill(int64_t begin, int64_t end) {
    std::vector<PageEntry> entries;
    for (int64_t at = begin; at < end; at += layer_.page) {
      const int64_t words = shape_.page_bytes() / 4;
      pages_.push_back(Random(words, static_cast<uint32_t>(at + 7)));
      if (layer_.dtype == DType::kBF16) {
        auto* bits = reinterpret_cast<BF16*>(pages_.back().data());
        for (int64_t i = 0; i < words * 2; ++i) {
          bits[i] = BF16(static_cast<float>(i % 1999) / 1000.0f - 1.0f);
        }
      }
      entries.push_back({reinterpret_cast<const std::byte*>(pages_.back().data()), at, 0,
                         static_cast<int32_t>(std::min(layer_.page, end - at))});
    }
    return entries;
  }

  Layer layer_;
  PageShape shape_;
  std::vector<float> q_, out_;
  std::vector<std::vector<float>> pages_;
  std::vector<Sequence> sequences_;
  std::vector<AttentionSpan> spans_;
  AttentionArgs args_;
};

void RunAttention(benchmark::State& state, const Layer& layer, Isa isa) {
  const LayerInputs inputs(layer);
  const std::unique_ptr<Backend> backend = NewCpuBackend(Pool(), isa);
  const double peak = FmaPeakFlops(Pool(), isa);
  const double bandwidth = ReadBandwidth(Pool());
  const double seconds =
      BestSeconds(state, [&] { return backend->Attention(Backend::kMainStream, inputs.args()); });
  state.counters["flop/s"] = inputs.flops() / seconds;
  state.counters["of_peak"] = inputs.flops() / seconds / peak;
  state.counters["kv_B/s"] = inputs.kv_bytes() / seconds;
  state.counters["of_bandwidth"] = inputs.kv_bytes() / seconds / bandwidth;
}

void Register(const std::string& name, const Layer& layer, Isa isa) {
  benchmark::RegisterBenchmark(("attention/" + name + "/" + std::string(Name(isa))).c_str(),
                               [=](benchmark::State& state) { RunAttention(state, layer, isa); })
      ->UseRealTime()
      ->Unit(layer.head_dim == 8 ? benchmark::kMicrosecond : benchmark::kMillisecond);
}

void RegisterAll() {
  for (const Isa isa : SupportedIsas()) {
    for (const int64_t dim : {64, 128}) {
      const std::string d = "/d" + std::to_string(dim);
      const Layer prefill{512, 8, 8, dim, 4096, 0};
      Register("prefill" + d, prefill, isa);
      if (isa != SupportedIsas().back()) continue;
      Layer layer = prefill;
      layer.mass = true;
      Register("prefill_mass" + d, layer, isa);
      layer.block_tokens = 16 * 128;
      Register("prefill_mass_blocks" + d, layer, isa);
      layer = prefill;
      layer.kv_heads = 2;
      Register("prefill_gqa4" + d, layer, isa);
      layer.mass = true;
      Register("prefill_gqa4_mass" + d, layer, isa);
      layer = prefill;
      layer.dtype = DType::kBF16;
      Register("prefill_bf16" + d, layer, isa);
      Layer decode{1, 32, 8, dim, 4096, 16 * 128};
      Register("decode" + d, decode, isa);
      decode.dtype = DType::kBF16;
      Register("decode_bf16" + d, decode, isa);
      decode.mass = true;
      Register("decode_bf16_mass" + d, decode, isa);
      decode.mass = false;
      decode.spans = 32;
      Register("decode32_bf16" + d, decode, isa);
    }
    Register("tiny_decode/w64", {1, 8, 4, 8, 64, 0}, isa);
    Register("tiny_decode32/w64", {1, 8, 4, 8, 64, 0, 128, DType::kF32, false, 32}, isa);
    Register("tiny_decode/w512", {1, 8, 4, 8, 512, 4 * 64, 128, DType::kF32, true}, isa);
  }
  const Isa best = SupportedIsas().back();
  Register("full_64k/d64", {512, 4, 4, 64, 64 << 10, 0}, best);
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
