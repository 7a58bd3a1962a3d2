#include "services/common/malloc_tuning.h"

#include <cstdlib>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace infllm::services {

void TuneMallocForMessages() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most glibc accepts: larger ones are mapped each time
  mallopt(M_TRIM_THRESHOLD, 1 << 30);   // free memory kept at the top of the heap
  mallopt(M_TOP_PAD, 64 << 20);         // grow in steps that are worth a system call
#endif
}

}  // namespace infllm::services
