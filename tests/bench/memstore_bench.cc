// The memory store next to what it is made of, in the same run:
//   cold_put, cold_get   RocksDB against raw O_DIRECT pwrite and pread of the same sizes on the
//                        same disk, in alternation; `of_raw` is the ratio. Files go to $TMPDIR.
//   select_hit           Selects of 1 to 32 queries of one context whose blocks the caller has,
//                        against the bare ranking; representatives in fp32 or bf16
//   ram_fetch            pinning 16 payloads in RAM, against copying them (memcpy)
//   append               copying and checksumming payloads into RAM, against memcpy, crc32c, and
//                        both in one pass
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/thread_pool.h"
#include "memstore/cold_key.h"
#include "memstore/crc32c.h"
#include "memstore/in_process_store.h"
#include "memstore/selector.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

constexpr size_t kTotalBytes = size_t{1} << 30;  // ten times what RocksDB buffers
constexpr size_t kPutBytes = size_t{8} << 20;    // one batch of demotion
constexpr int kReaders = 4;
constexpr int kGetKeys = 16;

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Pages of random bytes, as direct IO wants them.
class Pages {
 public:
  explicit Pages(size_t bytes)
      : bytes_(bytes),
        data_(static_cast<std::byte*>(
            ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    INFLLM_CHECK(data_ != MAP_FAILED);
    std::mt19937_64 random(1);
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
      const uint64_t word = random();
      std::memcpy(data_ + i, &word, 8);
    }
  }
  ~Pages() { ::munmap(data_, bytes_); }
  std::byte* data() const { return data_; }
  std::span<const std::byte> bytes() const { return {data_, bytes_}; }

 private:
  size_t bytes_;
  std::byte* data_;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T Check(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

class RawFile {
 public:
  explicit RawFile(const std::string& path)
      : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600)) {
    if (fd_ < 0) Check(absl::UnavailableError("no direct IO there: set TMPDIR to a disk"));
  }
  ~RawFile() { ::close(fd_); }
  void Write(const std::byte* data, size_t bytes, size_t offset) {
    INFLLM_CHECK(::pwrite(fd_, data, bytes, static_cast<off_t>(offset)) ==
                 static_cast<ssize_t>(bytes));
  }
  void Read(std::byte* out, size_t bytes, size_t offset) {
    INFLLM_CHECK(::pread(fd_, out, bytes, static_cast<off_t>(offset)) ==
                 static_cast<ssize_t>(bytes));
  }

 private:
  int fd_;
};

void PutRange(ColdStore& store, const Pages& data, size_t value_bytes, uint64_t first,
              uint64_t count) {
  std::vector<ColdKey> keys;
  std::vector<ColdStore::Entry> entries;
  keys.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    keys.emplace_back(first + i);
    entries.push_back(
        {.key = keys.back().view(), .body = data.bytes().subspan(i * value_bytes, value_bytes)});
  }
  Check(store.Put(entries));
}

void Report(benchmark::State& state, double bytes, double store_seconds, double raw_seconds) {
  state.counters["GB/s"] = bytes / store_seconds / 1e9;
  state.counters["raw_GB/s"] = bytes / raw_seconds / 1e9;
  state.counters["of_raw"] = raw_seconds / store_seconds;
}

void ColdPut(benchmark::State& state) {
  const size_t value_bytes = state.range(0);
  const Pages data(kPutBytes);
  const ::infllm::testing::TempDir dir;
  const auto store = Check(OpenRocksDb({.directory = dir.file("cold"), .scratch = true}));
  RawFile raw(dir.file("raw"));
  double raw_seconds = 0, store_seconds = 0;
  uint64_t next_key = 1;
  for (auto _ : state) {
    const Stopwatch raw_watch;
    for (size_t at = 0; at < kTotalBytes; at += kPutBytes) raw.Write(data.data(), kPutBytes, at);
    raw_seconds += raw_watch.Seconds();
    const Stopwatch watch;
    for (size_t at = 0; at < kTotalBytes; at += kPutBytes) {
      PutRange(*store, data, value_bytes, next_key, kPutBytes / value_bytes);
      next_key += kPutBytes / value_bytes;
    }
    state.SetIterationTime(watch.Seconds());
    store_seconds += watch.Seconds();
  }
  Report(state, static_cast<double>(state.iterations()) * kTotalBytes, store_seconds, raw_seconds);
}

void ColdGet(benchmark::State& state) {
  const size_t value_bytes = state.range(0);
  const int keys_per_get = static_cast<int>(state.range(1));
  const ::infllm::testing::TempDir dir;
  const auto store = Check(OpenRocksDb({.directory = dir.file("cold"), .scratch = true}));
  RawFile raw(dir.file("raw"));
  {
    const Pages data(kPutBytes);
    for (size_t at = 0; at < kTotalBytes; at += kPutBytes) {
      raw.Write(data.data(), kPutBytes, at);
      PutRange(*store, data, value_bytes, at / value_bytes, kPutBytes / value_bytes);
    }
  }
  const Pages out(keys_per_get * value_bytes);
  kernels::ThreadPool raw_readers(keys_per_get == 1 ? 1 : kReaders);
  std::mt19937_64 random(7);
  const uint64_t values = kTotalBytes / value_bytes;
  const auto slot = [&](int64_t i) { return out.data() + i * value_bytes; };
  double raw_seconds = 0, store_seconds = 0;
  for (auto _ : state) {
    std::vector<uint64_t> numbers(keys_per_get);
    for (uint64_t& number : numbers) number = random() % values;
    const Stopwatch raw_watch;
    raw_readers.ParallelFor(keys_per_get, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        raw.Read(slot(i), value_bytes, numbers[i] * value_bytes);
      }
    });
    raw_seconds += raw_watch.Seconds();
    for (uint64_t& number : numbers) number = random() % values;
    const Stopwatch watch;
    std::vector<ColdKey> keys(numbers.begin(), numbers.end());
    std::vector<std::string_view> views;
    std::vector<std::span<std::byte>> outs;
    for (int i = 0; i < keys_per_get; ++i) {
      views.push_back(keys[i].view());
      outs.emplace_back(slot(i), value_bytes);
    }
    for (const absl::Status& status : store->Get(views, outs)) Check(status);
    state.SetIterationTime(watch.Seconds());
    store_seconds += watch.Seconds();
  }
  Report(state, static_cast<double>(state.iterations()) * keys_per_get * value_bytes, store_seconds,
         raw_seconds);
}

ContextId NewContext(MemoryStore& store, const Geometry& shape) {
  const ContextId id = NewContextId();
  Check(store.Create(id, {.geometry = shape}));
  return id;
}

void AppendOne(MemoryStore& store, const ContextId& id, int64_t block,
               std::span<const std::byte> payload) {
  Check(store.Append(id, 0, block, {&payload, 1}));
}

// A context of one layer over 1M tokens in blocks of 64; small payloads, because only the scan and
// the bookkeeping count here.
class SelectHit {
 public:
  static constexpr int64_t kBlocks = 15625;
  static constexpr Geometry Shape(kernels::DType dtype) {
    return {.layers = 1,
            .q_heads = 8,
            .kv_heads = 2,
            .head_dim = 64,
            .block_tokens = 4,
            .dtype = dtype};
  }

  SelectHit(kernels::DType dtype, int64_t blocks, int64_t queries)
      : shape_(Shape(dtype)), id_(NewContext(*store_, shape_)) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> bounds(blocks * shape_.representative_floats());
    for (float& value : bounds) value = normal(random);
    const size_t half = shape_.representative_floats() / 2;
    for (size_t block = 0; block < bounds.size(); block += 2 * half) {
      for (size_t i = block; i < block + half; ++i) {
        if (bounds[i] > bounds[i + half]) std::swap(bounds[i], bounds[i + half]);
      }
    }
    const std::vector<std::byte> payload(shape_.payload_bytes());
    const std::vector<std::span<const std::byte>> payloads(blocks, payload);
    Check(store_->Append(id_, 0, 0, payloads));
    Check(store_->Publish(id_, 0, 0, bounds));
    view_ = std::make_shared<const IndexView>(Check(store_->View(id_, 0)));
    for (int64_t i = 0; i < blocks; ++i) have_.push_back(i);
    vectors_.resize(queries * shape_.query_floats());
    for (float& value : vectors_) value = normal(random);
    for (int64_t i = 0; i < queries; ++i) {
      const auto query = std::span<const float>(vectors_).subspan(i * shape_.query_floats(),
                                                                  shape_.query_floats());
      queries_.push_back({.context = id_, .query = query, .k = 16, .have = have_});
      ranked_.push_back({.query = query, .geometry = &shape_, .view = view_, .k = 16});
    }
  }

  const Geometry shape_;
  kernels::ThreadPool pool_;
  const std::unique_ptr<kernels::Backend> backend_ = kernels::NewCpuBackend(pool_);
  Selector selector_{*backend_};
  const std::unique_ptr<MemoryStore> store_ = NewInProcessStore({}, *backend_, nullptr).value();
  const ContextId id_;
  std::shared_ptr<const IndexView> view_;
  std::vector<int64_t> have_;
  std::vector<float> vectors_;
  std::vector<SelectQuery> queries_;
  std::vector<RankQuery> ranked_;
};

void SelectHitBench(benchmark::State& state, kernels::DType dtype) {
  SelectHit fixture(dtype, SelectHit::kBlocks, state.range(0));
  // The k best of each query, as a worker's cache would hold them.
  std::vector<std::vector<int64_t>> have;
  for (const Selection& selection : Check(fixture.store_->Select({.queries = fixture.queries_}))) {
    have.emplace_back();
    for (const SelectedBlock& block : selection.blocks) have.back().push_back(block.index);
  }
  for (size_t i = 0; i < have.size(); ++i) fixture.queries_[i].have = have[i];
  double rank_seconds = 0, select_seconds = 0;
  for (auto _ : state) {
    const Stopwatch ranking;
    benchmark::DoNotOptimize(
        Check(fixture.selector_.Rank(kernels::Scoring::kMean, fixture.ranked_)));
    rank_seconds += ranking.Seconds();
    const Stopwatch watch;
    benchmark::DoNotOptimize(Check(fixture.store_->Select({.queries = fixture.queries_})));
    state.SetIterationTime(watch.Seconds());
    select_seconds += watch.Seconds();
  }
  const double n = static_cast<double>(state.iterations() * state.range(0));
  state.counters["select_us_per_query"] = select_seconds / n * 1e6;
  state.counters["rank_us_per_query"] = rank_seconds / n * 1e6;
  state.counters["index_MB"] =
      static_cast<double>(Check(fixture.store_->Stats()).representative_bytes) / 1e6;
}

// Without a scan to speak of: what a Select costs in itself.
void SelectSmall(benchmark::State& state) {
  SelectHit fixture(kernels::DType::kF32, 16, 1);
  fixture.queries_[0].have = std::span(fixture.have_).first(static_cast<size_t>(state.range(0)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(Check(fixture.store_->Select({.queries = fixture.queries_})));
  }
}

Geometry PayloadOf(int64_t bytes) {  // 8 KV heads of 64, bf16
  return {.layers = 1,
          .q_heads = 8,
          .kv_heads = 8,
          .head_dim = 64,
          .block_tokens = static_cast<int32_t>(bytes / 2048),
          .dtype = kernels::DType::kBF16};
}

void RamFetch(benchmark::State& state) {
  const int64_t payload_bytes = state.range(0);
  const int64_t blocks = (int64_t{256} << 20) / payload_bytes;
  kernels::ThreadPool pool;
  const auto backend = kernels::NewCpuBackend(pool);
  const auto store = NewInProcessStore({}, *backend, nullptr).value();
  const ContextId id = NewContext(*store, PayloadOf(payload_bytes));
  const Pages data(payload_bytes);
  for (int64_t i = 0; i < blocks; ++i) AppendOne(*store, id, i, data.bytes());
  std::vector<std::byte> copy(payload_bytes);
  std::mt19937_64 random(5);
  std::vector<int64_t> indices(16);
  double copy_seconds = 0;
  for (auto _ : state) {
    for (int64_t& index : indices) index = static_cast<int64_t>(random() % blocks);
    const Stopwatch watch;
    const auto handles = Check(store->Fetch(id, 0, indices));
    state.SetIterationTime(watch.Seconds());
    const Stopwatch copying;
    for (const BlockHandle& handle : handles) {
      std::memcpy(copy.data(), handle.payload().data(), handle.payload().size());
      benchmark::DoNotOptimize(copy.data());
    }
    copy_seconds += copying.Seconds();
  }
  state.counters["memcpy_GB/s"] =
      static_cast<double>(state.iterations()) * 16 * payload_bytes / copy_seconds / 1e9;
}

void Append(benchmark::State& state) {
  const int64_t payload_bytes = state.range(0);
  const int64_t blocks = (int64_t{256} << 20) / payload_bytes;
  kernels::ThreadPool pool;
  const auto backend = kernels::NewCpuBackend(pool);
  const auto store = NewInProcessStore({}, *backend, nullptr).value();
  const Pages data(payload_bytes);
  std::vector<std::byte> copies(blocks * payload_bytes);
  double copy_seconds = 0, crc_seconds = 0, both_seconds = 0, append_seconds = 0;
  for (auto _ : state) {
    const ContextId id = NewContext(*store, PayloadOf(payload_bytes));
    const Stopwatch watch;
    for (int64_t i = 0; i < blocks; ++i) AppendOne(*store, id, i, data.bytes());
    state.SetIterationTime(watch.Seconds());
    append_seconds += watch.Seconds();
    Check(store->Drop(id));
    const Stopwatch copying;
    for (int64_t i = 0; i < blocks; ++i) {
      std::memcpy(&copies[i * payload_bytes], data.data(), payload_bytes);
    }
    copy_seconds += copying.Seconds();
    const Stopwatch summing;
    for (int64_t i = 0; i < blocks; ++i) benchmark::DoNotOptimize(Crc32c(data.bytes()));
    crc_seconds += summing.Seconds();
    const Stopwatch both;
    for (int64_t i = 0; i < blocks; ++i) {
      benchmark::DoNotOptimize(CopyWithCrc32c(data.bytes(), &copies[i * payload_bytes]));
    }
    both_seconds += both.Seconds();
  }
  const double bytes = static_cast<double>(state.iterations()) * blocks * payload_bytes;
  state.counters["GB/s"] = bytes / append_seconds / 1e9;
  state.counters["memcpy_GB/s"] = bytes / copy_seconds / 1e9;
  state.counters["crc32c_GB/s"] = bytes / crc_seconds / 1e9;
  state.counters["both_GB/s"] = bytes / both_seconds / 1e9;
}

BENCHMARK(ColdPut)
    ->Name("cold_put")
    ->Arg(4096)
    ->Arg(65536)
    ->Arg(524288)
    ->UseManualTime()
    ->Iterations(2)
    ->Unit(benchmark::kMillisecond);
BENCHMARK(ColdGet)
    ->Name("cold_get")
    ->ArgsProduct({{4096, 65536, 524288}, {1, kGetKeys}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(SelectHitBench, f32, kernels::DType::kF32)
    ->Name("select_hit/f32")
    ->Arg(1)
    ->Arg(32)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(SelectHitBench, bf16, kernels::DType::kBF16)
    ->Name("select_hit/bf16")
    ->Arg(1)
    ->Arg(32)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(SelectSmall)
    ->Name("select_16_blocks/have")
    ->Arg(16)
    ->Arg(0)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(RamFetch)
    ->Name("ram_fetch_16")
    ->Arg(65536)
    ->Arg(524288)
    ->UseManualTime()
    ->Iterations(300)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(Append)->Name("append")->Arg(65536)->Arg(524288)->UseManualTime()->Iterations(5)->Unit(
    benchmark::kMillisecond);

}  // namespace
}  // namespace infllm::memstore

BENCHMARK_MAIN();
