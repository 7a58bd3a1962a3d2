#include "memstore/cold_store.h"

namespace infllm::memstore {
namespace {

absl::Status NotDurable() {
  return absl::UnimplementedError("this cold store keeps nothing beyond its process");
}

}  // namespace

absl::Status ColdStore::ChangeRecords(std::span<const RecordChange>) { return NotDurable(); }
absl::StatusOr<std::map<std::string, std::string>> ColdStore::ReadRecords() { return NotDurable(); }
absl::StatusOr<std::string> ColdStore::LastKey() { return NotDurable(); }
absl::StatusOr<int64_t> ColdStore::CountRange(std::string_view, std::string_view) {
  return NotDurable();
}
absl::Status ColdStore::DeleteRange(std::string_view, std::string_view) { return NotDurable(); }

}  // namespace infllm::memstore
