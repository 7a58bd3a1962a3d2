// A plugin for the tests of the loader: the table of kernels/cuda/plugin_abi.h over host memory.
// $INFLLM_FAKE_CUDA makes it misbehave: "version" (of another build), "no-device" (refuses to
// open), "out-of-memory" (refuses to allocate), "unknown-code".
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "kernels/cuda/plugin_abi.h"

namespace infllm::kernels::cuda {

struct Device {
  int allocations = 0;
};

namespace {

bool Misbehaves(std::string_view how) {
  const char* wish = std::getenv("INFLLM_FAKE_CUDA");
  return wish != nullptr && wish == how;
}

Code Fail(Code code, const char* text, Message* why) {
  std::snprintf(why->text, sizeof why->text, "%s", text);
  return code;
}

Code Open(Device** device, Message* why) {
  if (Misbehaves("no-device")) return Fail(Code::kUnavailable, "no device of the fake", why);
  *device = new Device;
  return Code::kOk;
}

// A buffer that outlives its device would be a bug of the loader.
void Close(Device* device) {
  if (device->allocations != 0) std::abort();
  delete device;
}

Code Allocate(Device* device, size_t bytes, void** data, Message* why) {
  if (Misbehaves("out-of-memory")) return Fail(Code::kResourceExhausted, "the fake is full", why);
  if (Misbehaves("unknown-code")) return static_cast<Code>(77);
  *data = std::malloc(bytes + 1);
  ++device->allocations;
  return Code::kOk;
}

void Free(Device* device, void* data) {
  std::free(data);
  --device->allocations;
}

Code Copy(Device*, void* to, const void* from, size_t bytes, Message*) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return Code::kOk;
}

Code Zero(Device*, void* data, size_t bytes, Message*) {
  if (bytes > 0) std::memset(data, 0, bytes);
  return Code::kOk;
}

Code Synchronize(Device*, Message* why) { return Fail(Code::kInternal, "the fake broke", why); }

// Not the formula: it shows that each parameter arrives.
Code RmsNorm(Device*, const RmsNormParams* p, Message*) {
  for (int64_t i = 0; i < p->rows * p->width; ++i) {
    p->y[i] = p->x[i] + p->weight[i % p->width] + p->eps;
  }
  return Code::kOk;
}

}  // namespace

extern "C" const PluginTable* infllm_cuda_plugin() {
  static PluginTable table = {.abi_version = kPluginAbiVersion,
                              .open = Open,
                              .close = Close,
                              .allocate = Allocate,
                              .free = Free,
                              .upload = Copy,
                              .download = Copy,
                              .zero = Zero,
                              .synchronize = Synchronize,
                              .rms_norm = RmsNorm};
  table.abi_version = kPluginAbiVersion + (Misbehaves("version") ? 1 : 0);
  return &table;
}

}  // namespace infllm::kernels::cuda
