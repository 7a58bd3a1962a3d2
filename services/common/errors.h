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

// Where in a store something is, for texts.
struct Place {
  memstore::ContextId context;
  int32_t layer = -1;  // -1: not about one layer
  int64_t block = -1;  // -1: not about one block
};
// "context 0123456789abcdef0123456789abcdef, layer 1, block 7".
std::string ToString(const Place& place);

absl::Status FieldMissing(std::string_view field);
// `bytes` of `field`, which always has `size` of them.
absl::Status WrongSize(std::string_view field, int64_t bytes, int64_t size);
// An enum has a value that this server does not know, or none (0).
absl::Status UnknownValue(std::string_view field, int64_t value);
// `value` elements of `field` where `unit` of them make one, e.g. the bytes of a payload.
absl::Status NotWholeBlocks(std::string_view field, int64_t value, int64_t unit);
absl::Status ChecksumCount(int64_t checksums, int64_t blocks);
absl::Status TooManyBlocks(std::string_view field, int64_t blocks, int64_t limit);
absl::Status TooManyQueries(int64_t queries, int64_t limit);
// Content does not fit the checksum that came with it: ABORTED, which nothing else is.
absl::Status ArrivedDamaged(std::string_view what);
// As a whole, it does not parse; ABORTED, too.
absl::Status ArrivedMalformed(std::string_view type);
absl::Status TooManyCalls();
// The caller is nobody that the server knows.
absl::Status Unauthenticated(std::string_view why);
// The caller has gone or its deadline has passed: nobody would read the answer.
absl::Status CallerGone();
absl::Status OutOfMemory();
absl::Status Stopping();

// What a client of a remote store tells its own caller.
// The answer, all checksums of which fit, contradicts itself or the question: INTERNAL.
absl::Status WrongAnswer(std::string_view store, const Place& place, std::string_view what);
// The answer was damaged on its way: ABORTED.
absl::Status DamagedAnswer(std::string_view store, const Place& place, std::string_view what);
// As a whole: it does not parse.
absl::Status DamagedMessage(std::string_view store, std::string_view call);
// What arrived damaged, or so its answer, every time: DATA_LOSS.
absl::Status AlwaysDamaged(const absl::Status& last);
// The caller has cancelled everything: CANCELLED.
absl::Status Cancelled(std::string_view store, std::string_view call);
absl::Status StoreUnavailable(std::string_view store, std::string_view reason);
absl::Status StoreTimedOut(std::string_view store, std::string_view call, double seconds);
absl::Status NotAMemoryStore(std::string_view store);
// An error of a call, with the id by which the log of the store has it. OK and CANCELLED stay.
absl::Status OfRequest(std::string_view request_id, const absl::Status& status);

}  // namespace error
}  // namespace infllm::services
