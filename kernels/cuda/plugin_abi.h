// What the program and libinfllm_cuda.so agree on: one C table of entry points. The program links
// no CUDA; kernels/cuda_loader.h opens the plugin at run time. No CUDA types in here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infllm::kernels::cuda {

// Goes up with every change below: a program and a plugin of different builds must not meet.
inline constexpr uint32_t kPluginAbiVersion = 1;
inline constexpr char kPluginFile[] = "libinfllm_cuda.so";
// The one exported symbol, of type PluginEntry.
inline constexpr char kPluginSymbol[] = "infllm_cuda_plugin";

enum class Code : int32_t { kOk, kUnavailable, kInvalidArgument, kResourceExhausted, kInternal };

// Why a call did not return kOk, zero-terminated; untouched by one that did.
struct Message {
  char text[256];
};

// One GPU and the stream on which everything below runs, in the order of the calls.
struct Device;

// y = x / sqrt(mean(x^2) + eps) * weight, per row.
struct RmsNormParams {
  const float* x;       // [rows, width]
  const float* weight;  // [width]
  float* y;             // [rows, width]; may be x
  int64_t rows;
  int64_t width;
  float eps;
};

// Calls on one Device come from one thread at a time. `data` is device memory, `host` is not.
struct PluginTable {
  uint32_t abi_version;  // stays first in all versions

  // Opens the first visible GPU. kUnavailable: no driver, no GPU, or none that is new enough.
  Code (*open)(Device** device, Message* why);
  void (*close)(Device* device);

  Code (*allocate)(Device* device, size_t bytes, void** data, Message* why);
  void (*free)(Device* device, void* data);  // waits for work that may use `data`
  // Both return when `host` may be reused or read.
  Code (*upload)(Device* device, void* data, const void* host, size_t bytes, Message* why);
  Code (*download)(Device* device, void* host, const void* data, size_t bytes, Message* why);
  Code (*zero)(Device* device, void* data, size_t bytes, Message* why);
  Code (*synchronize)(Device* device, Message* why);

  Code (*rms_norm)(Device* device, const RmsNormParams* params, Message* why);
};

using PluginEntry = const PluginTable* (*)();

}  // namespace infllm::kernels::cuda
