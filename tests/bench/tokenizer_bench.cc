// Rates of encoding and decoding, in bytes of text:
//   tokenizer_bench MODEL TEXT [benchmark flags]
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "worker/tokenizer/tokenizer.h"

namespace infllm::worker {
namespace {

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL TEXT [benchmark flags]\n", argv[0]);
    return 2;
  }
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadSentencePiece(argv[1]);
  std::ifstream stream(argv[2], std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(stream)),
                         std::istreambuf_iterator<char>());
  if (!tokenizer.ok() || text.empty()) {
    std::fprintf(stderr, "%s\n",
                 tokenizer.ok() ? "the text is empty or cannot be read"
                                : tokenizer.status().ToString().c_str());
    return 1;
  }
  const std::vector<int32_t> ids = (*tokenizer)->Encode(text);
  const auto report = [&](benchmark::State& state) {
    state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
    state.counters["tokens"] = static_cast<double>(ids.size());
  };
  benchmark::RegisterBenchmark("Encode", [&](benchmark::State& state) {
    for (auto _ : state) benchmark::DoNotOptimize((*tokenizer)->Encode(text));
    report(state);
  })->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("Decode", [&](benchmark::State& state) {
    for (auto _ : state) benchmark::DoNotOptimize((*tokenizer)->Decode(ids));
    report(state);
  })->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace infllm::worker

int main(int argc, char** argv) { return infllm::worker::Main(argc, argv); }
