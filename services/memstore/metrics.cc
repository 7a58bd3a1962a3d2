#include "services/memstore/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>
#include <unistd.h>

#include <array>
#include <exception>
#include <fstream>
#include <initializer_list>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "infllm/v1/memory_store.pb.h"
#include "kernels/core/status_macros.h"

namespace infllm::services {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Seconds. From a Select whose blocks are all at hand to a Commit of a whole RAM tier.
const prometheus::Histogram::BucketBoundaries kDurations = {
    .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1,
    .25,   .5,     1,     2.5,  5,     10,   30,  60,   600};

// Holds a lease, for as long as its client lives: its duration is no latency.
constexpr std::string_view kLease = "Lease";

int64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

struct Sample {
  const char* tier;  // null: without the label
  int64_t value;
};

MetricFamily Family(MetricType type, const char* name, const char* help,
                    std::initializer_list<Sample> samples) {
  MetricFamily family{.name = name, .help = help, .type = type, .metric = {}};
  for (const Sample& sample : samples) {
    ClientMetric metric;
    if (sample.tier != nullptr) metric.label.push_back({"tier", sample.tier});
    if (type == MetricType::Counter) {
      metric.counter.value = static_cast<double>(sample.value);
    } else {
      metric.gauge.value = static_cast<double>(sample.value);
    }
    family.metric.push_back(std::move(metric));
  }
  return family;
}

// Asked at each scrape.
class StoreMetrics final : public prometheus::Collectable {
 public:
  StoreMetrics(memstore::MemoryStore& store, std::function<int64_t()> leases)
      : store_(store), leases_(std::move(leases)) {}

  std::vector<MetricFamily> Collect() const override {
    const absl::StatusOr<memstore::StoreStats> asked = store_.Stats();
    if (!asked.ok()) return {};
    const memstore::StoreStats& stats = *asked;
    const auto gauge = [](const char* name, const char* help, auto... samples) {
      return Family(MetricType::Gauge, name, help, {samples...});
    };
    const auto counter = [](const char* name, const char* help, auto... samples) {
      return Family(MetricType::Counter, name, help, {samples...});
    };
    std::vector<MetricFamily> families = {
        gauge("infllm_memstore_contexts", "Contexts that are not committed.",
              Sample{nullptr, stats.contexts}),
        gauge("infllm_memstore_committed_contexts", "Committed contexts.",
              Sample{nullptr, stats.committed}),
        gauge("infllm_memstore_leases",
              "Leases of clients that are there, or were until less than the lease time ago.",
              Sample{nullptr, leases_()}),
        gauge("infllm_memstore_blocks", "Distinct blocks, shared ones once.",
              Sample{nullptr, stats.blocks}),
        gauge("infllm_memstore_tier_blocks", "Blocks in a tier; a block may be in both.",
              Sample{"ram", stats.blocks_ram}, Sample{"cold", stats.blocks_cold}),
        gauge("infllm_memstore_tier_bytes",
              "Bytes of the blocks in a tier; in RAM these are whole pages.",
              Sample{"ram", stats.ram_bytes}, Sample{"cold", stats.cold_bytes}),
        gauge("infllm_memstore_ram_capacity_bytes", "What --ram-bytes allows.",
              Sample{nullptr, stats.ram_capacity_bytes}),
        gauge("infllm_memstore_pinned_bytes",
              "Bytes of blocks in the RAM tier that running calls hold.",
              Sample{nullptr, stats.pinned_bytes}),
        gauge("infllm_memstore_spill_queue_bytes",
              "Bytes of blocks in the RAM tier that are not in the cold tier yet.",
              Sample{nullptr, stats.dirty_bytes}),
        gauge("infllm_memstore_representative_bytes",
              "Memory of the representatives by which blocks are scored.",
              Sample{nullptr, stats.representative_bytes}),
        gauge("infllm_memstore_bookkeeping_bytes",
              "Memory of contexts, and of what is kept of every block, about.",
              Sample{nullptr, stats.bookkeeping_bytes}),
        counter("infllm_memstore_hits_total", "Blocks served from a tier.",
                Sample{"ram", stats.ram_hits}, Sample{"cold", stats.cold_hits}),
        counter("infllm_memstore_demotions_total", "Blocks written to the cold tier.",
                Sample{nullptr, stats.demotions}),
        counter("infllm_memstore_evictions_total",
                "Blocks that left the RAM tier, being in the cold tier, to make room.",
                Sample{nullptr, stats.evictions}),
        counter("infllm_memstore_corrupt_blocks_total",
                "Blocks of the cold tier that failed their check and were refused.",
                Sample{nullptr, stats.corrupt_blocks}),
        gauge("process_resident_memory_bytes", "Resident memory of the process.",
              Sample{nullptr, ResidentBytes()}),
    };
    if (stats.disk_free_bytes >= 0) {
      families.push_back(gauge("infllm_memstore_disk_free_bytes",
                               "What the file system of the cold tier still takes.",
                               Sample{nullptr, stats.disk_free_bytes}));
    }
    return families;
  }

 private:
  memstore::MemoryStore& store_;
  const std::function<int64_t()> leases_;
};

}  // namespace

struct Metrics::Impl {
  // Of one method and code; null until there is a call.
  struct Series {
    prometheus::Counter* calls = nullptr;
    prometheus::Histogram* durations = nullptr;
  };
  static constexpr size_t kCodes = 17;

  Series SeriesOf(std::string_view method, absl::StatusCode code) {
    const std::lock_guard lock(mutex);
    Series& series = by_method[std::string(method)].at(static_cast<size_t>(code));
    if (series.calls == nullptr) {
      const prometheus::Labels labels = {{"method", std::string(method)},
                                         {"code", absl::StatusCodeToString(code)}};
      if (method != kLease) series.durations = &durations.Add(labels, kDurations);
      series.calls = &calls.Add(labels);
    }
    return series;
  }

  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  prometheus::Family<prometheus::Counter>& calls =
      prometheus::BuildCounter()
          .Name("infllm_memstore_requests_total")
          .Help("Calls that have ended, by method and gRPC status code.")
          .Register(*registry);
  prometheus::Family<prometheus::Histogram>& durations =
      prometheus::BuildHistogram()
          .Name("infllm_memstore_request_duration_seconds")
          .Help(
              "How long calls took in the daemon, by method and gRPC status code; without Lease, "
              "which runs as long as its client.")
          .Register(*registry);
  prometheus::Family<prometheus::Counter>& failed_queries =
      prometheus::BuildCounter()
          .Name("infllm_memstore_failed_queries_total")
          .Help("Queries of Select that failed by themselves, by status code.")
          .Register(*registry);
  std::mutex mutex;
  absl::flat_hash_map<std::string, std::array<Series, kCodes>> by_method ABSL_GUARDED_BY(mutex);
};

Metrics::Metrics(std::string_view version) : impl_(std::make_unique<Impl>()) {
  prometheus::BuildGauge()
      .Name("infllm_memstore_build_info")
      .Help("1, with the version as a label.")
      .Register(*impl_->registry)
      .Add({{"version", std::string(version)}}, 1);
  // All there from the start: what appears with its first increment has no rate.
  const auto& service = *infllm::v1::StatsRequest::descriptor()->file()->service(0);
  for (int i = 0; i < service.method_count(); ++i) {
    impl_->SeriesOf(service.method(i)->name(), absl::StatusCode::kOk);
  }
}

Metrics::~Metrics() = default;

void Metrics::CountCall(std::string_view method, absl::StatusCode code, absl::Duration duration) {
  const Impl::Series series = impl_->SeriesOf(method, code);
  series.calls->Increment();
  if (series.durations != nullptr) series.durations->Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::CountFailedQuery(absl::StatusCode code) {
  impl_->failed_queries.Add({{"code", absl::StatusCodeToString(code)}}).Increment();
}

struct MetricsServer::Impl {
  Endpoint endpoint;
  std::shared_ptr<StoreMetrics> store;
  std::unique_ptr<prometheus::Exposer> exposer;  // goes first
};

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const Endpoint& listen, Metrics& metrics, memstore::MemoryStore& store,
    std::function<int64_t()> leases) {
  if (listen.is_unix()) {
    return absl::InvalidArgumentError(absl::StrCat("metrics are served at host:port, not at ",
                                                   listen.ToString(), " (--metrics-listen)"));
  }
  INFLLM_RETURN_IF_ERROR(PrepareToListen(listen));
  auto impl =
      std::make_unique<Impl>(Impl{.endpoint = listen,
                                  .store = std::make_shared<StoreMetrics>(store, std::move(leases)),
                                  .exposer = nullptr});
  try {
    impl->exposer = std::make_unique<prometheus::Exposer>(std::vector<std::string>{
        "listening_ports", listen.ToString(), "num_threads", "8", "request_timeout_ms", "5000"});
    impl->endpoint.port = static_cast<uint16_t>(impl->exposer->GetListeningPorts().at(0));
  } catch (const std::exception&) {  // its text says no more
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen.ToString(), " (--metrics-listen)"));
  }
  impl->exposer->RegisterCollectable(metrics.impl_->registry);
  impl->exposer->RegisterCollectable(impl->store);
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl)));
}

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsServer::~MetricsServer() = default;

const Endpoint& MetricsServer::endpoint() const { return impl_->endpoint; }

}  // namespace infllm::services
