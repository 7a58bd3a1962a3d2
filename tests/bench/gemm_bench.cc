// Linear of the CPU backend, next to what the machine can do at best and to oneDNN's matmul (where
// it is installed), all measured in the same run:
//   of_peak       of the flops that registers alone allow, on as many threads
//   of_bandwidth  of the rate at which memory can be read, counting the weights once
//   vs_onednn     our rate by oneDNN's: packed weights on both sides; its activations are already
//                 bf16 and unpacked, ours are floats that are converted and packed on the way
// Times are the best of all iterations: other tenants of the machine only ever add to them.
//   gemm_bench [--benchmark_filter=bf16/rows:512]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/bench/ceilings.h"

#ifdef INFLLM_HAVE_ONEDNN
#include <omp.h>

#include <dnnl.hpp>
#include <unordered_map>
#endif

namespace infllm::bench {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::DType;
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
double Seconds(F call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best time of one call in one turn.
template <typename F>
double BestOfTurn(F call) {
  double best = 1e9;
  for (double total = 0; total < kTurnSeconds;) {
    const double seconds = Seconds(call);
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

#ifdef INFLLM_HAVE_ONEDNN
class OneDnn {
 public:
  OneDnn(int64_t rows, int64_t size, DType dtype, int threads) : stream_(engine_) {
    using dnnl::memory;
    omp_set_num_threads(threads);
    const auto type = dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
    const memory::desc x({rows, size}, type, memory::format_tag::ab);
    const memory::desc w({size, size}, type, memory::format_tag::any);
    const memory::desc y({rows, size}, memory::data_type::f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc plan(dnnl::matmul::desc(x, w, y), engine_);
    matmul_ = dnnl::matmul(plan);
    args_ = {{DNNL_ARG_SRC, Zeroed(x)},
             {DNNL_ARG_WEIGHTS, Zeroed(plan.weights_desc())},
             {DNNL_ARG_DST, Zeroed(y)}};
  }
  void operator()() {
    matmul_.execute(stream_, args_);
    stream_.wait();
  }

 private:
  dnnl::memory Zeroed(const dnnl::memory::desc& desc) {
    dnnl::memory memory(desc, engine_);
    std::memset(memory.get_data_handle(), 0, desc.get_size());
    return memory;
  }
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> args_;
};
#endif

void Linear(benchmark::State& state, DType dtype, int64_t rows, int64_t size, int threads) {
  ThreadPool& pool = Pool(threads);
  const std::unique_ptr<Backend> backend = kernels::NewCpuBackend(pool);
  const std::vector<float> values(size * size, 0.5f);
  const WeightSource source = {values.data(), DType::kF32, size};
  const Weight weight = backend->PackWeight({&source, 1}, size, dtype).value();
  const std::vector<float> x(rows * size, 0.25f);
  std::vector<float> y(rows * size);

  const auto multiply = [&] {
    const absl::Status status =
        backend->Linear(Backend::kMainStream,
                        {.x = x.data(), .weight = weight.packed, .y = y.data(), .rows = rows});
    if (!status.ok()) state.SkipWithError("Linear failed");
  };
  double best = 1e9;
  for (auto _ : state) {
    const double seconds = Seconds(multiply);
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
#ifdef INFLLM_HAVE_ONEDNN
  OneDnn onednn(rows, size, dtype, threads);
  double other = 1e9;
  for (int turn = 0; turn < kTurns; ++turn) {
    other = std::min(other, BestOfTurn([&] { onednn(); }));
    best = std::min(best, BestOfTurn(multiply));
  }
#endif

  const double flops = 2.0 * rows * size * size;
  const double bytes = static_cast<double>(size * size * kernels::SizeOf(dtype));
  const double peak = dtype == DType::kBF16 ? Bf16PeakFlops(pool)
                                            : FmaPeakFlops(pool, kernels::SupportedIsas().back());
  state.counters["best_us"] = best * 1e6;
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["GB/s"] = bytes / best * 1e-9;
  state.counters["of_peak"] = flops / best / peak;
  state.counters["of_bandwidth"] = bytes / best / ReadBandwidth(pool);
#ifdef INFLLM_HAVE_ONEDNN
  state.counters["onednn_GFLOP/s"] = flops / other * 1e-9;
  state.counters["vs_onednn"] = other / best;
#endif
}

void RegisterAll() {
  std::vector<DType> dtypes = {DType::kF32};
  const std::vector<kernels::Isa> isas = kernels::SupportedIsas();
  if (isas.back() == kernels::Isa::kAvx512Bf16) dtypes.push_back(DType::kBF16);
  std::vector<int> thread_counts = {1};
  if (ThreadPool::DefaultThreads() > 1) thread_counts.push_back(ThreadPool::DefaultThreads());
  for (const int threads : thread_counts) {
    for (const DType dtype : dtypes) {
      for (const int64_t rows : {1, 16, 128, 512}) {
        for (const int64_t size : {64, 256, 512, 1024, 2048, 4096}) {
          const std::string name =
              "Linear/" + std::string(Name(dtype)) + "/rows:" + std::to_string(rows) +
              "/size:" + std::to_string(size) + "/threads:" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(), Linear, dtype, rows, size, threads)
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
