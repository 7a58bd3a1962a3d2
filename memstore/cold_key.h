#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace infllm::memstore {

// Key of an entry of the cold tier: a number that grows with every entry, big-endian, so that
// entries sort in the order in which they were written. A log-structured store then never has to
// rewrite an entry to sort it (rocksdb_cold_store.cc).
class ColdKey {
 public:
  explicit ColdKey(uint64_t number) {
    for (int i = 0; i < 8; ++i) bytes_[i] = static_cast<char>(number >> (56 - 8 * i));
  }
  // Valid as long as this object, where it is now.
  std::string_view view() const { return {bytes_.data(), bytes_.size()}; }

 private:
  std::array<char, 8> bytes_;
};

}  // namespace infllm::memstore
