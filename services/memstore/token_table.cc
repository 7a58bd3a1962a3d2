#include "services/memstore/token_table.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"

namespace infllm::services {

TokenTable::Digest TokenTable::DigestOf(std::string_view token) {
  Digest digest;
  ::SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

absl::StatusOr<std::vector<TokenTable::Entry>> TokenTable::Parse(const std::string& path,
                                                                 std::string_view text) {
  std::vector<Entry> entries;
  int number = 0;
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("line ", number, " of ", path, " ", what));
  };
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++number;
    const absl::string_view bare = absl::StripAsciiWhitespace(line);
    if (bare.empty() || bare[0] == '#') continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(bare, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() != 2) {
      return wrong(absl::StrCat("has ", words.size(), " words: give a tenant and its token"));
    }
    if (words[0].size() > memstore::limits::kMaxTenantBytes) {
      return wrong(absl::StrCat("has a tenant of ", words[0].size(), " bytes; at most ",
                                memstore::limits::kMaxTenantBytes, " are possible"));
    }
    if (words[1].size() < kMinTokenBytes || words[1].size() > kMaxTokenBytes ||
        !std::ranges::all_of(words[1], absl::ascii_isgraph)) {
      return wrong(absl::StrCat("has a token of ", words[1].size(), " bytes; it must have ",
                                kMinTokenBytes, " to ", kMaxTokenBytes,
                                " printable ASCII characters (openssl rand -hex 32 makes one)"));
    }
    Entry entry{.digest = DigestOf({words[1].data(), words[1].size()}),
                .tenant = words[0] == "-" ? std::string() : std::string(words[0])};
    if (std::ranges::find(entries, entry.digest, &Entry::digest) != entries.end()) {
      return wrong("has the token of an earlier line");
    }
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no token"));
  return entries;
}

absl::StatusOr<std::unique_ptr<TokenTable>> TokenTable::Open(const std::string& path) {
  std::unique_ptr<TokenTable> table(new TokenTable(path));
  const std::lock_guard lock(table->mutex_);
  INFLLM_ASSIGN_OR_RETURN(const std::string text, table->file_.Read());
  INFLLM_ASSIGN_OR_RETURN(table->entries_, Parse(path, text));
  return table;
}

std::optional<std::string> TokenTable::TenantOf(std::string_view token) {
  const Digest digest = DigestOf(token);
  const std::lock_guard lock(mutex_);
  if (file_.HasChanged()) {
    const absl::StatusOr<std::string> text = file_.Read();
    absl::StatusOr<std::vector<Entry>> entries =
        text.ok() ? Parse(file_.path(), *text) : text.status();
    if (entries.ok()) {
      entries_ = *std::move(entries);
    } else {
      std::fprintf(stderr, "infllm-memstore: the tokens stay as they were: %s\n",
                   std::string(entries.status().message()).c_str());
    }
  }
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {  // all of them
    if (::CRYPTO_memcmp(entry.digest.data(), digest.data(), digest.size()) == 0) found = &entry;
  }
  if (found == nullptr) return std::nullopt;
  return found->tenant;
}

}  // namespace infllm::services
