// oneDNN's matrix product, the yardstick of ours where it is installed.
#pragma once

#ifdef INFLLM_HAVE_ONEDNN
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>

#include "kernels/core/dtype.h"

namespace infllm::bench {

// x [rows, in] times a packed weight to f32 [rows, out], all of them zero. x is of the weight's
// dtype already, where our Linear takes floats. Not thread-safe.
class OneDnn {
 public:
  OneDnn(int64_t rows, int64_t in, int64_t out, kernels::DType dtype, int threads)
      : stream_(engine_) {
    using dnnl::memory;
    omp_set_num_threads(threads);
    const auto type =
        dtype == kernels::DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
    const memory::desc x({rows, in}, type, memory::format_tag::ab);
    const memory::desc w({in, out}, type, memory::format_tag::any);
    const memory::desc y({rows, out}, memory::data_type::f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc plan(dnnl::matmul::desc(x, w, y), engine_);
    matmul_ = dnnl::matmul(plan);
    args_ = {{DNNL_ARG_SRC, Zeroed(x)},
             {DNNL_ARG_WEIGHTS, Zeroed(plan.weights_desc())},
             {DNNL_ARG_DST, Zeroed(y)}};
  }
  void operator()() {
    matmul_.execute(stream_, args_);
    stream_.wait();
  }

 private:
  dnnl::memory Zeroed(const dnnl::memory::desc& desc) {
    dnnl::memory memory(desc, engine_);
    std::memset(memory.get_data_handle(), 0, desc.get_size());
    return memory;
  }
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> args_;
};

}  // namespace infllm::bench
#endif
