// How committed contexts are written, so that another process can read them. Two forms, both
// little-endian (byte_io.h), both with a magic number, a version and a crc32c:
//  * a record for each committed context, under "context/" and the 16 bytes of its id. It names the
//    parts that it uses with all their entries: what no record names is nobody's;
//  * chunks: entries that are not blocks. A header of 64 bytes says what a chunk is and of which
//    commit, then its content:
//      numbers          u64 [blocks]: the entries of these blocks' payloads, of one layer
//      representatives  [blocks] of one layer, in the dtype of the geometry
//      checkpoint       a piece of: tokens, i32 each, then the worker's state
// Entries are written first, then the record, which makes them count. Dropping goes the other way.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "memstore/committed_part.h"
#include "memstore/memory_store.h"
#include "memstore/prefix_hash.h"

namespace infllm::memstore {

inline constexpr uint32_t kCommitFormatVersion = 2;

struct CommitRecord {
  CommittedContext info;
  struct Use {
    PartInfo part;
    int64_t blocks = 0;  // the first so many of it
    friend bool operator==(const Use&, const Use&) = default;
  };
  std::vector<Use> payloads;         // one behind the other: info.blocks in all
  std::vector<Use> representatives;  // info.published in all
  // The chunks of the checkpoint; these entries are of this record alone.
  std::vector<uint64_t> checkpoint;
  int64_t checkpoint_bytes = 0;
  std::vector<PrefixHash> prefix;  // of info.reusable.tokens
  friend bool operator==(const CommitRecord&, const CommitRecord&) = default;
};

std::string RecordKey(const ContextId& id);
std::string EncodeRecord(const CommitRecord& record);
// Any bytes are safe to pass.
//   DATA_LOSS  not a whole record that EncodeRecord could have written for this key
absl::StatusOr<CommitRecord> DecodeRecord(std::string_view key, std::string_view value);

// How many blocks a chunk holds; how many chunks a layer of so many blocks has.
int64_t BlocksPerChunk(size_t bytes_per_block);
inline int64_t ChunksOf(int64_t blocks, size_t bytes_per_block) {
  const int64_t per_chunk = BlocksPerChunk(bytes_per_block);
  return (blocks + per_chunk - 1) / per_chunk;
}
inline constexpr size_t kCheckpointChunkBytes = size_t{1} << 20;

enum class ChunkKind : uint32_t { kNumbers = 1, kRepresentatives = 2, kCheckpoint = 3 };
struct ChunkPlace {
  ChunkKind kind{};
  ContextId maker;
  int32_t layer = 0;
  int64_t first = 0;  // block; of a checkpoint byte
};
inline constexpr size_t kChunkHeaderBytes = 64;
std::string EncodeChunk(const ChunkPlace& place, std::string_view content);
// The content of a chunk. Any bytes are safe to pass.
//   DATA_LOSS  it is not that of this place, undamaged
absl::StatusOr<std::string_view> DecodeChunk(const ChunkPlace& place, std::string_view encoded);

// Ascending, merged.
std::vector<EntryRun> ToRuns(std::vector<uint64_t> numbers);

}  // namespace infllm::memstore
