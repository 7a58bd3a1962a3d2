#include "services/common/xz.h"

#include <lzma.h>

#include <algorithm>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/common/byte_size.h"

namespace infllm::services {
namespace {

constexpr std::string_view kMagic(
    "\xFD"
    "7zXZ\0",
    6);
constexpr uint64_t kMemoryLimit = uint64_t{256} << 20;  // the strongest preset needs 65 MiB
constexpr size_t kStepBytes = size_t{1} << 20;

}  // namespace

bool IsXz(std::string_view bytes) { return bytes.starts_with(kMagic); }

absl::StatusOr<std::string> UnpackXz(std::string_view packed, int64_t limit) {
  lzma_stream stream = LZMA_STREAM_INIT;
  const std::unique_ptr<lzma_stream, void (*)(lzma_stream*)> end(&stream, &lzma_end);
  if (lzma_stream_decoder(&stream, kMemoryLimit, LZMA_CONCATENATED) != LZMA_OK) {
    return absl::ResourceExhaustedError("no memory to unpack xz");
  }
  stream.next_in = reinterpret_cast<const uint8_t*>(packed.data());
  stream.avail_in = packed.size();
  std::string text;
  size_t filled = 0;
  while (true) {
    text.resize(std::min(filled + kStepBytes, static_cast<size_t>(limit) + 1));
    stream.next_out = reinterpret_cast<uint8_t*>(text.data()) + filled;
    stream.avail_out = text.size() - filled;
    const lzma_ret result = lzma_code(&stream, LZMA_FINISH);
    filled = text.size() - stream.avail_out;
    if (filled > static_cast<size_t>(limit)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("unpacks to more than ", FormatByteSize(limit)));
    }
    if (result == LZMA_STREAM_END) break;
    if (result == LZMA_OK) continue;
    if (result == LZMA_MEM_ERROR || result == LZMA_MEMLIMIT_ERROR) {
      return absl::ResourceExhaustedError(
          absl::StrCat("unpacking it needs more memory than ", FormatByteSize(kMemoryLimit)));
    }
    return absl::DataLossError(result == LZMA_BUF_ERROR ? "the xz archive is cut short"
                                                        : "the xz archive is damaged");
  }
  text.resize(filled);
  return text;
}

}  // namespace infllm::services
