// Linear of the CPU backend, next to what the machine can do at best and to oneDNN's matmul (where
// it is installed), all measured in the same run:
//   of_peak       of the flops that registers alone allow, on as many threads
//   of_bandwidth  of the rate at which memory can be read, counting the weights once
//   vs_onednn     our rate by oneDNN's: packed weights on both sides; its activations are already
//                 bf16 and unpacked, ours are floats that are converted and packed on the way
//   vs_avx512bf16 our rate with AMX by our own without
// Times are the best of all iterations: other tenants of the machine only ever add to them.
//   gemm_bench [--benchmark_filter=bf16/rows:512]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/bench/ceilings.h"
#include "tests/bench/onednn.h"

namespace infllm::bench {
namespace {

using kernels::Backend;
using kernels::DType;
using kernels::Isa;
using kernels::ThreadPool;
using kernels::Weight;
using kernels::WeightSource;

constexpr double kMinSeconds = 0.2;
// The two sides of a comparison take turns, so that a busy spell of the machine hits both.
constexpr int kTurns = 6;
constexpr double kTurnSeconds = 0.05;

// One pool at a time: those of other sizes would wake up next to it.
ThreadPool& Pool(int threads) {
  static std::unique_ptr<ThreadPool> pool;
  if (pool == nullptr || pool->threads() != threads) {
    pool.reset();
    pool = std::make_unique<ThreadPool>(threads);
  }
  return *pool;
}

template <typename F>
double Seconds(F& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best time of one call in one turn.
template <typename F>
double BestOfTurn(F& call) {
  double best = 1e9;
  for (double total = 0; total < kTurnSeconds;) {
    const double seconds = Seconds(call);
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

struct Contender {
  std::string name;  // of the ratio: our rate by its rate
  std::function<void()> run;
  double best = 1e9;
};

// Of a weight.
struct Shape {
  int64_t in, out;
};

// Linear with the instructions of one set.
class Ours {
 public:
  Ours(ThreadPool& pool, Isa isa, int64_t rows, Shape shape, DType dtype)
      : backend_(kernels::NewCpuBackend(pool, isa)),
        rows_(rows),
        x_(rows * shape.in, 0.25f),
        y_(rows * shape.out) {
    const std::vector<float> values(shape.in * shape.out, 0.5f);
    const WeightSource source = {values.data(), DType::kF32, shape.out};
    weight_ = backend_->PackWeight({&source, 1}, shape.in, dtype).value();
  }
  void operator()() {
    ok_ &= backend_
               ->Linear(Backend::kMainStream,
                        {.x = x_.data(), .weight = weight_.packed, .y = y_.data(), .rows = rows_})
               .ok();
  }
  bool ok() const { return ok_; }

 private:
  std::unique_ptr<Backend> backend_;
  Weight weight_;
  int64_t rows_;
  std::vector<float> x_, y_;
  bool ok_ = true;
};

void Linear(benchmark::State& state, DType dtype, int64_t rows, Shape shape, int threads) {
  ThreadPool& pool = Pool(threads);
  const Isa isa = kernels::SupportedIsas().back();
  Ours ours(pool, isa, rows, shape, dtype);
  double best = 1e9;
  for (auto _ : state) {
    const double seconds = Seconds(ours);
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }

  std::vector<Contender> others;
#ifdef INFLLM_HAVE_ONEDNN
  OneDnn onednn(rows, shape.in, shape.out, dtype, threads);
  others.push_back({"vs_onednn", std::ref(onednn)});
#endif
  std::optional<Ours> without_amx;
  if (isa == Isa::kAmx && dtype == DType::kBF16) {
    without_amx.emplace(pool, Isa::kAvx512Bf16, rows, shape, dtype);
    others.push_back({"vs_avx512bf16", std::ref(*without_amx)});
  }
  for (int turn = 0; turn < kTurns; ++turn) {
    for (Contender& other : others) other.best = std::min(other.best, BestOfTurn(other.run));
    best = std::min(best, BestOfTurn(ours));
  }
  if (!ours.ok()) state.SkipWithError("Linear failed");

  const double flops = 2.0 * rows * shape.in * shape.out;
  const double bytes = static_cast<double>(shape.in * shape.out * kernels::SizeOf(dtype));
  const double peak = dtype == DType::kBF16 ? Bf16PeakFlops(pool, isa) : FmaPeakFlops(pool, isa);
  state.counters["best_us"] = best * 1e6;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["GB/s"] = bytes / best * 1e-9;
  state.counters["of_peak"] = flops / best / peak;
  state.counters["of_bandwidth"] = bytes / best / ReadBandwidth(pool);
  for (const Contender& other : others) state.counters[other.name] = other.best / best;
}

void RegisterAll() {
  std::vector<DType> dtypes = {DType::kF32};
  const std::vector<Isa> isas = kernels::SupportedIsas();
  if (isas.back() >= Isa::kAvx512Bf16) dtypes.push_back(DType::kBF16);
  std::vector<int> thread_counts = {1};
  if (ThreadPool::DefaultThreads() > 1) thread_counts.push_back(ThreadPool::DefaultThreads());
  // Squares, and those of a layer of a small Llama.
  const Shape shapes[] = {{64, 64},     {256, 256},   {512, 512},   {1024, 1024}, {2048, 2048},
                          {4096, 4096}, {1024, 3072}, {1024, 5632}, {2816, 1024}};
  for (const int threads : thread_counts) {
    for (const DType dtype : dtypes) {
      for (const int64_t rows : {1, 2, 4, 8, 32, 128, 512}) {
        for (const Shape shape : shapes) {
          const std::string name =
              "Linear/" + std::string(Name(dtype)) + "/rows:" + std::to_string(rows) +
              "/in:" + std::to_string(shape.in) + "/out:" + std::to_string(shape.out) +
              "/threads:" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(), Linear, dtype, rows, shape, threads)
              ->UseManualTime()
              ->MinTime(kMinSeconds)
              ->Unit(benchmark::kMicrosecond);
        }
      }
    }
  }
}

}  // namespace
}  // namespace infllm::bench

int main(int argc, char** argv) {
  infllm::bench::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
