#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "memstore/cold_store.h"

namespace infllm::memstore {

struct CheckReport {
  int64_t contexts = 0;          // committed ones; those with damaged records included
  int64_t damaged_contexts = 0;  // of these, with damage of their own or of what they share
  int64_t blocks = 0;            // that were read, shared ones once
  int64_t bytes = 0;             // that were read, of records, blocks and all else
  int64_t damaged = 0;           // records, blocks and others that are lost or damaged
  // Entries that no undamaged record names, as far as damage lets them be counted; opening the
  // store deletes them.
  int64_t orphans = 0;
};

struct CheckWatcher {
  // Says what is damaged, whose it is, and where.
  std::function<void(const std::string&)> damage;
  std::function<void(int64_t bytes, int64_t total)> progress;
};

// Reads all that is committed in `cold`, which must be durable: every record, part and block is
// compared with its checksum and with what refers to it. Changes nothing.
//   DATA_LOSS, UNAVAILABLE  the list of records cannot be read
absl::StatusOr<CheckReport> CheckCommitted(ColdStore& cold, const CheckWatcher& watcher);

}  // namespace infllm::memstore
