// libinfllm_cuda.so: the entry points of plugin_abi.h on the CUDA runtime, which is linked in
// statically and finds the driver by itself. So this loads, and says why it cannot be used, on a
// machine without a driver or any CUDA library.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <new>

#include "kernels/cuda/plugin_abi.h"
#include "kernels/cuda/rms_norm.h"

namespace infllm::kernels::cuda {

struct Device {
  cudaStream_t stream = nullptr;
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() {
    if (stream != nullptr) cudaStreamDestroy(stream);
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
          Unavailable(cudaStreamCreateWithFlags(&opened->stream, cudaStreamNonBlocking),
                      "creating a stream on device 0", why);
      code != Code::kOk) {
    return code;
  }
  *device = opened.release();
  return Code::kOk;
}

void Close(Device* device) { delete device; }

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

Code CopyAndWait(Device* device, void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                 const char* what, Message* why) {
  if (bytes == 0) return Code::kOk;
  cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, device->stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(device->stream);
  return FromCuda(error, what, why);
}

Code Upload(Device* device, void* data, const void* host, size_t bytes, Message* why) {
  return CopyAndWait(device, data, host, bytes, cudaMemcpyHostToDevice, "copying to the GPU", why);
}

Code Download(Device* device, void* host, const void* data, size_t bytes, Message* why) {
  return CopyAndWait(device, host, data, bytes, cudaMemcpyDeviceToHost, "copying from the GPU",
                     why);
}

Code Zero(Device* device, void* data, size_t bytes, Message* why) {
  if (bytes == 0) return Code::kOk;
  return FromCuda(cudaMemsetAsync(data, 0, bytes, device->stream), "cudaMemsetAsync", why);
}

Code Synchronize(Device* device, Message* why) {
  return FromCuda(cudaStreamSynchronize(device->stream), "waiting for the GPU", why);
}

Code RunRmsNorm(Device* device, const RmsNormParams* params, Message* why) {
  return FromCuda(RmsNorm(*params, device->stream), "RmsNorm", why);
}

constexpr PluginTable kTable = {
    .abi_version = kPluginAbiVersion,
    .open = Open,
    .close = Close,
    .allocate = Allocate,
    .free = Free,
    .upload = Upload,
    .download = Download,
    .zero = Zero,
    .synchronize = Synchronize,
    .rms_norm = RunRmsNorm,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const PluginTable* infllm_cuda_plugin() {
  return &kTable;
}

}  // namespace infllm::kernels::cuda
