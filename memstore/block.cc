#include "memstore/block.h"

#include <sys/random.h>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::memstore {

ContextId NewContextId() {
  ContextId id;
  // Up to 256 bytes come whole once the system has started (getrandom(2)).
  INFLLM_CHECK(::getrandom(&id, sizeof(id), 0) == static_cast<ssize_t>(sizeof(id)));
  return id;
}

std::string ToString(const ContextId& id) {
  return absl::StrCat(absl::Hex(id.hi, absl::kZeroPad16), absl::Hex(id.lo, absl::kZeroPad16));
}

std::string ToString(const BlockKey& key) {
  return absl::StrCat("context ", ToString(key.context), ", layer ", key.layer, ", block ",
                      key.index);
}

}  // namespace infllm::memstore
