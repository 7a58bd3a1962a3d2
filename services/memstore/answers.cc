#include "services/memstore/answers.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;

// A payload that stays in the string protobuf parsed it into.
memstore::BlockHandle OwnPayload(std::string&& parsed) {
  auto text = std::make_shared<const std::string>(std::move(parsed));
  const auto payload = std::as_bytes(std::span(*text));
  return memstore::BlockHandle(payload, std::move(text));
}

std::string WrongBytes(size_t bytes, size_t expected) {
  return absl::StrCat("its payload has ", bytes, " bytes, not ", expected);
}

}  // namespace

error::Place SelectAnswer::PlaceOf(size_t query) const {
  return {.context = queries_[query].query->context, .layer = layer_};
}

absl::Status SelectAnswer::Take(pb::SelectResponse& message) {
  for (const pb::SelectResponse::Answer& answer : message.answers()) {
    INFLLM_RETURN_IF_ERROR(TakeAnswer(answer));
  }
  for (pb::SelectResponse::Payload& payload : *message.mutable_payloads()) {
    INFLLM_RETURN_IF_ERROR(TakePayload(payload));
  }
  return absl::OkStatus();
}

absl::Status SelectAnswer::TakeAnswer(const pb::SelectResponse::Answer& answer) {
  const size_t number = selections_.size();
  if (number == queries_.size()) {
    return error::WrongAnswer(store_, PlaceOf(number - 1),
                              absl::StrCat("more answers than the ", number, " queries"));
  }
  const memstore::SelectQuery& query = *queries_[number].query;
  const error::Place place = PlaceOf(number);
  if (arrived_ > 0) return error::WrongAnswer(store_, place, "an answer comes after payloads");
  if (wire::AnswerChecksum(query.context, layer_, static_cast<int64_t>(number), answer) !=
      answer.crc32c()) {
    return error::DamagedAnswer(store_, place, "the checksum of the answer does not fit");
  }
  memstore::Selection& selection = selections_.emplace_back();
  if (answer.code() != 0) {
    if (answer.code() < 0 || answer.code() > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
      return error::WrongAnswer(store_, place,
                                absl::StrCat("status code ", answer.code(), " is none"));
    }
    if (answer.blocks_size() > 0) {
      return error::WrongAnswer(store_, place, "an error comes with blocks");
    }
    selection.status = absl::Status(static_cast<absl::StatusCode>(answer.code()), answer.message());
    return absl::OkStatus();
  }
  if (answer.blocks_size() > query.k) {
    return error::WrongAnswer(
        store_, place, absl::StrCat(answer.blocks_size(), " blocks, but ", query.k, " were asked"));
  }
  const int64_t least =
      std::min<int64_t>(query.k, std::min(queries_[number].published, query.end_block));
  if (answer.blocks_size() < least) {
    return error::WrongAnswer(
        store_, place,
        absl::StrCat("only ", answer.blocks_size(), " blocks, but ", query.k, " were asked and ",
                     queries_[number].published, " are published"));
  }
  for (const pb::SelectResponse::Block& block : answer.blocks()) {
    INFLLM_RETURN_IF_ERROR(TakeBlock(block, selection));
  }
  return absl::OkStatus();
}

absl::Status SelectAnswer::TakeBlock(const pb::SelectResponse::Block& block,
                                     memstore::Selection& selection) {
  const size_t number = selections_.size() - 1;
  const memstore::SelectQuery& query = *queries_[number].query;
  error::Place place = PlaceOf(number);
  if (block.index() < 0 || block.index() >= query.end_block) {
    return error::WrongAnswer(
        store_, place,
        absl::StrCat("block ", block.index(), " is not in [0, ", query.end_block, ")"));
  }
  place.block = block.index();
  if (!selection.blocks.empty() && selection.blocks.back().index >= block.index()) {
    return error::WrongAnswer(
        store_, place,
        absl::StrCat("it comes after block ", selection.blocks.back().index, ", not ascending"));
  }
  const bool had = std::binary_search(query.have.begin(), query.have.end(), block.index());
  if (block.has_payload() == had) {
    return error::WrongAnswer(store_, place,
                              had ? "it has a payload, which the caller has" : "it has no payload");
  }
  selection.blocks.push_back({.index = block.index(), .score = block.score()});
  if (had) return absl::OkStatus();

  const auto payload = static_cast<size_t>(block.payload());
  if (block.payload() < 0 || payload > payloads_.size()) {
    return error::WrongAnswer(
        store_, place,
        absl::StrCat("it names payload ", block.payload(), " before payload ", payloads_.size()));
  }
  if (payload == payloads_.size()) payloads_.push_back({.query = number, .index = block.index()});
  Payload& named = payloads_[payload];
  if (named.index != block.index() ||
      queries_[named.query].payload_bytes != queries_[number].payload_bytes) {
    return error::WrongAnswer(
        store_, place,
        absl::StrCat("it names payload ", payload, ", of block ", named.index, " of context ",
                     memstore::ToString(queries_[named.query].query->context)));
  }
  named.users.emplace_back(number, selection.blocks.size() - 1);
  return absl::OkStatus();
}

absl::Status SelectAnswer::TakePayload(pb::SelectResponse::Payload& payload) {
  if (selections_.size() < queries_.size()) {
    return error::WrongAnswer(store_, PlaceOf(selections_.size()),
                              "a payload comes before the answer");
  }
  if (arrived_ == payloads_.size()) {
    return error::WrongAnswer(store_, {.context = queries_[0].query->context, .layer = layer_},
                              absl::StrCat("more payloads than the ", arrived_, " named"));
  }
  const Payload& named = payloads_[arrived_];
  error::Place place = PlaceOf(named.query);
  place.block = named.index;
  const memstore::BlockHandle block = OwnPayload(std::move(*payload.mutable_payload()));
  if (wire::BlockChecksum({place.context, layer_, named.index}, block.payload()) !=
      payload.crc32c()) {
    return error::DamagedAnswer(store_, place, "the checksum of the payload does not fit");
  }
  const size_t expected = queries_[named.query].payload_bytes;
  if (block.payload().size() != expected) {
    return error::WrongAnswer(store_, place, WrongBytes(block.payload().size(), expected));
  }
  for (const auto& [query, at] : named.users) selections_[query].blocks[at].block = block;
  ++arrived_;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<memstore::Selection>> SelectAnswer::Finish() {
  if (selections_.size() < queries_.size()) {
    return error::WrongAnswer(
        store_, PlaceOf(selections_.size()),
        absl::StrCat("it ended after ", selections_.size(), " of ", queries_.size(), " answers"));
  }
  if (arrived_ < payloads_.size()) {
    error::Place place = PlaceOf(payloads_[arrived_].query);
    place.block = payloads_[arrived_].index;
    return error::WrongAnswer(
        store_, place,
        absl::StrCat("it ended after ", arrived_, " of ", payloads_.size(), " payloads"));
  }
  return std::move(selections_);
}

absl::Status FetchAnswer::Take(pb::FetchResponse& message) {
  for (pb::FetchResponse::Block& block : *message.mutable_blocks()) {
    if (handles_.size() == blocks_.size()) {
      return error::WrongAnswer(store_, place_,
                                absl::StrCat("more blocks than the ", blocks_.size(), " asked"));
    }
    error::Place place = place_;
    place.block = blocks_[handles_.size()];
    memstore::BlockHandle handle = OwnPayload(std::move(*block.mutable_payload()));
    if (wire::BlockChecksum({place.context, place.layer, place.block}, handle.payload()) !=
        block.crc32c()) {
      return error::DamagedAnswer(store_, place, "the checksum of the payload does not fit");
    }
    if (handle.payload().size() != payload_bytes_) {
      return error::WrongAnswer(store_, place, WrongBytes(handle.payload().size(), payload_bytes_));
    }
    handles_.push_back(std::move(handle));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<memstore::BlockHandle>> FetchAnswer::Finish() {
  if (handles_.size() < blocks_.size()) {
    return error::WrongAnswer(
        store_, place_,
        absl::StrCat("it ended after ", handles_.size(), " of ", blocks_.size(), " blocks"));
  }
  return std::move(handles_);
}

}  // namespace infllm::services
