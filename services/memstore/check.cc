#include "services/memstore/check.h"

#include <cstdint>
#include <iostream>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "memstore/check.h"
#include "memstore/cold_store.h"
#include "services/common/byte_size.h"
#include "services/common/progress.h"

namespace infllm::services {
namespace {

constexpr int kWhole = 0;
constexpr int kDamaged = 1;
constexpr int kNotChecked = 2;
// Of a lost disk there may be millions.
constexpr int64_t kMostLines = 1000;

int Fail(const absl::Status& status) {
  std::cerr << "infllm-memstore: " << status.message() << "\n";
  return absl::IsDataLoss(status) ? kDamaged : kNotChecked;
}

std::string Count(int64_t count, const char* what) {
  return absl::StrCat(WithThousands(count), " ", what, count == 1 ? "" : "s");
}

}  // namespace

int CheckDataDir(const std::string& data_dir) {
  if (data_dir.empty()) {
    return Fail(absl::InvalidArgumentError("--check needs the --data-dir to check"));
  }
  const auto cold = memstore::OpenRocksDb({.directory = data_dir, .read_only = true});
  if (!cold.ok()) return Fail(cold.status());
  std::optional<Progress> progress;
  int64_t lines = 0;
  const memstore::CheckWatcher watcher = {.damage =
                                              [&](const std::string& what) {
                                                if (lines++ < kMostLines)
                                                  std::cout << "damaged: " << what << std::endl;
                                              },
                                          .progress =
                                              [&](int64_t bytes, int64_t total) {
                                                if (!progress.has_value())
                                                  progress.emplace("checking", "bytes", total);
                                                progress->Update(bytes);
                                              }};
  const auto report = memstore::CheckCommitted(**cold, watcher);
  progress.reset();
  if (!report.ok()) return Fail(report.status());
  if (lines > kMostLines) std::cout << "and " << WithThousands(lines - kMostLines) << " more\n";
  std::cout << Count(report->contexts, "committed context") << ", "
            << Count(report->blocks, "block") << ", " << FormatByteSize(report->bytes) << " read; "
            << Count(report->orphans, "orphan")
            << " (entries that no commit uses; the daemon deletes them when it starts); damage: ";
  if (report->damaged == 0) {
    std::cout << "none\n";
  } else {
    std::cout << Count(report->damaged, "piece") << ", in "
              << Count(report->damaged_contexts, "context") << "\n";
  }
  if (!std::cout.flush()) {
    return Fail(absl::UnavailableError("the report cannot be written to stdout"));
  }
  return report->damaged == 0 ? kWhole : kDamaged;
}

}  // namespace infllm::services
