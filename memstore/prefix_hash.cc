#include "memstore/prefix_hash.h"

#include <openssl/evp.h>

#include <memory>
#include <string>
#include <string_view>

#include "kernels/core/status_macros.h"
#include "memstore/byte_io.h"

namespace infllm::memstore {
namespace {

// What is hashed, so that no other use of SHA-256 gives these bytes.
constexpr std::string_view kDomain = "infllm prefix 1";

class Sha256 {
 public:
  PrefixHash Of(std::string_view first, std::span<const std::byte> second) {
    PrefixHash hash;
    INFLLM_CHECK(EVP_DigestInit_ex(context_.get(), type_.get(), nullptr) == 1);
    INFLLM_CHECK(EVP_DigestUpdate(context_.get(), first.data(), first.size()) == 1);
    INFLLM_CHECK(EVP_DigestUpdate(context_.get(), second.data(), second.size()) == 1);
    INFLLM_CHECK(EVP_DigestFinal_ex(context_.get(), hash.data(), nullptr) == 1);
    return hash;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
    void operator()(EVP_MD* type) const { EVP_MD_free(type); }
  };
  const std::unique_ptr<EVP_MD_CTX, Free> context_{EVP_MD_CTX_new()};
  const std::unique_ptr<EVP_MD, Free> type_{EVP_MD_fetch(nullptr, "SHA256", nullptr)};
};

std::string Seed(const ContextOptions& options, int32_t exec_block) {
  ByteWriter out;
  out.PutText(kDomain);
  out.PutText(options.tenant);
  out.Put(options.model.hi);
  out.Put(options.model.lo);
  out.PutText(options.recipe);
  const Geometry& g = options.geometry;
  for (const int32_t size :
       {g.layers, g.q_heads, g.kv_heads, g.head_dim, g.block_tokens, exec_block}) {
    out.Put(size);
  }
  out.Put(static_cast<uint32_t>(g.dtype));
  out.Put(static_cast<uint32_t>(g.representative));
  return out.Take();
}

}  // namespace

std::vector<PrefixHash> PrefixHashes(const ContextOptions& options, int32_t exec_block,
                                     std::span<const int32_t> tokens) {
  INFLLM_CHECK(exec_block > 0);
  const auto block = static_cast<size_t>(exec_block);
  Sha256 sha;
  PrefixHash last = sha.Of(Seed(options, exec_block), {});
  std::vector<PrefixHash> hashes;
  hashes.reserve(tokens.size() / block);
  for (size_t begin = 0; begin + block <= tokens.size(); begin += block) {
    last = sha.Of({reinterpret_cast<const char*>(last.data()), last.size()},
                  std::as_bytes(tokens.subspan(begin, block)));
    hashes.push_back(last);
  }
  return hashes;
}

}  // namespace infllm::memstore
