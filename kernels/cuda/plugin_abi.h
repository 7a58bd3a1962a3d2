// What the program and libinfllm_cuda.so agree on: one C table of entry points. The program links
// no CUDA; kernels/cuda_loader.h opens the plugin at run time. No CUDA types in here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device.h"
#include "kernels/ops.h"

namespace infllm::kernels::cuda {

// Goes up with every change below and of kernels/ops/: a program and a plugin of different builds
// must not meet.
inline constexpr uint32_t kPluginAbiVersion = 3;
inline constexpr char kPluginFile[] = "libinfllm_cuda.so";
// The one exported symbol, of type PluginEntry.
inline constexpr char kPluginSymbol[] = "infllm_cuda_plugin";

enum class Code : int32_t { kOk, kUnavailable, kInvalidArgument, kResourceExhausted, kInternal };

// Why a call did not return kOk, zero-terminated; untouched by one that did.
struct Message {
  char text[256];
};

// One GPU, its streams and events.
struct Device;

// As Backend's functions of these names say (kernels/backend.h). Calls on one Device may come from
// several threads. Stream 0 is there from the start.
struct PluginTable {
  uint32_t abi_version;  // stays first in all versions

  // Opens the first visible GPU. kUnavailable: no driver, no GPU, or none that is new enough.
  Code (*open)(Device** device, Message* why);
  // Frees streams and events, too.
  void (*close)(Device* device);

  Code (*allocate)(Device* device, size_t bytes, void** data, Message* why);
  void (*free)(Device* device, void* data);  // waits for work that may use `data`
  Code (*allocate_host)(Device* device, size_t bytes, void** data, Message* why);
  void (*free_host)(Device* device, void* data);  // likewise

  Code (*new_stream)(Device* device, Stream* stream, Message* why);
  Code (*new_event)(Device* device, Event* event, Message* why);
  Code (*record)(Device* device, Stream stream, Event event, Message* why);
  Code (*wait)(Device* device, Stream stream, Event event, Message* why);
  Code (*synchronize)(Device* device, Stream stream, Message* why);

  Code (*copy)(Device* device, Stream stream, void* to, const void* from, size_t bytes,
               Message* why);
  Code (*zero)(Device* device, Stream stream, void* data, size_t bytes, Message* why);

  // The operations, each enqueued on a stream; null: not implemented.
#define INFLLM_DECLARE_ENTRY(Name) \
  Code (*Name)(Device * device, Stream stream, const Name##Args* args, Message* why);
  INFLLM_KERNEL_OPS(INFLLM_DECLARE_ENTRY)
#undef INFLLM_DECLARE_ENTRY
};

using PluginEntry = const PluginTable* (*)();

}  // namespace infllm::kernels::cuda
