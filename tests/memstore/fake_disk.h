// A disk that outlives the stores that use it, and loses what a real one may lose when a process
// is killed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "memstore/cold_store.h"

namespace infllm::memstore {

class FakeDisk {
 public:
  // A durable cold store over the disk; one at a time.
  static std::unique_ptr<ColdStore> Open(std::shared_ptr<FakeDisk> disk);

  // The process dies at its n-th write from now on, 0 being the next: that write and every call
  // after it fail. Half of it still gets to the disk, or all.
  void DieAt(int64_t write, bool whole);
  bool died() const;
  // The next change of records fails, and the process lives; yet all of it gets to the disk, or
  // nothing.
  void FailNextChange(bool whole);
  // The next process: of what was written or deleted since the last record was changed, each entry
  // is there or not, by the seed.
  void Restart(uint64_t seed);

  using Map = std::map<std::string, std::string, std::less<>>;
  // What is there now.
  Map entries() const;
  Map records() const;
  // Changes a byte.
  void FlipEntryByte(const std::string& key, size_t at);
  void SetEntry(const std::string& key, std::string value);
  void RemoveEntry(const std::string& key);
  void SetRecord(const std::string& key, std::string value);

 private:
  class Store;
  enum class Fate : uint8_t { kLives, kHalf, kWhole, kDead };
  Fate NextWrite();

  mutable std::mutex mu_;
  Map entries_, durable_, records_;
  int64_t writes_left_ = -1;  // -1: it does not die
  bool whole_ = false;
  bool dead_ = false;
  bool fail_change_ = false;
};

}  // namespace infllm::memstore
