// Format: 8 bytes little-endian header size N; N bytes of JSON, an object
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//    "__metadata__": {"key": "text", ...}}
// possibly padded with spaces; then the data, to which the offsets are relative and which they
// cover without gaps. https://huggingface.co/docs/safetensors, "Format".
#include "worker/model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "worker/model/quote.h"

namespace infllm::worker {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are used as they are stored");

using Json = nlohmann::json;

constexpr size_t kPrefixBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference library
constexpr size_t kMaxRank = 8;

// A tensor as its header entry states it.
struct Entry {
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape;
  std::optional<std::vector<uint64_t>> offsets;
};

// Reads the header event by event: a parsed document would already have dropped duplicate keys,
// and would hold a hostile header of 100 MB in gigabytes. Whatever nests deeper than an entry
// ends the reading.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  const absl::Status& status() const { return status_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }

  bool start_object(size_t) override {
    switch (at_) {
      case At::kStart:
        at_ = At::kNames;
        return true;
      case At::kEntry:
        at_ = At::kFields;
        return true;
      case At::kMetadata:
        at_ = At::kMetadataFields;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(string_t& key) override {
    switch (at_) {
      case At::kNames:
        if (key == "__metadata__") {
          if (has_metadata_) return Fail("__metadata__ occurs twice");
          has_metadata_ = true;
          at_ = At::kMetadata;
          return true;
        }
        current_ = entries_.try_emplace(key).first;
        at_ = At::kEntry;
        // A name that was there before has its fields.
        return !entry().dtype.has_value() || Fail("tensor ", Quote(key), " occurs twice");
      case At::kFields:
        at_ = key == "dtype"          ? At::kDType
              : key == "shape"        ? At::kShape
              : key == "data_offsets" ? At::kOffsets
                                      : At::kFields;
        if (at_ == At::kFields) {
          return Fail("tensor ", Quote(current_->first), " has an unknown field ", Quote(key));
        }
        if ((at_ == At::kDType && entry().dtype.has_value()) ||
            (at_ == At::kShape && entry().shape.has_value()) ||
            (at_ == At::kOffsets && entry().offsets.has_value())) {
          return Fail("tensor ", Quote(current_->first), " has two fields ", Quote(key));
        }
        return true;
      default:  // kMetadataFields: nothing else contains objects
        return metadata_keys_.insert(key).second ||
               Fail("__metadata__ has two fields ", Quote(key));
    }
  }

  bool end_object() override {
    if (at_ == At::kFields) {
      const char* missing = !entry().dtype.has_value()     ? "dtype"
                            : !entry().shape.has_value()   ? "shape"
                            : !entry().offsets.has_value() ? "data_offsets"
                                                           : nullptr;
      if (missing != nullptr) return Fail("tensor ", Quote(current_->first), " has no ", missing);
    }
    at_ = At::kNames;
    return true;
  }

  bool start_array(size_t) override {
    if (at_ == At::kShape && !in_array_) {
      entry().shape.emplace();
    } else if (at_ == At::kOffsets && !in_array_) {
      entry().offsets.emplace();
    } else {
      return Unexpected("an array");
    }
    in_array_ = true;
    return true;
  }

  bool end_array() override {
    if (at_ == At::kOffsets && entry().offsets->size() != 2) {
      return Fail("tensor ", Quote(current_->first), " has ", entry().offsets->size(),
                  " data_offsets instead of 2");
    }
    in_array_ = false;
    at_ = At::kFields;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) return Unexpected("a number");
    std::vector<uint64_t>& list = at_ == At::kShape ? *entry().shape : *entry().offsets;
    if (list.size() == kMaxRank) {
      return Fail("tensor ", Quote(current_->first), " has a list of more than ", kMaxRank,
                  " numbers");
    }
    list.push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (at_ == At::kMetadataFields) return true;
    if (at_ != At::kDType) return Unexpected("a string");
    entry().dtype = std::move(value);
    at_ = At::kFields;
    return true;
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t& text) override {
    return Unexpected(absl::StrCat("the number ", Escape(text, 40)));
  }
  bool binary(binary_t&) override { return Unexpected("binary data"); }  // JSON has none
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    return Fail("not valid JSON: ", Escape(error.what(), 300));
  }

 private:
  enum class At {
    kStart,
    kNames,           // in the outer object
    kEntry,           // before a tensor's object
    kFields,          // in a tensor's object
    kDType,           // before or in the value of a field
    kShape,           //
    kOffsets,         //
    kMetadata,        // before the metadata object
    kMetadataFields,  // in it
  };

  Entry& entry() { return current_->second; }

  template <typename... Parts>
  bool Fail(const Parts&... parts) {
    status_ = absl::InvalidArgumentError(absl::StrCat(parts...));
    return false;
  }

  bool Unexpected(std::string_view what) {
    const std::string found(what);
    switch (at_) {
      case At::kStart:
        return Fail("the header is ", found, " instead of an object");
      case At::kMetadata:
        return Fail("__metadata__ is ", found, " instead of an object");
      case At::kMetadataFields:
        return Fail("__metadata__ holds ", found, ", but may hold strings only");
      default:
        return Fail("tensor ", Quote(current_->first), " has ", found,
                    at_ == At::kEntry   ? " instead of an object"
                    : at_ == At::kDType ? " instead of a string as dtype"
                    : at_ == At::kShape
                        ? " in its shape, a list of non-negative integers"
                        : " in its data_offsets, a list of 2 non-negative integers");
    }
  }

  absl::Status status_;
  std::map<std::string, Entry> entries_;
  std::set<std::string> metadata_keys_;
  At at_ = At::kStart;
  bool in_array_ = false;
  bool has_metadata_ = false;
  std::map<std::string, Entry>::iterator current_;  // valid from kEntry to kOffsets
};

std::optional<kernels::DType> ReadDType(std::string_view name) {
  if (name == "F32") return kernels::DType::kF32;
  if (name == "BF16") return kernels::DType::kBF16;
  if (name == "F16") return kernels::DType::kF16;
  return std::nullopt;
}

// Checks one entry on its own and against the `data` that follows the header.
absl::StatusOr<TensorView> MakeView(const std::string& name, const Entry& entry,
                                    std::span<const std::byte> data) {
  const auto fail = [&name](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(name), " ", parts...));
  };
  const std::optional<kernels::DType> dtype = ReadDType(*entry.dtype);
  if (!dtype.has_value()) {
    return fail("has dtype ", Quote(*entry.dtype), "; only F32, BF16 and F16 are read");
  }
  TensorView view{.dtype = *dtype};
  uint64_t bytes = kernels::SizeOf(*dtype);
  bool overflows = false;
  for (const uint64_t dim : *entry.shape) {
    overflows |= dim > uint64_t{std::numeric_limits<int64_t>::max()} ||
                 __builtin_mul_overflow(bytes, dim, &bytes);
    view.shape.push_back(static_cast<int64_t>(dim));
  }
  const std::string shape = absl::StrCat("[", absl::StrJoin(*entry.shape, ", "), "]");
  if (overflows) return fail("has shape ", shape, ": its size overflows 64 bits");
  const uint64_t begin = (*entry.offsets)[0];
  const uint64_t end = (*entry.offsets)[1];
  if (begin > end) return fail("begins at offset ", begin, ", after its end at ", end);
  if (end > data.size()) {
    return fail("ends at offset ", end, ", but the file has only ", data.size(),
                " bytes of data: is it truncated?");
  }
  if (end - begin != bytes) {
    return fail("has shape ", shape, " of ", *entry.dtype, ", which takes ", bytes,
                " bytes, but its data_offsets span ", end - begin);
  }
  view.data = data.subspan(begin, bytes);
  return view;
}

// Every byte belongs to exactly one tensor.
absl::Status CheckCover(const std::map<std::string, TensorView>& tensors,
                        std::span<const std::byte> data) {
  std::vector<std::tuple<size_t, size_t, std::string_view>> ranges;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = static_cast<size_t>(tensor.data.data() - data.data());
    ranges.emplace_back(begin, begin + tensor.data.size(), name);
  }
  std::sort(ranges.begin(), ranges.end());
  size_t covered = 0;
  for (const auto& [begin, end, name] : ranges) {
    if (begin != covered) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quote(name), " begins at offset ", begin,
                       begin < covered ? ", inside another tensor that ends at "
                                       : ", which leaves a gap after offset ",
                       covered));
    }
    covered = end;
  }
  if (covered != data.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the file goes on for ", data.size() - covered,
                                                   " bytes after the last tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(
    std::span<const std::byte> file) {
  if (file.size() < kPrefixBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file has ", file.size(), " bytes, too few for a safetensors header"));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kPrefixBytes);
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header claims ", header_bytes,
                                                   " bytes, but at most ", kMaxHeaderBytes,
                                                   " are allowed: is this a safetensors file?"));
  }
  if (header_bytes > file.size() - kPrefixBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header claims ", header_bytes,
                                                   " bytes, but the file ends after ",
                                                   file.size() - kPrefixBytes, " of them"));
  }
  const char* header = reinterpret_cast<const char*>(file.data()) + kPrefixBytes;
  if (header_bytes == 0 || *header != '{') {
    return absl::InvalidArgumentError("the header does not begin with '{'");
  }
  HeaderReader reader;
  if (!Json::sax_parse(header, header + header_bytes, &reader)) return reader.status();

  const std::span<const std::byte> data = file.subspan(kPrefixBytes + header_bytes);
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, entry] : reader.entries()) {
    INFLLM_ASSIGN_OR_RETURN(tensors[name], MakeView(name, entry, data));
  }
  INFLLM_RETURN_IF_ERROR(CheckCover(tensors, data));
  return tensors;
}

}  // namespace infllm::worker
