// The shipped test model with parameters of the method so small that short texts have many blocks.
#pragma once

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "services/runtime/runtime.h"
#include "worker/attention/option_table.h"

namespace infllm::services {

inline RuntimeFlags SmallFlags(const std::string& policy = "infllm") {
  RuntimeFlags flags;
  flags.model = INFLLM_TEST_DATA "/stories260K";
  flags.dtype = "f32";
  flags.device = "cpu";
  flags.threads = 1;
  flags.ram_bytes = "64MiB";
  EXPECT_TRUE(SetOption(*worker::FindOption("policy"), policy, flags.attention).ok());
  flags.attention.n_init = 8;
  flags.attention.n_local = 64;
  flags.attention.block_tokens = 16;
  flags.attention.top_k = 4;
  flags.attention.repr_top_k = 2;
  flags.attention.exec_block = 32;
  flags.attention.cache_blocks = 6;
  return flags;
}

// Loaded once for all tests of a program.
inline worker::ModelRuntime& SmallModel() {
  static const std::unique_ptr<worker::ModelRuntime> model = [] {
    auto loaded = LoadModel(SmallFlags(), {});
    if (!loaded.ok()) ADD_FAILURE() << loaded.status().ToString();
    return std::move(loaded).value();
  }();
  return *model;
}

}  // namespace infllm::services
