#include "memstore/check.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/block_codec.h"
#include "memstore/cold_key.h"
#include "memstore/commit_record.h"

namespace infllm::memstore {
namespace {

// Of entries that are read together.
constexpr size_t kReadGroupBytes = size_t{8} << 20;

class Checker {
 public:
  Checker(ColdStore& cold, const CheckWatcher& watcher) : cold_(cold), watcher_(watcher) {}

  absl::StatusOr<CheckReport> Run() {
    INFLLM_RETURN_IF_ERROR(ReadRecords());
    CheckNames();
    const std::vector<OwnedRun> owned = OwnedRuns();
    CheckOwners(owned);
    CountOrphans(owned);
    for (const auto& [key, part] : payloads_) CheckPayloads(part);
    for (const auto& [key, part] : representatives_) CheckRepresentatives(part);
    for (const Checkpoint& checkpoint : checkpoints_) CheckCheckpoint(checkpoint);
    report_.damaged_contexts = static_cast<int64_t>(damaged_.size());
    return report_;
  }

 private:
  using Users = std::vector<size_t>;  // contexts, by their place in names_
  // What contexts share.
  struct Part {
    PartInfo info;
    ContextOptions options;
    Users users;
  };
  struct Checkpoint {
    ContextId id;
    std::vector<uint64_t> chunks;
    int64_t bytes = 0;
    size_t user = 0;
  };
  // By maker and first chunk, as the catalog knows them.
  using Parts = std::map<std::tuple<uint64_t, uint64_t, uint64_t>, Part>;
  struct OwnedRun {
    EntryRun run;
    const Users* users = nullptr;
  };
  struct Wanted {
    uint64_t number = 0;
    size_t bytes = 0;
  };

  void Damage(const Users& users, absl::string_view where, absl::string_view what) {
    constexpr size_t kMostNames = 3;
    std::vector<std::string> names;
    for (const size_t user : users) names.push_back(names_[user]);
    std::ranges::sort(names);
    std::string text = names.size() == 1 ? "context " : "contexts ";
    for (size_t i = 0; i < std::min(names.size(), kMostNames); ++i) {
      absl::StrAppend(&text, i == 0 ? "" : ", ", names[i]);
    }
    if (names.size() > kMostNames) {
      absl::StrAppend(&text, " and ", names.size() - kMostNames, " more");
    }
    absl::StrAppend(&text, where, ": ", what);
    damaged_.insert(users.begin(), users.end());
    ++report_.damaged;
    watcher_.damage(text);
  }

  absl::Status ReadRecords() {
    INFLLM_ASSIGN_OR_RETURN(const auto records, cold_.ReadRecords());
    for (const auto& [key, value] : records) {
      ++report_.contexts;
      report_.bytes += static_cast<int64_t>(value.size());
      const size_t user = names_.size();
      absl::StatusOr<CommitRecord> record = DecodeRecord(key, value);
      if (!record.ok()) {
        names_.push_back(absl::StrCat("with the record ", absl::CHexEscape(key)));
        Damage({user}, "", record.status().message());
        continue;
      }
      const CommittedContext& info = record->info;
      names_.push_back(absl::StrCat("\"", absl::CHexEscape(info.name), "\""));
      if (!info.options.tenant.empty()) {
        absl::StrAppend(&names_.back(), " of tenant \"", absl::CHexEscape(info.options.tenant),
                        "\"");
      }
      by_name_[{info.options.tenant, info.name}].push_back(user);
      const Geometry& geometry = info.options.geometry;
      Share(payloads_, record->payloads, info.options, user, geometry.payload_bytes());
      Share(representatives_, record->representatives, info.options, user,
            geometry.representative_bytes());
      checkpoints_.push_back({.id = info.id,
                              .chunks = record->checkpoint,
                              .bytes = record->checkpoint_bytes,
                              .user = user});
      total_ += record->checkpoint_bytes;
    }
    total_ += report_.bytes;
    return absl::OkStatus();
  }

  void Share(Parts& parts, const std::vector<CommitRecord::Use>& uses,
             const ContextOptions& options, size_t user, size_t block_bytes) {
    for (const CommitRecord::Use& use : uses) {
      Part& part = parts[{use.part.maker.hi, use.part.maker.lo, use.part.chunks.front()}];
      if (part.users.empty()) {
        part.info = use.part;
        part.options = options;
        total_ += use.part.blocks * options.geometry.layers * static_cast<int64_t>(block_bytes);
      }
      part.users.push_back(user);
      if (part.info != use.part || part.options != options) {
        Damage(part.users, "", "their records contradict each other about what they share");
      }
    }
  }

  void CheckNames() {
    for (const auto& [name, users] : by_name_) {
      if (users.size() > 1) Damage(users, "", "they have the same name");
    }
  }

  std::vector<OwnedRun> OwnedRuns() {
    std::vector<OwnedRun> owned;
    for (const Parts* parts : {&payloads_, &representatives_}) {
      for (const auto& [key, part] : *parts) {
        for (const EntryRun& run : part.info.entries) owned.push_back({run, &part.users});
      }
    }
    for (const Checkpoint& checkpoint : checkpoints_) {
      alone_.push_back(std::make_unique<Users>(Users{checkpoint.user}));
      for (const EntryRun& run : ToRuns(checkpoint.chunks)) {
        owned.push_back({run, alone_.back().get()});
      }
    }
    std::ranges::sort(owned, {}, [](const OwnedRun& one) { return one.run.first; });
    return owned;
  }

  void CheckOwners(std::span<const OwnedRun> owned) {
    for (size_t i = 1; i < owned.size(); ++i) {
      const EntryRun& before = owned[i - 1].run;
      if (owned[i].run.first - before.first >= before.count) continue;
      Users users = *owned[i - 1].users;
      users.insert(users.end(), owned[i].users->begin(), owned[i].users->end());
      Damage(users, absl::StrCat(", entry ", owned[i].run.first), "two parts claim it");
    }
  }

  void CountOrphans(std::span<const OwnedRun> owned) {
    uint64_t next = 0;
    const auto count_before = [&](uint64_t end) {
      if (next >= end) return;
      // What cannot be read there is nobody's; or it is a neighbour's, and is found with it.
      report_.orphans += cold_.CountRange(ColdKey(next).view(), ColdKey(end).view()).value_or(0);
    };
    for (const OwnedRun& one : owned) {
      count_before(one.run.first);
      next = std::max(next, one.run.first + one.run.count);
    }
    count_before(UINT64_MAX);
  }

  // Hands each entry, or why it cannot be read, to `take(i, status, bytes)`.
  template <typename Take>
  void Read(std::span<const Wanted> wanted, Take take) {
    for (size_t begin = 0; begin < wanted.size();) {
      std::vector<ColdKey> keys;
      std::vector<std::vector<std::byte>> values;
      for (size_t bytes = 0; begin + keys.size() < wanted.size() && bytes < kReadGroupBytes;) {
        const Wanted& one = wanted[begin + keys.size()];
        keys.emplace_back(one.number);
        values.emplace_back(one.bytes);
        bytes += one.bytes;
      }
      std::vector<std::string_view> views;
      views.reserve(keys.size());
      for (const ColdKey& key : keys) views.push_back(key.view());
      const std::vector<std::span<std::byte>> outs(values.begin(), values.end());
      const std::vector<absl::Status> statuses = cold_.Get(views, outs);
      for (size_t i = 0; i < keys.size(); ++i) {
        report_.bytes += static_cast<int64_t>(values[i].size());
        take(begin + i,
             absl::IsNotFound(statuses[i]) ? absl::DataLossError("it is lost") : statuses[i],
             std::span<const std::byte>(values[i]));
      }
      begin += keys.size();
      watcher_.progress(std::min(report_.bytes, total_), total_);
    }
  }

  // Hands the content of each chunk that is whole to `take(i, content)`.
  template <typename Take>
  void ReadChunks(const Users& users, std::span<const uint64_t> numbers,
                  std::span<const ChunkPlace> places, std::span<const size_t> content_bytes,
                  Take take) {
    std::vector<Wanted> wanted;
    wanted.reserve(numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      wanted.push_back({numbers[i], kChunkHeaderBytes + content_bytes[i]});
    }
    Read(wanted, [&](size_t i, const absl::Status& status, std::span<const std::byte> bytes) {
      const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      const absl::StatusOr<std::string_view> content =
          status.ok() ? DecodeChunk(places[i], text) : status;
      if (content.ok()) return take(i, *content);
      Damage(users, Where(places[i], content_bytes[i], numbers[i]), content.status().message());
    });
  }

  static std::string Where(const ChunkPlace& place, size_t bytes, uint64_t number) {
    if (place.kind == ChunkKind::kCheckpoint) {
      return absl::StrCat(", checkpoint from byte ", place.first, " (entry ", number, ", ", bytes,
                          " bytes)");
    }
    return absl::StrCat(", layer ", place.layer, ", ",
                        place.kind == ChunkKind::kNumbers ? "entry numbers" : "representatives",
                        " of the blocks from ", place.first, " (entry ", number, ")");
  }

  void CheckPayloads(const Part& part) {
    const PartInfo& info = part.info;
    const size_t layers = static_cast<size_t>(part.options.geometry.layers);
    const int64_t per_chunk = BlocksPerChunk(sizeof(uint64_t));
    const size_t chunks = info.chunks.size() / layers;
    for (size_t layer = 0; layer < layers; ++layer) {
      std::vector<ChunkPlace> places;
      std::vector<size_t> sizes;
      for (int64_t at = 0; at < info.blocks; at += per_chunk) {
        places.push_back(
            {ChunkKind::kNumbers, info.maker, static_cast<int32_t>(layer), info.first_block + at});
        sizes.push_back(static_cast<size_t>(std::min(per_chunk, info.blocks - at)) *
                        sizeof(uint64_t));
      }
      ReadChunks(part.users, std::span(info.chunks).subspan(layer * chunks, chunks), places, sizes,
                 [&](size_t i, std::string_view content) {
                   std::vector<uint64_t> numbers(content.size() / sizeof(uint64_t));
                   std::memcpy(numbers.data(), content.data(), content.size());
                   CheckBlocks(part, static_cast<int32_t>(layer),
                               static_cast<int64_t>(i) * per_chunk, numbers);
                 });
    }
  }

  // `first` counts in the part.
  void CheckBlocks(const Part& part, int32_t layer, int64_t first,
                   std::span<const uint64_t> numbers) {
    const size_t bytes = EncodedBlockBytes(part.options.geometry.payload_bytes());
    std::vector<Wanted> wanted;
    wanted.reserve(numbers.size());
    for (const uint64_t number : numbers) wanted.push_back({number, bytes});
    Read(wanted, [&](size_t i, absl::Status status, std::span<const std::byte> encoded) {
      ++report_.blocks;
      const int64_t in_part = first + static_cast<int64_t>(i);
      const BlockKey key = {OwnerOf(part.info, in_part), layer, part.info.first_block + in_part};
      if (status.ok() && !Owns(part.info, numbers[i])) {
        status = absl::DataLossError("its entry belongs to no part of the record");
      }
      if (status.ok()) {
        status = VerifyBlock(encoded, {.key = key,
                                       .tenant = part.options.tenant,
                                       .model = part.options.model,
                                       .recipe = part.options.recipe,
                                       .geometry = part.options.geometry});
      }
      if (status.ok()) return;
      Damage(part.users,
             absl::StrCat(", layer ", layer, ", block ", key.index, " (entry ", numbers[i], ")"),
             status.message());
    });
  }

  static ContextId OwnerOf(const PartInfo& info, int64_t in_part) {
    for (const OwnerRun& run : info.owners) {
      if (in_part < run.blocks) return run.owner;
      in_part -= run.blocks;
    }
    return {};
  }
  static bool Owns(const PartInfo& info, uint64_t number) {
    const auto after = std::ranges::upper_bound(info.entries, number, {}, &EntryRun::first);
    return after != info.entries.begin() &&
           number - std::prev(after)->first < std::prev(after)->count;
  }

  void CheckRepresentatives(const Part& part) {
    const PartInfo& info = part.info;
    const size_t layers = static_cast<size_t>(part.options.geometry.layers);
    const size_t bytes = part.options.geometry.representative_bytes();
    const int64_t per_chunk = BlocksPerChunk(bytes);
    std::vector<ChunkPlace> places;
    std::vector<size_t> sizes;
    for (size_t layer = 0; layer < layers; ++layer) {
      for (int64_t at = 0; at < info.blocks; at += per_chunk) {
        places.push_back({ChunkKind::kRepresentatives, info.maker, static_cast<int32_t>(layer),
                          info.first_block + at});
        sizes.push_back(static_cast<size_t>(std::min(per_chunk, info.blocks - at)) * bytes);
      }
    }
    ReadChunks(part.users, info.chunks, places, sizes, [](size_t, std::string_view) {});
  }

  void CheckCheckpoint(const Checkpoint& checkpoint) {
    std::vector<ChunkPlace> places;
    std::vector<size_t> sizes;
    for (size_t i = 0; i < checkpoint.chunks.size(); ++i) {
      const size_t at = i * kCheckpointChunkBytes;
      places.push_back({ChunkKind::kCheckpoint, checkpoint.id, 0, static_cast<int64_t>(at)});
      sizes.push_back(std::min(kCheckpointChunkBytes, static_cast<size_t>(checkpoint.bytes) - at));
    }
    ReadChunks({checkpoint.user}, checkpoint.chunks, places, sizes,
               [](size_t, std::string_view) {});
  }

  ColdStore& cold_;
  const CheckWatcher& watcher_;
  CheckReport report_;
  int64_t total_ = 0;  // bytes to read, about
  std::vector<std::string> names_;
  std::map<std::pair<std::string, std::string>, Users> by_name_;  // tenant, name
  std::set<size_t> damaged_;
  Parts payloads_;
  Parts representatives_;
  std::vector<Checkpoint> checkpoints_;
  std::vector<std::unique_ptr<Users>> alone_;
};

}  // namespace

absl::StatusOr<CheckReport> CheckCommitted(ColdStore& cold, const CheckWatcher& watcher) {
  return Checker(cold, watcher).Run();
}

}  // namespace infllm::memstore
