// config.json. An accepted config must be one that the rest of the program can compute with.
#include <cmath>

#include "kernels/core/status_macros.h"
#include "tests/fuzz/fuzz_driver.h"
#include "worker/model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config = infllm::worker::ParseModelConfig({reinterpret_cast<const char*>(data), size});
  if (!config.ok()) return 0;
  INFLLM_CHECK(config->hidden_size > 0 && config->intermediate_size > 0 && config->layers > 0);
  INFLLM_CHECK(config->kv_heads > 0 && config->q_heads % config->kv_heads == 0);
  INFLLM_CHECK(config->head_dim > 0 && config->head_dim % 2 == 0);
  INFLLM_CHECK(config->rms_norm_eps >= 0 && std::isfinite(config->rms_norm_eps));
  INFLLM_CHECK(config->rope_theta >= 1 && std::isfinite(config->rope_theta));
  INFLLM_CHECK(config->rope_linear_factor >= 1 && std::isfinite(config->rope_linear_factor));
  INFLLM_CHECK(!config->sliding_window.has_value() || *config->sliding_window > 0);
  for (const int32_t id : config->eos_ids) INFLLM_CHECK(id >= 0 && id < config->vocab_size);
  INFLLM_CHECK(config->bos_id.value_or(0) >= 0 && config->bos_id.value_or(0) < config->vocab_size);
  return 0;
}
