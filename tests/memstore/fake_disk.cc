#include "tests/memstore/fake_disk.h"

#include <cstring>
#include <random>
#include <set>
#include <utility>

namespace infllm::memstore {

class FakeDisk::Store final : public ColdStore {
 public:
  explicit Store(std::shared_ptr<FakeDisk> disk) : disk_(std::move(disk)) {}

  absl::Status Put(std::span<const Entry> entries) override {
    const std::lock_guard lock(disk_->mu_);
    const Fate fate = disk_->NextWrite();
    if (fate == Fate::kDead) return Dead();
    const size_t count = fate == Fate::kHalf ? entries.size() / 2 : entries.size();
    for (const Entry& entry : entries.first(count)) {
      std::string& value = disk_->entries_[std::string(entry.key)];
      value.assign(reinterpret_cast<const char*>(entry.head.data()), entry.head.size());
      value.append(reinterpret_cast<const char*>(entry.body.data()), entry.body.size());
    }
    return fate == Fate::kLives ? absl::OkStatus() : Dead();
  }

  std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                std::span<const std::span<std::byte>> outs) override {
    const std::lock_guard lock(disk_->mu_);
    std::vector<absl::Status> statuses;
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto found = disk_->entries_.find(keys[i]);
      if (disk_->dead_) {
        statuses.push_back(Dead());
      } else if (found == disk_->entries_.end()) {
        statuses.push_back(absl::NotFoundError("no such entry"));
      } else if (found->second.size() != outs[i].size()) {
        statuses.push_back(absl::DataLossError("an entry of another size"));
      } else {
        std::memcpy(outs[i].data(), found->second.data(), outs[i].size());
        statuses.push_back(absl::OkStatus());
      }
    }
    return statuses;
  }

  absl::Status Delete(std::span<const std::string_view> keys) override {
    const std::lock_guard lock(disk_->mu_);
    const Fate fate = disk_->NextWrite();
    if (fate == Fate::kDead) return Dead();
    const size_t count = fate == Fate::kHalf ? keys.size() / 2 : keys.size();
    for (const std::string_view key : keys.first(count)) disk_->entries_.erase(std::string(key));
    return fate == Fate::kLives ? absl::OkStatus() : Dead();
  }

  bool durable() const override { return true; }

  absl::Status ChangeRecords(std::span<const RecordChange> changes) override {
    const std::lock_guard lock(disk_->mu_);
    const Fate fate = disk_->NextWrite();
    if (fate == Fate::kDead || fate == Fate::kHalf) return Dead();
    const bool fails = std::exchange(disk_->fail_change_, false);
    if (fails && !disk_->whole_) return Failed();
    for (const RecordChange& change : changes) {
      if (change.value.has_value()) {
        disk_->records_[change.key] = *change.value;
        disk_->durable_ = disk_->entries_;
      } else {
        disk_->records_.erase(change.key);
      }
    }
    if (fails) return Failed();
    return fate == Fate::kLives ? absl::OkStatus() : Dead();
  }

  absl::StatusOr<std::map<std::string, std::string>> ReadRecords() override {
    const std::lock_guard lock(disk_->mu_);
    return std::map<std::string, std::string>(disk_->records_.begin(), disk_->records_.end());
  }

  absl::StatusOr<std::string> LastKey() override {
    const std::lock_guard lock(disk_->mu_);
    return disk_->entries_.empty() ? std::string() : disk_->entries_.rbegin()->first;
  }

  absl::StatusOr<int64_t> CountRange(std::string_view begin, std::string_view end) override {
    const std::lock_guard lock(disk_->mu_);
    return std::distance(disk_->entries_.lower_bound(begin), disk_->entries_.lower_bound(end));
  }

  absl::Status DeleteRange(std::string_view begin, std::string_view end) override {
    const std::lock_guard lock(disk_->mu_);
    const Fate fate = disk_->NextWrite();
    if (fate == Fate::kDead || fate == Fate::kHalf) return Dead();
    disk_->entries_.erase(disk_->entries_.lower_bound(begin), disk_->entries_.lower_bound(end));
    return fate == Fate::kLives ? absl::OkStatus() : Dead();
  }

 private:
  static absl::Status Failed() { return absl::UnavailableError("the disk has failed"); }
  static absl::Status Dead() { return absl::UnavailableError("the process is dead"); }
  const std::shared_ptr<FakeDisk> disk_;
};

std::unique_ptr<ColdStore> FakeDisk::Open(std::shared_ptr<FakeDisk> disk) {
  return std::make_unique<Store>(std::move(disk));
}

FakeDisk::Fate FakeDisk::NextWrite() {
  if (dead_) return Fate::kDead;
  if (writes_left_ < 0) return Fate::kLives;
  if (writes_left_-- > 0) return Fate::kLives;
  dead_ = true;
  return whole_ ? Fate::kWhole : Fate::kHalf;
}

void FakeDisk::DieAt(int64_t write, bool whole) {
  const std::lock_guard lock(mu_);
  writes_left_ = write;
  whole_ = whole;
}

void FakeDisk::FailNextChange(bool whole) {
  const std::lock_guard lock(mu_);
  fail_change_ = true;
  whole_ = whole;
}

bool FakeDisk::died() const {
  const std::lock_guard lock(mu_);
  return dead_;
}

void FakeDisk::Restart(uint64_t seed) {
  const std::lock_guard lock(mu_);
  std::mt19937_64 random(seed);
  std::set<std::string> keys;
  for (const Map* map : {&entries_, &durable_}) {
    for (const auto& [key, value] : *map) keys.insert(key);
  }
  Map next;
  for (const std::string& key : keys) {
    const Map& chosen = random() % 2 == 0 ? entries_ : durable_;
    if (const auto found = chosen.find(key); found != chosen.end()) next.insert(*found);
  }
  entries_ = durable_ = std::move(next);
  dead_ = false;
  writes_left_ = -1;
}

FakeDisk::Map FakeDisk::entries() const {
  const std::lock_guard lock(mu_);
  return entries_;
}
FakeDisk::Map FakeDisk::records() const {
  const std::lock_guard lock(mu_);
  return records_;
}
void FakeDisk::FlipEntryByte(const std::string& key, size_t at) {
  const std::lock_guard lock(mu_);
  entries_.at(key).at(at) ^= 0x40;
}
void FakeDisk::SetEntry(const std::string& key, std::string value) {
  const std::lock_guard lock(mu_);
  entries_[key] = durable_[key] = std::move(value);
}

void FakeDisk::RemoveEntry(const std::string& key) {
  const std::lock_guard lock(mu_);
  entries_.erase(key);
  durable_.erase(key);
}

void FakeDisk::SetRecord(const std::string& key, std::string value) {
  const std::lock_guard lock(mu_);
  records_[key] = std::move(value);
}

}  // namespace infllm::memstore
