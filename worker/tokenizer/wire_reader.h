// Reads the protobuf wire format, as far as a SentencePiece model uses it: the encoding alone,
// without generated code, which only services/ may know.
// https://protobuf.dev/programming-guides/encoding
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace infllm::worker {

enum class WireType : uint8_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

// One field of a message. Borrows the bytes that the reader reads.
struct WireField {
  uint32_t number = 0;
  WireType type = WireType::kVarint;
  uint64_t integer = 0;    // the value unless kLengthDelimited
  std::string_view bytes;  // the value if kLengthDelimited
  size_t position = 0;     // in the file: where the field starts
  size_t value_position = 0;

  // The value, or INVALID_ARGUMENT if the field is of another wire type than such a value has.
  absl::StatusOr<std::string_view> AsBytes() const;
  absl::StatusOr<uint64_t> AsVarint() const;
  absl::StatusOr<bool> AsBool() const;
  absl::StatusOr<float> AsFloat() const;

 private:
  absl::Status CheckType(WireType wanted) const;
};

// Yields the fields of one message in order. Every read is bounds-checked.
class WireReader {
 public:
  // `position` is where `message` starts in the file; it serves error texts only.
  explicit WireReader(std::string_view message, size_t position = 0)
      : message_(message), position_(position) {}

  bool AtEnd() const { return offset_ == message_.size(); }
  // INVALID_ARGUMENT: the bytes are no field, or reach past the end of the message.
  // REQUIRES: !AtEnd()
  absl::StatusOr<WireField> Next();

 private:
  absl::StatusOr<uint64_t> ReadVarint();
  absl::StatusOr<uint64_t> ReadFixed(size_t width);

  std::string_view message_;
  size_t position_;
  size_t offset_ = 0;
};

}  // namespace infllm::worker
