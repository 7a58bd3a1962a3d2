// The operations of a decoder and of its block memory, on some device. The seam between what the
// model computes and how: `reference` (plain loops in double, the oracle), `cpu` (SIMD), `cuda`.
//
// Conventions of every operation (kernels/ops/*.h say what each computes):
//  * Arguments are plain data, as a plugin's C table takes them. Tensors are row-major; a pointer's
//    comment gives its shape. Pointers are to device memory unless said otherwise.
//  * Operations are enqueued on a stream (kernels/device.h).
//  * Each tensor has a dtype. A backend refuses those that it does not compute; kF32 activations
//    are always possible. An operation may round inside to the dtype of its weights.
//  * Nothing to do (zero rows, no items) is valid.
//  * INVALID_ARGUMENT names what is unsupported or inconsistent (value and limit);
//    UNIMPLEMENTED an operation that the backend does not have; INTERNAL is a device failure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/dtype.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace infllm::kernels {

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  // True if device memory is host memory and operations are done when their call returns: then
  // Synchronize costs nothing.
  virtual bool host_accessible() const = 0;
  // Weight dtypes this device computes at full speed; kF32 is always possible.
  virtual DType preferred_dtype() const = 0;

  // RESOURCE_EXHAUSTED: the device has no `bytes` left. Contents are undefined.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) = 0;
  // Shared memory: of the host, and the device reads and writes it at the same address.
  virtual absl::StatusOr<Buffer> AllocateHost(size_t bytes) = 0;

  // The stream that every backend has.
  static constexpr Stream kMainStream = Stream{0};
  virtual absl::StatusOr<Stream> NewStream() = 0;  // lives as long as the backend
  virtual absl::StatusOr<Event> NewEvent() = 0;    // likewise
  virtual absl::Status Record(Stream stream, Event event) = 0;
  // What is enqueued on `stream` from now on begins after the last Record of `event`.
  virtual absl::Status Wait(Stream stream, Event event) = 0;
  // Waits until all of a stream is done. The only call that waits.
  virtual absl::Status Synchronize(Stream stream) = 0;

  // Enqueues a copy within or between host and device memory. Host memory that is not from
  // AllocateHost may make the copy slower, not wrong.
  virtual absl::Status Copy(Stream stream, void* to, const void* from, size_t bytes) = 0;
  virtual absl::Status Zero(Stream stream, void* device, size_t bytes) = 0;

  // Converts rows of host memory for Linear in `compute` dtype (kF32 or kBF16). Several sources of
  // equal in_features are stacked along out_features, so that e.g. Q, K and V are one product.
  // Waits; the sources may be freed afterwards.
  virtual absl::StatusOr<Weight> PackWeight(std::span<const WeightSource> sources,
                                            int64_t in_features, DType compute) = 0;

// Each is UNIMPLEMENTED unless the backend has it.
#define INFLLM_DECLARE_OP(Name) virtual absl::Status Name(Stream stream, const Name##Args& args);
  INFLLM_KERNEL_OPS(INFLLM_DECLARE_OP)
#undef INFLLM_DECLARE_OP
};

// The backend of a device by its name: cpu, cuda, or auto for what this machine computes best with.
//   UNAVAILABLE       the device is not here; the message says why
//   UNIMPLEMENTED     the backend cannot run a model
//   INVALID_ARGUMENT  no such name
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(std::string_view device, ThreadPool& pool);

// Plain double-precision loops, one thread. The oracle of the contract tests; never optimised.
std::unique_ptr<Backend> NewReferenceBackend();

// SIMD for `isa`, which must be one of SupportedIsas(); the shorter form takes the best of them.
// `pool` is shared, not owned.
std::unique_ptr<Backend> NewCpuBackend(ThreadPool& pool, Isa isa);
std::unique_ptr<Backend> NewCpuBackend(ThreadPool& pool);

}  // namespace infllm::kernels
