#include "tests/memstore/scripted_cold_store.h"

#include <algorithm>
#include <new>
#include <utility>

namespace infllm::memstore {

class ColdScript::Store final : public ColdStore {
 public:
  Store(std::shared_ptr<ColdScript> script, std::unique_ptr<ColdStore> inner)
      : script_(std::move(script)), inner_(std::move(inner)) {}

  absl::Status Put(std::span<const Entry> entries) override {
    std::vector<Entry> stored(entries.begin(), entries.end());
    {
      std::unique_lock lock(script_->mu_);
      ++script_->held_;
      script_->changed_.notify_all();
      script_->changed_.wait(lock, [&] { return !script_->hold_; });
      --script_->held_;
      if (script_->put_throws_) throw std::bad_alloc();
      if (!script_->put_status_.ok()) return script_->put_status_;
      size_t bytes = 0;
      for (Entry& entry : stored) {
        bytes += entry.value_bytes();
        if (script_->truncate_ >= 0) {
          const auto kept = static_cast<size_t>(script_->truncate_);
          entry.head = entry.head.first(std::min(entry.head.size(), kept));
          entry.body = entry.body.first(std::min(entry.body.size(), kept - entry.head.size()));
        }
        ++script_->writes_[std::string(entry.key)];
        script_->live_.insert(std::string(entry.key));
      }
      script_->put_bytes_.push_back(bytes);
    }
    return inner_->Put(stored);
  }

  std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                std::span<const std::span<std::byte>> outs) override {
    std::vector<absl::Status> statuses = inner_->Get(keys, outs);
    const std::lock_guard lock(script_->mu_);
    if (script_->get_throws_) throw std::bad_alloc();
    for (size_t i = 0; i < keys.size(); ++i) {
      if (!script_->get_status_.ok()) {
        statuses[i] = script_->get_status_;
      } else if (script_->replacement_.size() == outs[i].size()) {
        std::copy(script_->replacement_.begin(), script_->replacement_.end(), outs[i].begin());
      } else if (script_->flip_ >= 0 && script_->flip_ < static_cast<int64_t>(outs[i].size())) {
        outs[i][static_cast<size_t>(script_->flip_)] ^= std::byte{0x10};
      }
    }
    return statuses;
  }

  absl::Status Delete(std::span<const std::string_view> keys) override {
    const absl::Status status = inner_->Delete(keys);
    const std::lock_guard lock(script_->mu_);
    for (std::string_view key : keys) script_->live_.erase(std::string(key));
    return status;
  }

 private:
  const std::shared_ptr<ColdScript> script_;  // shared with the test
  const std::unique_ptr<ColdStore> inner_;
};

std::unique_ptr<ColdStore> ColdScript::Open(std::shared_ptr<ColdScript> script,
                                            std::unique_ptr<ColdStore> inner) {
  return std::make_unique<Store>(std::move(script), std::move(inner));
}

void ColdScript::FailPuts(absl::Status status) {
  const std::lock_guard lock(mu_);
  put_status_ = std::move(status);
}
void ColdScript::FailGets(absl::Status status) {
  const std::lock_guard lock(mu_);
  get_status_ = std::move(status);
}
void ColdScript::ThrowFromPuts(bool on) {
  const std::lock_guard lock(mu_);
  put_throws_ = on;
}
void ColdScript::ThrowFromGets(bool on) {
  const std::lock_guard lock(mu_);
  get_throws_ = on;
}
void ColdScript::FlipReadByte(int64_t offset) {
  const std::lock_guard lock(mu_);
  flip_ = offset;
}
void ColdScript::ReplaceReads(std::vector<std::byte> value) {
  const std::lock_guard lock(mu_);
  replacement_ = std::move(value);
}

void ColdScript::TruncatePuts(int64_t bytes) {
  const std::lock_guard lock(mu_);
  truncate_ = bytes;
}
void ColdScript::HoldPuts() {
  const std::lock_guard lock(mu_);
  hold_ = true;
}
void ColdScript::ReleasePuts() {
  const std::lock_guard lock(mu_);
  hold_ = false;
  changed_.notify_all();
}
void ColdScript::WaitForHeldPut() {
  std::unique_lock lock(mu_);
  changed_.wait(lock, [&] { return held_ > 0; });
}
size_t ColdScript::keys() const {
  const std::lock_guard lock(mu_);
  return live_.size();
}
std::map<std::string, int> ColdScript::writes() const {
  const std::lock_guard lock(mu_);
  return writes_;
}
std::vector<size_t> ColdScript::put_bytes() const {
  const std::lock_guard lock(mu_);
  return put_bytes_;
}

}  // namespace infllm::memstore
