// What a store behind gRPC costs: Select, Fetch and Append in process, over a Unix socket and over
// TCP, next to memcpy of the same blocks. Client and server share this process, so both share its
// cores; malloc is tuned as in our binaries. All blocks fit the RAM tier: no disk is read.
//   Select/unix/KiB:512/blocks:16: the best 16 of 512 blocks of 512 KiB, for a new query each time
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "memstore/in_process_store.h"
#include "services/common/malloc_tuning.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"

namespace infllm {
namespace {

constexpr int64_t kBlocks = 512;

enum class Transport { kInProcess, kUnix, kTcp };

memstore::Geometry GeometryOf(int64_t block_kib) {
  memstore::Geometry geometry = {.layers = 1,
                                 .q_heads = 32,
                                 .kv_heads = 4,
                                 .head_dim = 64,
                                 .block_tokens = 64,
                                 .dtype = kernels::DType::kBF16};
  if (block_kib == 512) {
    geometry.kv_heads = 8;
    geometry.head_dim = 128;
    geometry.block_tokens = 128;
  }
  INFLLM_CHECK(geometry.payload_bytes() == static_cast<size_t>(block_kib) << 10);
  return geometry;
}

// A store with kBlocks blocks in one context, and the ways to reach it.
class Fixture {
 public:
  explicit Fixture(int64_t block_kib)
      : geometry_(GeometryOf(block_kib)),
        pool_(),
        backend_(kernels::NewCpuBackend(pool_)),
        store_(memstore::NewInProcessStore({.ram_capacity_bytes = int64_t{1} << 30}, *backend_,
                                           nullptr)
                   .value()),
        socket_((std::filesystem::temp_directory_path() /
                 ("infllm-bench-" + std::to_string(::getpid()) + "-" + std::to_string(block_kib)))
                    .string()) {
    unix_server_ = *services::MemstoreServer::Start({.path = socket_}, *store_);
    tcp_server_ = *services::MemstoreServer::Start({.path = "", .host = "127.0.0.1", .port = 0},
                                                   *store_, absl::Seconds(10), {.insecure = true});
    unix_store_ = *services::ConnectRemoteStore(unix_server_->endpoint().ToString(), {});
    tcp_store_ = *services::ConnectRemoteStore(tcp_server_->endpoint().ToString(), {});
    std::mt19937_64 random(7);
    payloads_.resize(kBlocks * geometry_.payload_bytes());
    for (size_t i = 0; i < payloads_.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(&payloads_[i], &word, sizeof(word));
    }
    std::normal_distribution<float> normal;
    // Least keys below zero, largest above.
    std::vector<float> representatives(kBlocks * geometry_.representative_floats());
    for (size_t i = 0; i < representatives.size(); ++i) {
      const bool least =
          i % geometry_.representative_floats() < geometry_.representative_floats() / 2;
      representatives[i] = (least ? -1 : 1) * std::abs(normal(random));
    }
    queries_.resize(16, std::vector<float>(geometry_.query_floats()));
    for (auto& query : queries_) {
      for (float& value : query) value = normal(random);
    }
    // Made by both clients' servers, which know only the contexts made through them.
    for (const auto transport : {Transport::kInProcess, Transport::kUnix, Transport::kTcp}) {
      memstore::MemoryStore& store = Get(transport);
      contexts_[transport] = memstore::NewContextId();
      INFLLM_CHECK(store.Create(contexts_[transport], {.geometry = geometry_}).ok());
      INFLLM_CHECK(store.Append(contexts_[transport], 0, 0, blocks(kBlocks)).ok());
      INFLLM_CHECK(store.Publish(contexts_[transport], 0, 0, representatives).ok());
    }
  }

  memstore::MemoryStore& Get(Transport transport) {
    return transport == Transport::kInProcess ? *store_
           : transport == Transport::kUnix    ? *unix_store_
                                              : *tcp_store_;
  }
  memstore::ContextId context(Transport transport) const { return contexts_.at(transport); }
  const memstore::Geometry& geometry() const { return geometry_; }
  const std::vector<std::byte>& payloads() const { return payloads_; }
  // The first `count` of them.
  std::vector<std::span<const std::byte>> blocks(int64_t count) const {
    std::vector<std::span<const std::byte>> blocks;
    const size_t bytes = geometry_.payload_bytes();
    for (int64_t i = 0; i < count; ++i) {
      blocks.push_back(std::span(payloads_).subspan(static_cast<size_t>(i) * bytes, bytes));
    }
    return blocks;
  }
  std::span<const float> query(int64_t i) const { return queries_[i % queries_.size()]; }

  static Fixture& Of(int64_t block_kib) {
    static std::map<int64_t, std::unique_ptr<Fixture>> fixtures;
    auto& fixture = fixtures[block_kib];
    if (fixture == nullptr) fixture = std::make_unique<Fixture>(block_kib);
    return *fixture;
  }

 private:
  const memstore::Geometry geometry_;
  kernels::ThreadPool pool_;
  const std::unique_ptr<kernels::Backend> backend_;
  const std::unique_ptr<memstore::MemoryStore> store_;
  const std::string socket_;
  std::unique_ptr<services::MemstoreServer> unix_server_, tcp_server_;
  std::unique_ptr<memstore::MemoryStore> unix_store_, tcp_store_;
  std::map<Transport, memstore::ContextId> contexts_;
  std::vector<std::byte> payloads_;
  std::vector<std::vector<float>> queries_;
};

// Blocks of the i-th round: spread over the pool, so that no cache has them.
std::vector<int64_t> Wanted(int64_t round, int64_t count) {
  std::vector<int64_t> blocks;
  for (int64_t i = 0; i < count; ++i) blocks.push_back((round * 101 + i * 37) % kBlocks);
  return blocks;
}

void Report(benchmark::State& state, const Fixture& fixture, int64_t blocks) {
  state.SetBytesProcessed(state.iterations() * blocks *
                          static_cast<int64_t>(fixture.geometry().payload_bytes()));
}

void Memcpy(benchmark::State& state) {
  const Fixture& fixture = Fixture::Of(state.range(0));
  const size_t bytes = fixture.geometry().payload_bytes();
  std::vector<std::byte> out(bytes * static_cast<size_t>(state.range(1)));
  int64_t round = 0;
  for (auto _ : state) {
    std::byte* to = out.data();
    for (const int64_t block : Wanted(round++, state.range(1))) {
      std::memcpy(to, &fixture.payloads()[static_cast<size_t>(block) * bytes], bytes);
      to += bytes;
    }
    benchmark::ClobberMemory();
  }
  Report(state, fixture, state.range(1));
}

void Select(benchmark::State& state, Transport transport) {
  Fixture& fixture = Fixture::Of(state.range(0));
  int64_t round = 0;
  for (auto _ : state) {
    const memstore::SelectQuery query = {.context = fixture.context(transport),
                                         .query = fixture.query(round++),
                                         .k = static_cast<int32_t>(state.range(1))};
    const auto selections = fixture.Get(transport).Select({.layer = 0, .queries = {&query, 1}});
    const absl::Status status = selections.ok() ? (*selections)[0].status : selections.status();
    if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
  }
  Report(state, fixture, state.range(1));
}

void Fetch(benchmark::State& state, Transport transport) {
  Fixture& fixture = Fixture::Of(state.range(0));
  int64_t round = 0;
  for (auto _ : state) {
    const auto blocks = fixture.Get(transport).Fetch(fixture.context(transport), 0,
                                                     Wanted(round++, state.range(1)));
    if (!blocks.ok()) state.SkipWithError(std::string(blocks.status().message()).c_str());
  }
  Report(state, fixture, state.range(1));
}

// Into a new context each time; dropping it is not timed.
void Append(benchmark::State& state, Transport transport) {
  Fixture& fixture = Fixture::Of(state.range(0));
  const auto blocks = fixture.blocks(state.range(1));
  memstore::MemoryStore& store = fixture.Get(transport);
  for (auto _ : state) {
    state.PauseTiming();
    const memstore::ContextId context = memstore::NewContextId();
    INFLLM_CHECK(store.Create(context, {.geometry = fixture.geometry()}).ok());
    state.ResumeTiming();
    const absl::Status status = store.Append(context, 0, 0, blocks);
    if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
    state.PauseTiming();
    INFLLM_CHECK(store.Drop(context).ok());
    state.ResumeTiming();
  }
  Report(state, fixture, state.range(1));
}

void Sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->Args({64, 1})->Args({64, 16})->Args({512, 1})->Args({512, 16});
  // CPU is that of all threads, so of both ends: on a busy machine the steadier of the two columns.
  benchmark->ArgNames({"KiB", "blocks"})->UseRealTime()->MeasureProcessCPUTime();
  benchmark->Unit(benchmark::kMicrosecond);
}

BENCHMARK(Memcpy)->Apply(Sizes);
BENCHMARK_CAPTURE(Fetch, in_process, Transport::kInProcess)->Apply(Sizes);
BENCHMARK_CAPTURE(Fetch, unix, Transport::kUnix)->Apply(Sizes);
BENCHMARK_CAPTURE(Fetch, tcp, Transport::kTcp)->Apply(Sizes);
BENCHMARK_CAPTURE(Select, in_process, Transport::kInProcess)->Apply(Sizes)->Args({64, 0});
BENCHMARK_CAPTURE(Select, unix, Transport::kUnix)->Apply(Sizes)->Args({64, 0});
BENCHMARK_CAPTURE(Select, tcp, Transport::kTcp)->Apply(Sizes)->Args({64, 0});
BENCHMARK_CAPTURE(Append, in_process, Transport::kInProcess)->Apply(Sizes);
BENCHMARK_CAPTURE(Append, unix, Transport::kUnix)->Apply(Sizes);
BENCHMARK_CAPTURE(Append, tcp, Transport::kTcp)->Apply(Sizes);

}  // namespace
}  // namespace infllm

int main(int argc, char** argv) {
  infllm::services::TuneMallocForMessages();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
