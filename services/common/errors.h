// The errors that clients of our services see: one function each, so that wording and code are
// decided once. Texts say what is wrong, the offending value and the limit.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "memstore/block.h"

namespace grpc {
class Status;
}

namespace infllm::services {

// The codes of both are the same canonical ones; the text travels unchanged.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

namespace error {

// Where in a store something is, for texts: "context 3, layer 1, block 7".
struct Place {
  memstore::ContextId context{};
  int32_t layer = 0;
  int64_t block = -1;  // -1: not about one block
};

absl::Status ContextNotFound(memstore::ContextId context);
absl::Status FieldMissing(std::string_view field);
// An enum has a value that this server does not know, or none (0).
absl::Status UnknownValue(std::string_view field, int64_t value);
// `value` elements of `field` where `unit` of them make one, e.g. the bytes of a payload.
absl::Status NotWholeBlocks(std::string_view field, int64_t value, int64_t unit);
absl::Status ChecksumCount(int64_t checksums, int64_t blocks);
absl::Status TooManyBlocks(std::string_view field, int64_t blocks, int64_t limit);
// Content does not fit the checksum that came with it.
absl::Status ArrivedDamaged(std::string_view what, const Place& place);
// The caller has gone or its deadline has passed: nobody would read the answer.
absl::Status CallerGone();
absl::Status OutOfMemory();
absl::Status Stopping();

// What a client of a remote store tells its own caller.
// The answer contradicts itself or the question; nothing of it is used.
absl::Status BadAnswer(std::string_view store, const Place& place, std::string_view what);
absl::Status StoreUnavailable(std::string_view store, std::string_view reason);
absl::Status StoreTimedOut(std::string_view store, std::string_view call, double seconds);
absl::Status NotAMemoryStore(std::string_view store);

}  // namespace error
}  // namespace infllm::services
