// Records of committed contexts and chunks, as they come from a disk. The first byte chooses; the
// checksum of the rest is mended, so that damage gets past it. Accepted records are whole.
#include <cstring>
#include <string>

#include "kernels/core/status_macros.h"
#include "memstore/commit_record.h"
#include "memstore/crc32c.h"

namespace infllm::memstore {
namespace {

constexpr size_t kRecordChecksum = 12, kRecordHeader = 16;  // where it stands; what it is not over

void ReadRecord(std::string value) {
  if (value.size() > kRecordHeader) {
    const std::span<const char> body = std::span(value).subspan(kRecordHeader);
    const uint32_t crc = Crc32c(std::as_bytes(body));
    std::memcpy(value.data() + kRecordChecksum, &crc, sizeof(crc));
  }
  // The key is that of the id that the record begins with.
  ContextId id;
  if (value.size() >= kRecordHeader + 16) {
    std::memcpy(&id.hi, value.data() + kRecordHeader, 8);
    std::memcpy(&id.lo, value.data() + kRecordHeader + 8, 8);
  }
  const auto record = DecodeRecord(RecordKey(id), value);
  if (!record.ok()) return;
  INFLLM_CHECK(EncodeRecord(*record) == value);
  int64_t blocks = 0, published = 0;
  for (const CommitRecord::Use& use : record->payloads) blocks += use.blocks;
  for (const CommitRecord::Use& use : record->representatives) published += use.blocks;
  INFLLM_CHECK(blocks == record->info.blocks && published == record->info.published);
}

void ReadChunk(std::string_view encoded) {
  const ChunkPlace place{ChunkKind::kNumbers, {.hi = 1, .lo = 2}, 3, 4};
  const auto content = DecodeChunk(place, encoded);
  if (content.ok()) INFLLM_CHECK(EncodeChunk(place, *content) == encoded);
}

}  // namespace
}  // namespace infllm::memstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 8 != 0) {
    infllm::memstore::ReadRecord(bytes);
  } else {
    infllm::memstore::ReadChunk(bytes);
  }
  return 0;
}
