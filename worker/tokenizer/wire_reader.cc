#include "worker/tokenizer/wire_reader.h"

#include <bit>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::worker {
namespace {

absl::Status ErrorAt(size_t position, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("at byte ", position, ": ", what));
}

}  // namespace

absl::Status WireField::CheckType(WireType wanted) const {
  if (type == wanted) return absl::OkStatus();
  return ErrorAt(position, absl::StrCat("field ", number, " has wire type ", static_cast<int>(type),
                                        " where ", static_cast<int>(wanted), " is due"));
}

absl::StatusOr<std::string_view> WireField::AsBytes() const {
  INFLLM_RETURN_IF_ERROR(CheckType(WireType::kLengthDelimited));
  return bytes;
}

absl::StatusOr<uint64_t> WireField::AsVarint() const {
  INFLLM_RETURN_IF_ERROR(CheckType(WireType::kVarint));
  return integer;
}

absl::StatusOr<bool> WireField::AsBool() const {
  INFLLM_RETURN_IF_ERROR(CheckType(WireType::kVarint));
  return integer != 0;
}

absl::StatusOr<float> WireField::AsFloat() const {
  INFLLM_RETURN_IF_ERROR(CheckType(WireType::kFixed32));
  return std::bit_cast<float>(static_cast<uint32_t>(integer));
}

absl::StatusOr<WireField> WireReader::Next() {
  WireField field;
  field.position = position_ + offset_;
  INFLLM_ASSIGN_OR_RETURN(const uint64_t tag, ReadVarint());
  // Field numbers have 29 bits.
  if (tag >> 3 == 0 || tag >> 32 != 0) {
    return ErrorAt(field.position, absl::StrCat("field number ", tag >> 3, " is not allowed"));
  }
  field.number = static_cast<uint32_t>(tag >> 3);
  field.type = static_cast<WireType>(tag & 7);
  switch (field.type) {
    case WireType::kVarint: {
      INFLLM_ASSIGN_OR_RETURN(field.integer, ReadVarint());
      return field;
    }
    case WireType::kFixed64: {
      INFLLM_ASSIGN_OR_RETURN(field.integer, ReadFixed(8));
      return field;
    }
    case WireType::kFixed32: {
      INFLLM_ASSIGN_OR_RETURN(field.integer, ReadFixed(4));
      return field;
    }
    case WireType::kLengthDelimited: {
      INFLLM_ASSIGN_OR_RETURN(const uint64_t length, ReadVarint());
      const size_t left = message_.size() - offset_;
      if (length > left) {
        return ErrorAt(field.position, absl::StrCat("field ", field.number, " is ", length,
                                                    " bytes long, and ", left, " are left"));
      }
      field.value_position = position_ + offset_;
      field.bytes = message_.substr(offset_, length);
      offset_ += length;
      return field;
    }
  }
  return ErrorAt(field.position, absl::StrCat("field ", field.number, " has wire type ", tag & 7,
                                              ", and only 0, 1, 2 and 5 are known"));
}

absl::StatusOr<uint64_t> WireReader::ReadVarint() {
  const size_t start = offset_;
  uint64_t value = 0;
  for (int shift = 0; offset_ < message_.size(); shift += 7) {
    const uint8_t byte = static_cast<uint8_t>(message_[offset_++]);
    if (shift == 63 && byte > 1) {
      return ErrorAt(position_ + start, "a varint is longer than 64 bits");
    }
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if ((byte & 0x80) == 0) return value;
  }
  return ErrorAt(position_ + start, "a varint is cut off");
}

absl::StatusOr<uint64_t> WireReader::ReadFixed(size_t width) {
  if (message_.size() - offset_ < width) {
    return ErrorAt(position_ + offset_, absl::StrCat("a value of ", width, " bytes is cut off"));
  }
  uint64_t value = 0;
  for (size_t i = 0; i < width; ++i) {
    value |= static_cast<uint64_t>(static_cast<uint8_t>(message_[offset_ + i])) << (8 * i);
  }
  offset_ += width;
  return value;
}

}  // namespace infllm::worker
