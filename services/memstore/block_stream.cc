#include "services/memstore/block_stream.h"

#include <google/protobuf/io/coded_stream.h>

#include <atomic>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "kernels/core/status_macros.h"
#include "services/common/errors.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using google::protobuf::io::CodedOutputStream;

// That of a field of bytes or of a message, as protobuf's encoding has it.
uint32_t BytesTag(int field_number) {
  constexpr uint32_t kLengthDelimited = 2;
  return static_cast<uint32_t>(field_number) << 3 | kLengthDelimited;
}

// Keeps a block pinned until gRPC drops its last slice, on whatever thread.
class PinnedSlice {
 public:
  static grpc::Slice Make(memstore::BlockHandle block, std::shared_ptr<PinsInFlight> pins) {
    pins->Add();
    auto* pinned = new PinnedSlice{std::move(block), std::move(pins)};
    const std::span<const std::byte> payload = pinned->block_.payload();
    // gRPC never writes to a slice; its signature only lacks the const.
    return grpc::Slice(const_cast<std::byte*>(payload.data()), payload.size(), &Release, pinned);
  }

 private:
  PinnedSlice(memstore::BlockHandle block, std::shared_ptr<PinsInFlight> pins)
      : block_(std::move(block)), pins_(std::move(pins)) {
    complete_.store(true, std::memory_order_release);
  }
  static void Release(void* pointer) {
    auto* pinned = static_cast<PinnedSlice*>(pointer);
    INFLLM_CHECK(pinned->complete_.load(std::memory_order_acquire));
    const std::shared_ptr<PinsInFlight> pins = std::move(pinned->pins_);
    delete pinned;  // first, so that whoever waits finds the room
    pins->Release();
  }

  memstore::BlockHandle block_;
  std::shared_ptr<PinsInFlight> pins_;  // shared by the service and all slices, which outlive it
  // Orders the two threads. So does gRPC, but ThreadSanitizer cannot see into it.
  std::atomic<bool> complete_ = false;
};

// A message of small parts and of elements whose last field is a `payload`. The bytes are what
// protobuf itself would write.
class MessageBuilder {
 public:
  explicit MessageBuilder(std::shared_ptr<PinsInFlight> pins) : pins_(std::move(pins)) {}

  // `part` is an encoded message of the same type; its repeated fields go behind those before.
  void Add(const google::protobuf::MessageLite& part) { part.AppendToString(&text_); }

  // An element of the repeated field `field`; `head` is it without its payload.
  void AddPayload(int field, const google::protobuf::MessageLite& head, int payload_field,
                  memstore::BlockHandle payload) {
    const size_t payload_bytes = payload.payload().size();
    std::string element = head.SerializeAsString();
    AppendVarint(&element, BytesTag(payload_field));
    AppendVarint(&element, payload_bytes);
    AppendVarint(&text_, BytesTag(field));
    AppendVarint(&text_, element.size() + payload_bytes);
    text_ += element;
    FlushText();
    slices_.push_back(PinnedSlice::Make(std::move(payload), pins_));
    bytes_ += payload_bytes;
  }

  size_t bytes() const { return bytes_ + text_.size(); }

  grpc::ByteBuffer Finish() {
    FlushText();
    bytes_ = 0;
    const grpc::ByteBuffer message(slices_.data(), slices_.size());
    slices_.clear();
    return message;
  }

 private:
  static void AppendVarint(std::string* out, uint64_t value) {
    uint8_t bytes[10];
    const uint8_t* end = CodedOutputStream::WriteVarint64ToArray(value, bytes);
    out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(end - bytes));
  }

  void FlushText() {
    if (text_.empty()) return;
    bytes_ += text_.size();
    slices_.emplace_back(text_);
    text_.clear();
  }

  const std::shared_ptr<PinsInFlight> pins_;
  std::string text_;  // not in a slice yet
  std::vector<grpc::Slice> slices_;
  size_t bytes_ = 0;  // of slices_
};

absl::Status Send(MessageBuilder& builder, bool last, BlockSink sink) {
  return sink(builder.Finish(), last) ? absl::OkStatus() : error::CallerGone();
}

}  // namespace

int64_t PinsInFlight::released() const {
  const std::lock_guard lock(mutex_);
  return released_;
}

bool PinsInFlight::AwaitRelease(int64_t seen, std::chrono::steady_clock::time_point give_up) {
  std::unique_lock lock(mutex_);
  // A call that comes back late must end, too, where others' transfers free room again and again.
  if (std::chrono::steady_clock::now() >= give_up) return false;
  changed_.wait_until(lock, give_up, [&] { return released_ > seen || in_flight_ == 0; });
  return released_ > seen;
}

void PinsInFlight::Add() {
  const std::lock_guard lock(mutex_);
  ++in_flight_;
}

void PinsInFlight::Release() {
  {
    const std::lock_guard lock(mutex_);
    --in_flight_;
    ++released_;
  }
  changed_.notify_all();
}

void PinsInFlight::Withdraw() {
  {
    const std::lock_guard lock(mutex_);
    --in_flight_;
  }
  changed_.notify_all();
}

namespace {

// The payloads of a call, each once, numbered in the order in which they were first named.
class PayloadTable {
 public:
  struct Entry {
    wire::BlockPlace place;  // where it was first named
    memstore::BlockHandle block;
  };

  int32_t NumberOf(const wire::BlockPlace& place, memstore::BlockHandle block) {
    const std::span<const std::byte> payload = block.payload();
    // Forks share the bytes of a block in place.
    const auto [found, added] =
        numbers_.try_emplace({payload.data(), payload.size(), place.index}, entries_.size());
    if (added) entries_.push_back({place, std::move(block)});
    return static_cast<int32_t>(found->second);
  }
  std::vector<Entry>& entries() { return entries_; }

 private:
  absl::flat_hash_map<std::tuple<const std::byte*, size_t, int64_t>, size_t> numbers_;
  std::vector<Entry> entries_;
};

pb::SelectResponse::Answer ToProto(const memstore::ContextId& context, int32_t layer, size_t query,
                                   memstore::Selection selection, PayloadTable& payloads) {
  pb::SelectResponse::Answer answer;
  answer.set_code(static_cast<int32_t>(selection.status.code()));
  answer.set_message(std::string(selection.status.message()));
  for (memstore::SelectedBlock& selected : selection.blocks) {
    pb::SelectResponse::Block& block = *answer.add_blocks();
    block.set_index(selected.index);
    block.set_score(selected.score);
    if (selected.block) {
      block.set_payload(
          payloads.NumberOf({context, layer, selected.index}, std::move(selected.block)));
    }
  }
  answer.set_crc32c(wire::AnswerChecksum(context, layer, static_cast<int64_t>(query), answer));
  return answer;
}

}  // namespace

absl::Status SendSelections(std::span<const memstore::ContextId> contexts, int32_t layer,
                            std::vector<memstore::Selection> selections,
                            const std::shared_ptr<PinsInFlight>& pins, BlockSink sink) {
  PayloadTable payloads;
  MessageBuilder builder(pins);
  // Sends what there is if `bytes` more would be too much for one message.
  const auto make_room = [&](size_t bytes) {
    return builder.bytes() == 0 || builder.bytes() + bytes <= wire::kTargetMessageBytes
               ? absl::OkStatus()
               : Send(builder, false, sink);
  };
  for (size_t query = 0; query < selections.size(); ++query) {
    pb::SelectResponse part;
    *part.add_answers() =
        ToProto(contexts[query], layer, query, std::move(selections[query]), payloads);
    INFLLM_RETURN_IF_ERROR(make_room(part.ByteSizeLong()));
    builder.Add(part);
  }
  for (PayloadTable::Entry& entry : payloads.entries()) {
    INFLLM_RETURN_IF_ERROR(make_room(entry.block.payload().size()));
    pb::SelectResponse::Payload head;
    head.set_crc32c(wire::BlockChecksum(entry.place, entry.block.payload()));
    builder.AddPayload(pb::SelectResponse::kPayloadsFieldNumber, head,
                       pb::SelectResponse::Payload::kPayloadFieldNumber, std::move(entry.block));
  }
  return Send(builder, true, sink);
}

absl::Status SendFetched(const memstore::ContextId& context, int32_t layer,
                         std::span<const int64_t> indices,
                         std::vector<memstore::BlockHandle> blocks,
                         const std::shared_ptr<PinsInFlight>& pins, bool last, BlockSink sink) {
  MessageBuilder builder(pins);
  for (size_t i = 0; i < blocks.size(); ++i) {
    pb::FetchResponse::Block head;
    head.set_crc32c(wire::BlockChecksum({context, layer, indices[i]}, blocks[i].payload()));
    builder.AddPayload(pb::FetchResponse::kBlocksFieldNumber, head,
                       pb::FetchResponse::Block::kPayloadFieldNumber, std::move(blocks[i]));
  }
  return Send(builder, last, sink);
}

}  // namespace infllm::services
