// The header of a safetensors file. What is accepted must be safe to read and cover the file.
#include <span>

#include "kernels/core/status_macros.h"
#include "tests/fuzz/fuzz_driver.h"
#include "worker/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> file = std::as_bytes(std::span(data, size));
  const auto tensors = infllm::worker::ParseSafetensors(file);
  if (!tensors.ok()) return 0;
  size_t total = 0;
  for (const auto& [name, tensor] : *tensors) {
    size_t bytes = infllm::kernels::SizeOf(tensor.dtype);
    for (const int64_t dim : tensor.shape) bytes *= static_cast<size_t>(dim);
    INFLLM_CHECK(bytes == tensor.data.size());
    INFLLM_CHECK(bytes == 0 || (tensor.data.data() >= file.data() + 8 &&
                                tensor.data.data() + bytes <= file.data() + size));
    total += bytes;
  }
  INFLLM_CHECK(total + 8 <= size);
  return 0;
}
