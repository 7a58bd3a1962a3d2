// Little-endian fields one after the other: how records and chunks are written.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace infllm::memstore {

static_assert(std::endian::native == std::endian::little, "fields are written as they lie in RAM");

class ByteWriter {
 public:
  template <typename T>
  void Put(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  // Its length, then its bytes.
  void PutText(std::string_view text) {
    Put(static_cast<uint32_t>(text.size()));
    out_.append(text);
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads what a ByteWriter has written. Past the end everything is zero, and ok() false.
class ByteReader {
 public:
  explicit ByteReader(std::string_view in) : in_(in) {}

  template <typename T>
  T Get() {
    T value{};
    if (!Has(sizeof(T))) return value;
    std::memcpy(&value, in_.data(), sizeof(T));
    in_.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view GetText() {
    const auto size = Get<uint32_t>();
    if (!Has(size)) return {};
    const std::string_view text = in_.substr(0, size);
    in_.remove_prefix(size);
    return text;
  }
  // A number of elements that follow, of at least `element_bytes` each: so that damage does not ask
  // for more memory than there are bytes.
  size_t GetCount(size_t element_bytes) {
    const auto count = Get<uint64_t>();
    if (count > in_.size() / element_bytes) ok_ = false;
    return ok_ ? static_cast<size_t>(count) : 0;
  }
  // Nothing was missing so far; and nothing is left.
  bool ok() const { return ok_; }
  bool AtEnd() const { return ok_ && in_.empty(); }

 private:
  bool Has(size_t bytes) {
    if (in_.size() < bytes) ok_ = false;
    return ok_;
  }
  std::string_view in_;
  bool ok_ = true;
};

}  // namespace infllm::memstore
