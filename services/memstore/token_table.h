#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "services/memstore/secret_file.h"

namespace infllm::services {

// The tenants of a file of tokens: lines of a tenant, white space and its token; `-` stands for the
// default tenant, which has no name. A tenant may have several tokens. Lines may be empty or begin
// with #. Of tokens only SHA-256 digests are kept, and no text names one. Thread-safe.
class TokenTable {
 public:
  // A token has so many characters of ASCII, none of them white space.
  static constexpr size_t kMinTokenBytes = 16, kMaxTokenBytes = 512;

  // The errors of SecretFile::Read(), and
  //   INVALID_ARGUMENT  a line is malformed, a token is too short or given twice, or there is none
  static absl::StatusOr<std::unique_ptr<TokenTable>> Open(const std::string& path);

  // Whose it is, if anybody's; in a time that tells nothing of the tokens. A file that has changed
  // is read again first, within a second. If it is wrong then, stderr says so and what it said
  // before holds.
  std::optional<std::string> TenantOf(std::string_view token);

 private:
  using Digest = std::array<unsigned char, 32>;
  struct Entry {
    Digest digest;
    std::string tenant;
  };

  explicit TokenTable(const std::string& path) : file_(path) {}
  static Digest DigestOf(std::string_view token);
  static absl::StatusOr<std::vector<Entry>> Parse(const std::string& path, std::string_view text);

  std::mutex mutex_;
  SecretFile file_ ABSL_GUARDED_BY(mutex_);
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace infllm::services
