// Answers of a store that are spread over many messages: put together and checked, so that whoever
// uses one need not trust the daemon. Every error refuses the answer as a whole:
//   ABORTED   a checksum does not fit: it was damaged on its way
//   INTERNAL  it contradicts itself or the question: the daemon is wrong; names what is
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "infllm/v1/memory_store.pb.h"
#include "memstore/memory_store.h"
#include "services/common/errors.h"

namespace infllm::services {

// A query of a SelectRequest, and what is known of its answer before it comes.
struct AskedQuery {
  const memstore::SelectQuery* query = nullptr;
  size_t payload_bytes = 0;
  int64_t published = 0;  // at least so many blocks are
};

class SelectAnswer {
 public:
  // `store` is named in errors. What is referred to must outlive the object.
  SelectAnswer(const std::string& store, int32_t layer, std::span<const AskedQuery> queries)
      : store_(store), layer_(layer), queries_(queries) {}

  // The next message; its payloads are moved from.
  absl::Status Take(infllm::v1::SelectResponse& message);
  // After the last one: a selection for each query.
  absl::StatusOr<std::vector<memstore::Selection>> Finish();

 private:
  // Where a payload belongs.
  struct Payload {
    size_t query = 0;  // that named it first
    int64_t index = 0;
    std::vector<std::pair<size_t, size_t>> users;  // query, place among its blocks
  };

  absl::Status TakeAnswer(const infllm::v1::SelectResponse::Answer& answer);
  absl::Status TakePayload(infllm::v1::SelectResponse::Payload& payload);
  absl::Status TakeBlock(const infllm::v1::SelectResponse::Block& block,
                         memstore::Selection& selection);
  error::Place PlaceOf(size_t query) const;

  const std::string& store_;
  const int32_t layer_;
  const std::span<const AskedQuery> queries_;
  std::vector<memstore::Selection> selections_;
  std::vector<Payload> payloads_;  // in the order of their numbers
  size_t arrived_ = 0;             // of these
};

class FetchAnswer {
 public:
  FetchAnswer(const std::string& store, const memstore::ContextId& context, int32_t layer,
              std::span<const int64_t> blocks, size_t payload_bytes)
      : store_(store),
        place_{.context = context, .layer = layer},
        blocks_(blocks),
        payload_bytes_(payload_bytes) {}

  absl::Status Take(infllm::v1::FetchResponse& message);
  absl::StatusOr<std::vector<memstore::BlockHandle>> Finish();

 private:
  const std::string& store_;
  const error::Place place_;
  const std::span<const int64_t> blocks_;
  const size_t payload_bytes_;
  std::vector<memstore::BlockHandle> handles_;
};

}  // namespace infllm::services
