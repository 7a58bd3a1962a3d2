// A fuzz target is one file that includes this header and defines LLVMFuzzerTestOneInput. It is
// linked with fuzz_driver.cc, whose main() mutates seed files, or, configured with
// -DINFLLM_LIBFUZZER=ON under clang, with libFuzzer instead.
//
//   TARGET [--seconds=5] [--iterations=N] [--seed=1] [--max-len=BYTES] FILE_OR_DIR...
//
// Every seed file runs unchanged first, then mutants do until either limit is reached (0 is no
// limit; with both 0 only the seeds run, which replays a saved input). The sequence of mutants
// depends on --seed and the seeds alone. An input that crashes or hangs is kept as ./crash-TARGET.
#pragma once

#include <cstddef>
#include <cstdint>

// Returns 0. Must not keep state between calls, or a crash could not be replayed.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
