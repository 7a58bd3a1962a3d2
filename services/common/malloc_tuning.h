#pragma once

namespace infllm::services {

// Keeps freed big buffers in the process instead of giving them back to the kernel and faulting
// them in again: with glibc's defaults a 512 KiB message costs 4x as long. Call first in main().
// Does nothing where malloc is not glibc's.
void TuneMallocForMessages();

}  // namespace infllm::services
