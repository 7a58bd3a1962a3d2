// libinfllm_cuda.so: the entry points of plugin_abi.h on the CUDA runtime, which is linked in
// statically and finds the driver by itself. So this loads, and says why it cannot be used, on a
// machine without a driver or any CUDA library.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "kernels/cuda/plugin_abi.h"
#include "kernels/cuda/rms_norm.h"

namespace infllm::kernels::cuda {

struct Device {
  cudaStream_t main_stream = nullptr;
  std::mutex mutex;
  std::vector<cudaStream_t> streams;  // guarded by mutex, as are the events
  std::vector<cudaEvent_t> events;
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() {
    for (const cudaEvent_t event : events) cudaEventDestroy(event);
    for (const cudaStream_t stream : streams) cudaStreamDestroy(stream);
    if (main_stream != nullptr) cudaStreamDestroy(main_stream);
  }
};

namespace {

constexpr int kMinComputeCapability = 80;  // the oldest architecture this plugin holds code for

__attribute__((format(printf, 3, 4))) Code Fail(Code code, Message* why, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(why->text, sizeof why->text, format, arguments);
  va_end(arguments);
  return code;
}

Code FromCuda(cudaError_t error, const char* what, Message* why) {
  if (error == cudaSuccess) return Code::kOk;
  cudaGetLastError();  // or the next, innocent call would report it again
  const Code code = error == cudaErrorInvalidValue ? Code::kInvalidArgument : Code::kInternal;
  return Fail(code, why, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

Code Unavailable(cudaError_t error, const char* what, Message* why) {
  return FromCuda(error, what, why) == Code::kOk ? Code::kOk : Code::kUnavailable;
}

// kOk if there is a driver, new enough, and a GPU, new enough.
Code CheckMachine(Message* why) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return Fail(Code::kUnavailable, why, "no NVIDIA driver on this machine");
  }
  int devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (counted == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return Fail(Code::kUnavailable, why,
                "the NVIDIA driver supports CUDA %d.%d, but the plugin needs %d.%d: update it",
                driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                CUDART_VERSION % 1000 / 10);
  }
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && devices == 0)) {
    cudaGetLastError();
    return Fail(Code::kUnavailable, why,
                "no device: the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES right?)");
  }
  if (counted != cudaSuccess) return Unavailable(counted, "cudaGetDeviceCount", why);

  int major = 0, minor = 0;
  if (const Code code = Unavailable(
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device 0", why);
      code != Code::kOk) {
    return code;
  }
  if (const Code code = Unavailable(
          cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "device 0", why);
      code != Code::kOk) {
    return code;
  }
  if (major * 10 + minor < kMinComputeCapability) {
    return Fail(Code::kUnavailable, why,
                "device 0 has compute capability %d.%d, at least %d.%d is needed", major, minor,
                kMinComputeCapability / 10, kMinComputeCapability % 10);
  }
  return Code::kOk;
}

Code Open(Device** device, Message* why) {
  if (const Code code = CheckMachine(why); code != Code::kOk) return code;
  if (const Code code = Unavailable(cudaSetDevice(0), "device 0", why); code != Code::kOk) {
    return code;
  }
  std::unique_ptr<Device> opened(new (std::nothrow) Device);
  if (opened == nullptr) return Fail(Code::kResourceExhausted, why, "no host memory left");
  if (const Code code =
          Unavailable(cudaStreamCreateWithFlags(&opened->main_stream, cudaStreamNonBlocking),
                      "creating a stream on device 0", why);
      code != Code::kOk) {
    return code;
  }
  *device = opened.release();
  return Code::kOk;
}

void Close(Device* device) { delete device; }

cudaStream_t StreamOf(const Device& device, Stream stream) {
  return stream == Stream{0} ? device.main_stream : reinterpret_cast<cudaStream_t>(stream);
}

Code Allocate(Device*, size_t bytes, void** data, Message* why) {
  const cudaError_t error = cudaMalloc(data, std::max<size_t>(bytes, 1));  // null is no buffer
  if (error != cudaErrorMemoryAllocation) return FromCuda(error, "cudaMalloc", why);
  cudaGetLastError();
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  return Fail(Code::kResourceExhausted, why,
              "the GPU has no %zu bytes left: %zu of its %zu bytes are free", bytes, free_bytes,
              total_bytes);
}

void Free(Device*, void* data) { cudaFree(data); }

Code AllocateHost(Device*, size_t bytes, void** data, Message* why) {
  const cudaError_t error = cudaHostAlloc(data, std::max<size_t>(bytes, 1), cudaHostAllocPortable);
  if (error != cudaErrorMemoryAllocation) return FromCuda(error, "cudaHostAlloc", why);
  cudaGetLastError();
  return Fail(Code::kResourceExhausted, why,
              "%zu bytes of host memory cannot be pinned for the GPU", bytes);
}

void FreeHost(Device*, void* data) { cudaFreeHost(data); }

Code NewStream(Device* device, Stream* stream, Message* why) {
  cudaStream_t created = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking);
  if (error != cudaSuccess) return FromCuda(error, "creating a stream", why);
  const std::lock_guard lock(device->mutex);
  device->streams.push_back(created);
  *stream = Stream{reinterpret_cast<uintptr_t>(created)};
  return Code::kOk;
}

Code NewEvent(Device* device, Event* event, Message* why) {
  cudaEvent_t created = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&created, cudaEventDisableTiming);
  if (error != cudaSuccess) return FromCuda(error, "creating an event", why);
  const std::lock_guard lock(device->mutex);
  device->events.push_back(created);
  *event = Event{reinterpret_cast<uintptr_t>(created)};
  return Code::kOk;
}

Code Record(Device* device, Stream stream, Event event, Message* why) {
  const auto recorded = reinterpret_cast<cudaEvent_t>(event);
  return FromCuda(cudaEventRecord(recorded, StreamOf(*device, stream)), "recording an event", why);
}

Code Wait(Device* device, Stream stream, Event event, Message* why) {
  const auto awaited = reinterpret_cast<cudaEvent_t>(event);
  return FromCuda(cudaStreamWaitEvent(StreamOf(*device, stream), awaited), "waiting for an event",
                  why);
}

Code Synchronize(Device* device, Stream stream, Message* why) {
  return FromCuda(cudaStreamSynchronize(StreamOf(*device, stream)), "waiting for the GPU", why);
}

Code Copy(Device* device, Stream stream, void* to, const void* from, size_t bytes, Message* why) {
  if (bytes == 0) return Code::kOk;
  return FromCuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, StreamOf(*device, stream)),
                  "cudaMemcpyAsync", why);
}

Code Zero(Device* device, Stream stream, void* data, size_t bytes, Message* why) {
  if (bytes == 0) return Code::kOk;
  return FromCuda(cudaMemsetAsync(data, 0, bytes, StreamOf(*device, stream)), "cudaMemsetAsync",
                  why);
}

Code RunRmsNorm(Device* device, Stream stream, const RmsNormArgs* args, Message* why) {
  if (args->x_dtype != DType::kF32 || args->y_dtype != DType::kF32) {
    return Fail(Code::kInvalidArgument, why, "RmsNorm: x_dtype and y_dtype must be f32");
  }
  return FromCuda(RmsNorm(*args, StreamOf(*device, stream)), "RmsNorm", why);
}

constexpr PluginTable kTable = {
    .abi_version = kPluginAbiVersion,
    .open = Open,
    .close = Close,
    .allocate = Allocate,
    .free = Free,
    .allocate_host = AllocateHost,
    .free_host = FreeHost,
    .new_stream = NewStream,
    .new_event = NewEvent,
    .record = Record,
    .wait = Wait,
    .synchronize = Synchronize,
    .copy = Copy,
    .zero = Zero,
    .RmsNorm = RunRmsNorm,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const PluginTable* infllm_cuda_plugin() {
  return &kTable;
}

}  // namespace infllm::kernels::cuda
