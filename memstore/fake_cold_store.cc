#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "memstore/cold_store.h"

namespace infllm::memstore {
namespace {

class FakeColdStore final : public ColdStore {
 public:
  absl::Status Put(std::span<const Entry> entries) override {
    const std::lock_guard lock(mu_);
    for (const Entry& entry : entries) {
      std::vector<std::byte>& value = values_[std::string(entry.key)];
      value.assign(entry.head.begin(), entry.head.end());
      value.insert(value.end(), entry.body.begin(), entry.body.end());
    }
    return absl::OkStatus();
  }

  std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                std::span<const std::span<std::byte>> outs) override {
    std::vector<absl::Status> statuses;
    const std::lock_guard lock(mu_);
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto found = values_.find(keys[i]);
      if (found == values_.end()) {
        statuses.push_back(absl::NotFoundError("no value under this key"));
      } else if (found->second.size() != outs[i].size()) {
        statuses.push_back(absl::DataLossError(absl::StrCat("the value has ", found->second.size(),
                                                            " bytes, expected ", outs[i].size())));
      } else {
        std::memcpy(outs[i].data(), found->second.data(), outs[i].size());
        statuses.push_back(absl::OkStatus());
      }
    }
    return statuses;
  }

  absl::Status Delete(std::span<const std::string_view> keys) override {
    const std::lock_guard lock(mu_);
    for (std::string_view key : keys) {
      if (const auto found = values_.find(key); found != values_.end()) values_.erase(found);
    }
    return absl::OkStatus();
  }

  bool durable() const override { return true; }

  absl::Status ChangeRecords(std::span<const RecordChange> changes) override {
    const std::lock_guard lock(mu_);
    for (const RecordChange& change : changes) {
      if (change.value.has_value()) {
        records_[change.key] = *change.value;
      } else {
        records_.erase(change.key);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::map<std::string, std::string>> ReadRecords() override {
    const std::lock_guard lock(mu_);
    return records_;
  }

  absl::StatusOr<std::string> LastKey() override {
    const std::lock_guard lock(mu_);
    return values_.empty() ? std::string() : values_.rbegin()->first;
  }

  absl::Status DeleteRange(std::string_view begin, std::string_view end) override {
    const std::lock_guard lock(mu_);
    values_.erase(values_.lower_bound(begin), values_.lower_bound(end));
    return absl::OkStatus();
  }

 private:
  std::mutex mu_;
  std::map<std::string, std::string> records_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::vector<std::byte>, std::less<>> values_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<ColdStore> NewFakeColdStore() { return std::make_unique<FakeColdStore>(); }

}  // namespace infllm::memstore
