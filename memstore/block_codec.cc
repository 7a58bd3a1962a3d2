#include "memstore/block_codec.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/crc32c.h"
#include "memstore/limits.h"

namespace infllm::memstore {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the header is written as it lies in RAM");

struct Header {
  uint64_t magic = 0;
  uint32_t version = 0;
  uint32_t header_bytes = 0;
  uint64_t fingerprint_hi = 0;
  uint64_t fingerprint_lo = 0;
  uint64_t recipe_hi = 0;
  uint64_t recipe_lo = 0;
  uint64_t context_hi = 0;
  uint64_t context_lo = 0;
  int64_t index = 0;
  int32_t layer = 0;
  int32_t layers = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t block_tokens = 0;
  uint32_t dtype = 0;
  uint32_t record_layout = 0;
  uint64_t payload_bytes = 0;
  uint32_t crc = 0;
  uint32_t tenant_bytes = 0;
  std::array<char, limits::kMaxTenantBytes> tenant{};
  std::array<char, 8> padding{};
};
static_assert(sizeof(Header) == kBlockHeaderBytes);
static_assert(kBlockHeaderBytes % 64 == 0);

constexpr uint64_t kMagic = 0x564b4d4c4c464e49;  // "INFLLMKV"

Header HeaderOf(const BlockIdentity& identity) {
  const XXH128_hash_t recipe = XXH3_128bits(identity.recipe.data(), identity.recipe.size());
  Header header{.magic = kMagic,
                .version = kBlockFormatVersion,
                .header_bytes = kBlockHeaderBytes,
                .fingerprint_hi = identity.model.hi,
                .fingerprint_lo = identity.model.lo,
                .recipe_hi = recipe.high64,
                .recipe_lo = recipe.low64,
                .context_hi = identity.key.context.hi,
                .context_lo = identity.key.context.lo,
                .index = identity.key.index,
                .layer = identity.key.layer,
                .layers = identity.geometry.layers,
                .q_heads = identity.geometry.q_heads,
                .kv_heads = identity.geometry.kv_heads,
                .head_dim = identity.geometry.head_dim,
                .block_tokens = identity.geometry.block_tokens,
                .dtype = static_cast<uint32_t>(identity.geometry.dtype),
                .record_layout = kRecordLayout,
                .payload_bytes = identity.geometry.payload_bytes(),
                .tenant_bytes = static_cast<uint32_t>(identity.tenant.size())};
  INFLLM_CHECK(identity.tenant.size() <= header.tenant.size());
  std::copy(identity.tenant.begin(), identity.tenant.end(), header.tenant.begin());
  return header;
}

uint32_t Seal(uint32_t payload_crc, Header header) {
  header.crc = 0;
  return ExtendCrc32c(payload_crc, std::as_bytes(std::span(&header, 1)));
}

}  // namespace

BlockHeader EncodeHeader(const BlockIdentity& identity, uint32_t payload_crc) {
  Header header = HeaderOf(identity);
  header.crc = Seal(payload_crc, header);
  return std::bit_cast<BlockHeader>(header);
}

absl::Status VerifyBlock(std::span<const std::byte> encoded, const BlockIdentity& expected) {
  const auto differs = [&](std::string_view what, const auto& stored, const auto& wanted) {
    return absl::DataLossError(absl::StrCat("stored bytes of ", ToString(expected.key), ": ",
                                            absl::string_view(what.data(), what.size()), " is ",
                                            stored, ", expected ", wanted));
  };
  const size_t payload_bytes = expected.geometry.payload_bytes();
  if (encoded.size() != EncodedBlockBytes(payload_bytes)) {
    return differs("size in bytes", encoded.size(), EncodedBlockBytes(payload_bytes));
  }
  Header stored;
  std::memcpy(&stored, encoded.data(), sizeof(stored));
  const Header wanted = HeaderOf(expected);
  if (stored.magic != wanted.magic) {
    return differs("magic", absl::StrCat(absl::Hex(stored.magic)),
                   absl::StrCat(absl::Hex(wanted.magic)));
  }
  if (stored.version != wanted.version) {
    return differs("format version", stored.version, wanted.version);
  }
  struct Number {
    std::string_view name;
    uint64_t Header::*hi;
    uint64_t Header::*lo;
  };
  for (const Number& n :
       {Number{"model fingerprint", &Header::fingerprint_hi, &Header::fingerprint_lo},
        Number{"recipe", &Header::recipe_hi, &Header::recipe_lo},
        Number{"owning context", &Header::context_hi, &Header::context_lo}}) {
    if (stored.*n.hi == wanted.*n.hi && stored.*n.lo == wanted.*n.lo) continue;
    const auto hex = [&](const Header& header) {
      return absl::StrCat(absl::Hex(header.*n.hi, absl::kZeroPad16),
                          absl::Hex(header.*n.lo, absl::kZeroPad16));
    };
    return differs(n.name, hex(stored), hex(wanted));
  }
  struct Field {
    std::string_view name;
    uint64_t stored, wanted;
  };
  const auto field = [&](std::string_view name, auto Header::*member) {
    return Field{name, static_cast<uint64_t>(stored.*member),
                 static_cast<uint64_t>(wanted.*member)};
  };
  for (const Field& f :
       {field("header size", &Header::header_bytes), field("layer count", &Header::layers),
        field("number of query heads", &Header::q_heads),
        field("number of KV heads", &Header::kv_heads), field("head dim", &Header::head_dim),
        field("block_tokens", &Header::block_tokens), field("dtype", &Header::dtype),
        field("record layout", &Header::record_layout), field("block index", &Header::index),
        field("layer", &Header::layer), field("payload size", &Header::payload_bytes),
        field("tenant length", &Header::tenant_bytes)}) {
    if (f.stored != f.wanted) return differs(f.name, f.stored, f.wanted);
  }
  // The other tenant's name is not this caller's to read.
  if (stored.tenant != wanted.tenant) {
    return differs("tenant", "another one",
                   absl::StrCat("\"",
                                absl::CHexEscape(absl::string_view(expected.tenant.data(),
                                                                   expected.tenant.size())),
                                "\""));
  }
  const uint32_t crc = Seal(Crc32c(encoded.subspan(kBlockHeaderBytes)), stored);
  if (crc != stored.crc) {
    return differs("crc32c", absl::StrCat(absl::Hex(crc, absl::kZeroPad8)),
                   absl::StrCat(absl::Hex(stored.crc, absl::kZeroPad8)));
  }
  return absl::OkStatus();
}

}  // namespace infllm::memstore
