#include "services/common/errors.h"

#include <grpcpp/support/status.h>

#include "absl/strings/str_cat.h"

namespace infllm::services {
namespace {

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

namespace error {

std::string ToString(const Place& place) {
  std::string text = absl::StrCat("context ", memstore::ToString(place.context));
  if (place.layer >= 0) absl::StrAppend(&text, ", layer ", place.layer);
  if (place.block >= 0) absl::StrAppend(&text, ", block ", place.block);
  return text;
}

absl::Status FieldMissing(std::string_view field) {
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), " is missing"));
}

absl::Status WrongSize(std::string_view field, int64_t bytes, int64_t size) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " has ", bytes, " bytes, must have ", size));
}

absl::Status UnknownValue(std::string_view field, int64_t value) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " is ", value,
                   ", which is no value that this server knows (0 is that of a missing field)"));
}

absl::Status NotWholeBlocks(std::string_view field, int64_t value, int64_t unit) {
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), " has ", value,
                                                 " elements, not a multiple of the ", unit,
                                                 " that one block of this context has"));
}

absl::Status ChecksumCount(int64_t checksums, int64_t blocks) {
  return absl::InvalidArgumentError(absl::StrCat("crc32c has ", checksums, " entries for ", blocks,
                                                 " blocks; one each is needed"));
}

absl::Status TooManyBlocks(std::string_view field, int64_t blocks, int64_t limit) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " names ", blocks, " blocks; at most ", limit, " per call"));
}

absl::Status TooManyQueries(int64_t queries, int64_t limit) {
  return absl::InvalidArgumentError(absl::StrCat("the number of queries is ", queries, "; at most ",
                                                 limit, " per call, split it"));
}

absl::Status ArrivedDamaged(std::string_view what) {
  return absl::AbortedError(absl::StrCat(ToAbsl(what),
                                         " arrived damaged: a checksum does not fit; nothing of "
                                         "the message was used, send it again"));
}

absl::Status ArrivedMalformed(std::string_view type) {
  return absl::AbortedError(
      absl::StrCat("the ", ToAbsl(type),
                   " arrived damaged: it is malformed; nothing of it was used, send it again"));
}

absl::Status TooManyCalls() {
  return absl::ResourceExhaustedError(
      "the server has as many calls to do as it takes at a time; try again with backoff");
}

absl::Status Unauthenticated(std::string_view why) {
  return absl::UnauthenticatedError(ToAbsl(why));
}

absl::Status CallerGone() {
  return absl::CancelledError("the caller cancelled the call or its deadline has passed");
}

absl::Status OutOfMemory() {
  return absl::ResourceExhaustedError(
      "the server has no memory left for this call; lower --ram-bytes or send smaller requests");
}

absl::Status Stopping() { return absl::UnavailableError("the server is stopping"); }

absl::Status WrongAnswer(std::string_view store, const Place& place, std::string_view what) {
  return absl::InternalError(absl::StrCat("the memory store at ", ToAbsl(store),
                                          " gave a wrong answer about ", ToString(place), ": ",
                                          ToAbsl(what), "; nothing of it was used"));
}

absl::Status DamagedAnswer(std::string_view store, const Place& place, std::string_view what) {
  return absl::AbortedError(absl::StrCat("the answer of the memory store at ", ToAbsl(store),
                                         " about ", ToString(place),
                                         " arrived damaged: ", ToAbsl(what)));
}

absl::Status DamagedMessage(std::string_view store, std::string_view call) {
  return absl::AbortedError(absl::StrCat("the answer of the memory store at ", ToAbsl(store),
                                         " to ", ToAbsl(call),
                                         " arrived damaged: a message of it is malformed"));
}

absl::Status AlwaysDamaged(const absl::Status& last) { return absl::DataLossError(last.message()); }

absl::Status Cancelled(std::string_view store, std::string_view call) {
  return absl::CancelledError(
      absl::StrCat(ToAbsl(call), " at the memory store at ", ToAbsl(store), " was cancelled"));
}

absl::Status StoreUnavailable(std::string_view store, std::string_view reason) {
  return absl::UnavailableError(absl::StrCat("the memory store at ", ToAbsl(store),
                                             " does not answer (", ToAbsl(reason),
                                             "); is infllm-memstore running there?"));
}

absl::Status StoreTimedOut(std::string_view store, std::string_view call, double seconds) {
  return absl::UnavailableError(absl::StrCat("the memory store at ", ToAbsl(store),
                                             " did not finish ", ToAbsl(call), " within ", seconds,
                                             " s"));
}

absl::Status NotAMemoryStore(std::string_view store) {
  return absl::FailedPreconditionError(
      absl::StrCat("what listens at ", ToAbsl(store),
                   " speaks gRPC but is not an infllm-memstore of this version"));
}

absl::Status OfRequest(std::string_view request_id, const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status)) return status;
  return absl::Status(status.code(),
                      absl::StrCat(status.message(), " (request ", ToAbsl(request_id), ")"));
}

}  // namespace error
}  // namespace infllm::services
