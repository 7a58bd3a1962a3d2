// The flags that every command which runs a model shares.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/core/dtype.h"
#include "services/memstore/credentials.h"
#include "worker/attention/attention_options.h"

namespace CLI {
class App;
}

namespace infllm::services {

struct RuntimeFlags {
  std::string model;            // a Hugging Face directory
  std::string device = "auto";  // auto, cpu, cuda
  std::string dtype = "auto";   // auto, f32, bf16
  int threads = 0;              // 0: ThreadPool::DefaultThreads()
  std::string memstore;         // empty: in process
  ClientSecurity security;      // of the connection to it
  std::string ram_bytes = "4GiB";
  std::string data_dir;
  std::string kv_bytes = "auto";  // bytes, or auto
  int64_t step_tokens = 512;
  std::string preset = "auto";  // of presets.h; fills in the flags of the method that are not given
  worker::AttentionOptions attention;  // the flags of the method
  bool json = false;
};

// Those of a connection to a memory store daemon. `security` must outlive `command`.
void AddSecurityFlags(CLI::App& command, ClientSecurity& security);

// Binds the flags to `command`. `flags` must outlive it. The preset is applied when the command
// line has been parsed.
void AddRuntimeFlags(CLI::App& command, RuntimeFlags& flags);

}  // namespace infllm::services
