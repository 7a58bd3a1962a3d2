// A ColdStore that fails, damages and waits on command, and tells what reached it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "memstore/cold_store.h"

namespace infllm::memstore {

// The tester's end: shared by the test and the store that owns the ColdStore.
class ColdScript {
 public:
  // A store over this script. `inner` keeps the bytes.
  static std::unique_ptr<ColdStore> Open(std::shared_ptr<ColdScript> script,
                                         std::unique_ptr<ColdStore> inner = NewFakeColdStore());

  // From now on; OK ends it.
  void FailPuts(absl::Status status);
  void FailGets(absl::Status status);
  // Throws std::bad_alloc, from now on; false ends it.
  void ThrowFromPuts(bool on);
  void ThrowFromGets(bool on);
  // Inverts one bit of byte `offset` of every value that is read; -1 ends it.
  void FlipReadByte(int64_t offset);
  // Every value that is read is this one; empty ends it.
  void ReplaceReads(std::vector<std::byte> value);
  // Stores only that many bytes of every value; -1 ends it.
  void TruncatePuts(int64_t bytes);

  // Puts wait between these two.
  void HoldPuts();
  void ReleasePuts();
  void WaitForHeldPut();

  // How many keys have a value now.
  size_t keys() const;
  // How often each key has been written, and the bytes of each Put.
  std::map<std::string, int> writes() const;
  std::vector<size_t> put_bytes() const;

 private:
  class Store;

  mutable std::mutex mu_;
  std::condition_variable changed_;
  absl::Status put_status_;
  absl::Status get_status_;
  bool put_throws_ = false;
  bool get_throws_ = false;
  int64_t flip_ = -1;
  std::vector<std::byte> replacement_;
  int64_t truncate_ = -1;
  bool hold_ = false;
  int held_ = 0;
  std::map<std::string, int> writes_;
  std::set<std::string> live_;
  std::vector<size_t> put_bytes_;
};

}  // namespace infllm::memstore
