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
  uintptr_t handles = 0;
  Stream recorded_on = {};
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

Code NewStream(Device* device, Stream* stream, Message*) {
  *stream = Stream{++device->handles};
  return Code::kOk;
}

Code NewEvent(Device* device, Event* event, Message*) {
  *event = Event{100 + ++device->handles};
  return Code::kOk;
}

Code Record(Device* device, Stream stream, Event event, Message* why) {
  if (event <= Event{100}) return Fail(Code::kInvalidArgument, "no event of the fake", why);
  device->recorded_on = stream;
  return Code::kOk;
}

Code Wait(Device* device, Stream stream, Event event, Message* why) {
  if (event <= Event{100} || stream == device->recorded_on) {
    return Fail(Code::kInvalidArgument, "the fake waits for no stream that it is on", why);
  }
  return Code::kOk;
}

Code Copy(Device*, Stream, void* to, const void* from, size_t bytes, Message*) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return Code::kOk;
}

Code Zero(Device*, Stream, void* data, size_t bytes, Message*) {
  if (bytes > 0) std::memset(data, 0, bytes);
  return Code::kOk;
}

Code Synchronize(Device*, Stream, Message* why) {
  return Fail(Code::kInternal, "the fake broke", why);
}

// Not the formula: it shows that each argument arrives, and the stream.
Code RunRmsNorm(Device*, Stream stream, const RmsNormArgs* args, Message*) {
  for (int64_t i = 0; i < args->rows * args->width; ++i) {
    static_cast<float*>(args->y)[i] = static_cast<const float*>(args->x)[i] +
                                      args->weight[i % args->width] + args->eps +
                                      static_cast<float>(stream);
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
                              .allocate_host = Allocate,
                              .free_host = Free,
                              .new_stream = NewStream,
                              .new_event = NewEvent,
                              .record = Record,
                              .wait = Wait,
                              .synchronize = Synchronize,
                              .copy = Copy,
                              .zero = Zero,
                              .RmsNorm = RunRmsNorm};
  table.abi_version = kPluginAbiVersion + (Misbehaves("version") ? 1 : 0);
  return &table;
}

}  // namespace infllm::kernels::cuda
