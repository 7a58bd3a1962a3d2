#include "services/memstore/block_stream.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "kernels/core/status_macros.h"
#include "services/common/errors.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;

uint32_t BytesTag(int field_number) {
  return WireFormatLite::MakeTag(field_number, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
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

// A message whose only large parts are length-delimited `payload` fields, the last field of each
// element of the repeated field `blocks`. The bytes are what protobuf itself would write.
class MessageBuilder {
 public:
  MessageBuilder(int blocks_field, int payload_field, std::shared_ptr<PinsInFlight> pins)
      : blocks_tag_(BytesTag(blocks_field)),
        payload_tag_(BytesTag(payload_field)),
        pins_(std::move(pins)) {}

  // Bytes in front of the blocks: an encoded message without them.
  void AddFields(const google::protobuf::MessageLite& fields) { fields.AppendToString(&text_); }

  // `fields` is the element without its payload, which is left out if `payload` is empty.
  void AddBlock(const google::protobuf::MessageLite& fields, memstore::BlockHandle payload) {
    const size_t payload_bytes = payload.payload().size();
    std::string element = fields.SerializeAsString();
    if (payload) {
      AppendVarint(&element, payload_tag_);
      AppendVarint(&element, payload_bytes);
    }
    AppendVarint(&text_, blocks_tag_);
    AppendVarint(&text_, element.size() + payload_bytes);
    text_ += element;
    if (payload) {
      FlushText();
      slices_.push_back(PinnedSlice::Make(std::move(payload), pins_));
      payload_bytes_ += payload_bytes;
    }
  }

  size_t payload_bytes() const { return payload_bytes_; }

  grpc::ByteBuffer Finish() {
    FlushText();
    return grpc::ByteBuffer(slices_.data(), slices_.size());
  }

 private:
  static void AppendVarint(std::string* out, uint64_t value) {
    uint8_t bytes[10];
    const uint8_t* end = CodedOutputStream::WriteVarint64ToArray(value, bytes);
    out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(end - bytes));
  }

  void FlushText() {
    if (text_.empty()) return;
    slices_.emplace_back(text_);
    text_.clear();
  }

  const uint32_t blocks_tag_;
  const uint32_t payload_tag_;
  const std::shared_ptr<PinsInFlight> pins_;
  std::string text_;  // not in a slice yet
  std::vector<grpc::Slice> slices_;
  size_t payload_bytes_ = 0;
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

absl::Status SendSelection(memstore::ContextId context, int32_t layer,
                           memstore::Selection selection, const std::shared_ptr<PinsInFlight>& pins,
                           BlockSink sink) {
  pb::SelectResponse head;
  head.set_total_blocks(static_cast<int32_t>(selection.blocks.size()));
  size_t next = 0;
  do {
    MessageBuilder builder(pb::SelectResponse::kBlocksFieldNumber,
                           pb::SelectResponse::Block::kPayloadFieldNumber, pins);
    builder.AddFields(head);
    while (next < selection.blocks.size()) {
      memstore::SelectedBlock& selected = selection.blocks[next];
      const size_t bytes = selected.block.payload().size();
      if (builder.payload_bytes() > 0 &&
          builder.payload_bytes() + bytes > wire::kTargetMessageBytes) {
        break;
      }
      pb::SelectResponse::Block fields;
      fields.set_index(selected.index);
      fields.set_score(selected.score);
      fields.set_crc32c(wire::SelectedChecksum({context, layer, selected.index}, selected.score,
                                               selected.block.payload()));
      builder.AddBlock(fields, std::move(selected.block));
      ++next;
    }
    const bool last = next == selection.blocks.size();
    if (absl::Status sent = Send(builder, last, sink); !sent.ok()) return sent;
  } while (next < selection.blocks.size());
  return absl::OkStatus();
}

absl::Status SendFetched(memstore::ContextId context, int32_t layer,
                         std::span<const int64_t> indices,
                         std::vector<memstore::BlockHandle> blocks,
                         const std::shared_ptr<PinsInFlight>& pins, bool last, BlockSink sink) {
  MessageBuilder builder(pb::FetchResponse::kBlocksFieldNumber,
                         pb::FetchResponse::Block::kPayloadFieldNumber, pins);
  for (size_t i = 0; i < blocks.size(); ++i) {
    pb::FetchResponse::Block fields;
    fields.set_crc32c(wire::BlockChecksum({context, layer, indices[i]}, blocks[i].payload()));
    builder.AddBlock(fields, std::move(blocks[i]));
  }
  return Send(builder, last, sink);
}

}  // namespace infllm::services
