// model.safetensors.index.json. No accepted file name may lead out of the model's directory.
#include <string_view>

#include "kernels/core/status_macros.h"
#include "tests/fuzz/fuzz_driver.h"
#include "worker/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto shards = infllm::worker::ParseShardIndex({reinterpret_cast<const char*>(data), size});
  if (!shards.ok()) return 0;
  for (const auto& [name, shard] : *shards) {
    INFLLM_CHECK(shard.find('/') == std::string::npos && shard.find('\0') == std::string::npos);
    INFLLM_CHECK(shard != "." && shard != "..");
  }
  return 0;
}
