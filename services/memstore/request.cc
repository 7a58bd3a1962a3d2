#include "services/memstore/request.h"

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "infllm/v1/memory_store.pb.h"
#include "kernels/core/status_macros.h"
#include "services/common/errors.h"
#include "services/memstore/byte_buffer.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::io::CodedInputStream;

// What protobuf keeps of a field beside its content, or of one that it does not know. About what a
// query takes.
constexpr int64_t kFieldBytes = 64;
constexpr int kMaxDepth = 8;

// Adds up what a message unpacks to, without unpacking it: two bytes of an empty query become a
// hundred, and one of a packed integer eight.
class Measure {
 public:
  Measure(grpc::ByteBuffer& bytes, int64_t limit)
      : reader_(&bytes), input_(&reader_), limit_(limit) {}

  // False if the message is malformed; or too large, then unpacked() says so.
  bool Of(const Descriptor& type, int depth = 0) {
    while (const uint32_t tag = input_.ReadTag()) {
      unpacked_ += kFieldBytes;
      const FieldDescriptor* const field = type.FindFieldByNumber(static_cast<int>(tag >> 3));
      if (!Field(tag & 7, field, depth) || unpacked_ > limit_) return false;
    }
    return input_.ConsumedEntireMessage();
  }
  int64_t unpacked() const { return unpacked_; }

 private:
  enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

  bool Field(uint32_t wire_type, const FieldDescriptor* field, int depth) {
    uint64_t varint;
    uint32_t bytes;
    switch (wire_type) {
      case kVarint:
        return input_.ReadVarint64(&varint);
      case kFixed64:
        return input_.Skip(8);
      case kFixed32:
        return input_.Skip(4);
      case kBytes:
        return input_.ReadVarint32(&bytes) && Content(bytes, field, depth);
      default:  // groups: not in our messages
        return false;
    }
  }

  bool Content(uint32_t bytes, const FieldDescriptor* field, int depth) {
    if (field != nullptr && field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (depth == kMaxDepth) return false;
      const CodedInputStream::Limit before = input_.PushLimit(static_cast<int>(bytes));
      if (!Of(*field->message_type(), depth + 1)) return false;
      input_.PopLimit(before);
      return true;
    }
    if (field != nullptr && field->is_packable() && !IsFixed(*field)) {
      return PackedVarints(bytes, field->cpp_type() == FieldDescriptor::CPPTYPE_INT64 ||
                                          field->cpp_type() == FieldDescriptor::CPPTYPE_UINT64
                                      ? 8
                                      : 4);
    }
    if (!input_.Skip(static_cast<int>(bytes))) return false;  // fewer are there
    unpacked_ += bytes;
    return unpacked_ <= limit_;
  }

  static bool IsFixed(const FieldDescriptor& field) {
    switch (field.type()) {
      case FieldDescriptor::TYPE_FLOAT:
      case FieldDescriptor::TYPE_DOUBLE:
      case FieldDescriptor::TYPE_FIXED32:
      case FieldDescriptor::TYPE_FIXED64:
      case FieldDescriptor::TYPE_SFIXED32:
      case FieldDescriptor::TYPE_SFIXED64:
        return true;
      default:
        return false;
    }
  }

  // Each ends with the byte that has no high bit.
  bool PackedVarints(uint32_t bytes, int64_t element_bytes) {
    while (bytes > 0) {
      const void* data = nullptr;
      int size = 0;
      if (!input_.GetDirectBufferPointer(&data, &size) || size <= 0) return false;
      size = static_cast<int>(std::min(static_cast<uint32_t>(size), bytes));
      const std::string_view part(static_cast<const char*>(data), static_cast<size_t>(size));
      unpacked_ += element_bytes * std::ranges::count_if(part, [](char c) { return c >= 0; });
      if (unpacked_ > limit_ || !input_.Skip(size)) return false;
      bytes -= static_cast<uint32_t>(size);
    }
    return true;
  }

  grpc::ProtoBufferReader reader_;
  CodedInputStream input_;
  const int64_t limit_;
  int64_t unpacked_ = 0;
};

absl::Status TooLarge(const Descriptor& type, absl::string_view what, int64_t bytes,
                      int64_t limit) {
  return absl::ResourceExhaustedError(absl::StrCat("the ", type.name(), " ", what, " ", bytes,
                                                   " bytes; it may have at most ", limit,
                                                   ": split it"));
}

}  // namespace

int64_t MaxRequestBytes(const Descriptor& type) {
  constexpr int64_t kMiB = 1 << 20;
  static const Descriptor* const large[] = {
      pb::AppendRequest::descriptor(), pb::PublishRequest::descriptor(),
      pb::CommitRequest::descriptor(), pb::FindPrefixRequest::descriptor()};
  if (std::ranges::find(large, &type) != std::end(large)) return wire::kMaxMessageBytes;
  if (&type == pb::SelectRequest::descriptor()) return 8 * kMiB;
  if (&type == pb::FetchRequest::descriptor()) return kMiB;
  return kMiB / 16;
}

absl::Status ParseRequest(grpc::ByteBuffer& bytes, google::protobuf::Message& request) {
  const Descriptor& type = *request.GetDescriptor();
  const int64_t limit = MaxRequestBytes(type);
  const auto size = static_cast<int64_t>(bytes.Length());
  if (size > limit) return TooLarge(type, "has", size, limit);
  Measure measure(bytes, limit);
  const bool whole = measure.Of(type);
  if (measure.unpacked() > limit)
    return TooLarge(type, "unpacks to more than", measure.unpacked(), limit);
  if (!whole || !FromBytes(bytes, request)) return error::ArrivedMalformed(type.name());
  return absl::OkStatus();
}

}  // namespace infllm::services
