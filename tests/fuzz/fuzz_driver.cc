#include "tests/fuzz/fuzz_driver.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

// Present only in sanitized builds, where errors end the process without a signal.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace infllm::testing {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;

struct Options {
  uint64_t seconds = 5;
  uint64_t iterations = 0;
  uint64_t seed = 1;
  uint64_t max_len = 0;  // 0: twice the longest seed, at least 4096
  std::vector<std::string> paths;
};

// An input that takes longer counts as a crash. Generous: sanitized builds on busy machines.
constexpr unsigned kHangSeconds = 30;

// What the crash handler writes; plain data, since a handler may touch nothing else.
const uint8_t* volatile g_input_data = nullptr;
volatile size_t g_input_size = 0;
char g_crash_path[512] = "crash-input";

void SaveInput() {
  if (g_input_data == nullptr) return;
  const int fd = ::open(g_crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) return;
  size_t done = 0;
  while (done < g_input_size) {
    const ssize_t n = ::write(fd, g_input_data + done, g_input_size - done);
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  ::close(fd);
  const char text[] = "fuzz: the input that failed is kept as ";
  ssize_t ignored = ::write(STDERR_FILENO, text, sizeof(text) - 1);
  ignored = ::write(STDERR_FILENO, g_crash_path, std::strlen(g_crash_path));
  ignored = ::write(STDERR_FILENO, "\n", 1);
  static_cast<void>(ignored);
  g_input_data = nullptr;  // a sanitizer's callback and SIGABRT may both come here
}

void OnSignal(int signal_number) {
  SaveInput();
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void InstallCrashHandlers(std::string_view target) {
  const std::string path = "crash-" + fs::path(target).filename().string();
  std::snprintf(g_crash_path, sizeof(g_crash_path), "%s", path.c_str());
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(&SaveInput);
  for (const int signal_number : {SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL}) {
    std::signal(signal_number, &OnSignal);
  }
  // AddressSanitizer's own SIGSEGV handler prints a stack and then calls the callback above.
  if (__sanitizer_set_death_callback == nullptr) std::signal(SIGSEGV, &OnSignal);
}

void RunOne(const Bytes& input) {
  // An exact copy on the heap: an over-read by one byte is then visible to AddressSanitizer.
  const Bytes exact(input.begin(), input.end());
  g_input_size = exact.size();
  g_input_data = exact.data();
  ::alarm(kHangSeconds);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  ::alarm(0);
  g_input_data = nullptr;
}

// Derives inputs from seeds. Several small edits are stacked, because a parser's deep states need
// most of a file intact.
class Mutator {
 public:
  Mutator(const std::vector<Bytes>& seeds, uint64_t seed, size_t max_len)
      : seeds_(seeds), max_len_(max_len), rng_(seed) {}

  Bytes Next() {
    Bytes input = seeds_[Below(seeds_.size())];
    for (size_t edits = 1 + Below(6); edits > 0; --edits) Edit(input);
    if (input.size() > max_len_) input.resize(max_len_);
    return input;
  }

 private:
  // Not std::uniform_int_distribution: its results differ between standard libraries.
  size_t Below(size_t bound) { return static_cast<size_t>(rng_() % bound); }
  uint8_t RandomByte() { return static_cast<uint8_t>(rng_()); }
  // Short ranges are the likely ones.
  size_t RangeLength(size_t available) {
    const size_t cap = Below(4) == 0 ? available : std::min<size_t>(available, 16);
    return 1 + Below(cap);
  }

  uint64_t InterestingInt() {
    static constexpr std::array<uint64_t, 24> kValues = {0,
                                                         1,
                                                         2,
                                                         7,
                                                         16,
                                                         32,
                                                         64,
                                                         100,
                                                         127,
                                                         128,
                                                         255,
                                                         256,
                                                         1000,
                                                         1024,
                                                         32767,
                                                         32768,
                                                         65535,
                                                         65536,
                                                         0x7fffffff,
                                                         0x80000000,
                                                         0xffffffff,
                                                         0x100000000,
                                                         0x7fffffffffffffff,
                                                         0xffffffffffffffff};
    const uint64_t value = kValues[Below(kValues.size())];
    return Below(4) == 0 ? ~value + 1 : value;
  }

  void Edit(Bytes& input) {
    if (input.empty()) {
      input.push_back(RandomByte());
      return;
    }
    const size_t at = Below(input.size());
    switch (Below(12)) {
      case 0:
        input[at] ^= static_cast<uint8_t>(1u << Below(8));
        break;
      case 1:
        input[at] = RandomByte();
        break;
      case 2:  // a one-byte length, or the low bits of a varint, slightly off
        input[at] = static_cast<uint8_t>(input[at] + Below(9) - 4);
        break;
      case 3:
        input.resize(at);
        break;
      case 4:
        input.erase(input.begin() + at, input.begin() + at + RangeLength(input.size() - at));
        break;
      case 5: {
        const size_t count = RangeLength(64);
        const uint8_t value = RandomByte();
        input.insert(input.begin() + at, count, value);
        break;
      }
      case 6: {
        const size_t count = RangeLength(input.size() - at);
        const Bytes range(input.begin() + at, input.begin() + at + count);
        const size_t to = Below(input.size());
        input.insert(input.begin() + to, range.begin(), range.end());
        break;
      }
      case 7:
        Splice(input, at);
        break;
      case 8:
        OverwriteFixedInt(input, at);
        break;
      case 9:
        OverwriteVarint(input, at);
        break;
      case 10:
        OverwriteDecimal(input, at);
        break;
      default:
        OverwriteRange(input, at);
        break;
    }
  }

  // A head of this input, a tail of another.
  void Splice(Bytes& input, size_t at) {
    const Bytes& other = seeds_[Below(seeds_.size())];
    if (other.empty()) return;
    const size_t from = Below(other.size());
    input.resize(at);
    input.insert(input.end(), other.begin() + from, other.end());
  }

  void OverwriteFixedInt(Bytes& input, size_t at) {
    const size_t width = size_t{1} << Below(4);
    const bool big_endian = Below(4) == 0;
    const uint64_t value = InterestingInt();
    for (size_t i = 0; i < width && at + i < input.size(); ++i) {
      const size_t byte = big_endian ? width - 1 - i : i;
      input[at + i] = static_cast<uint8_t>(value >> (8 * byte));
    }
  }

  // Protobuf lengths: replaces the bytes of the varint at `at`.
  void OverwriteVarint(Bytes& input, size_t at) {
    size_t end = at;
    while (end < input.size() && (input[end] & 0x80) != 0) ++end;
    end = std::min(end + 1, input.size());
    Bytes varint;
    uint64_t value = InterestingInt();
    for (; value >= 0x80; value >>= 7) varint.push_back(static_cast<uint8_t>(value | 0x80));
    varint.push_back(static_cast<uint8_t>(value));
    input.erase(input.begin() + at, input.begin() + end);
    input.insert(input.begin() + at, varint.begin(), varint.end());
  }

  // Text formats: replaces the next run of digits.
  void OverwriteDecimal(Bytes& input, size_t at) {
    const auto is_digit = [](uint8_t byte) { return byte >= '0' && byte <= '9'; };
    const auto first = std::find_if(input.begin() + at, input.end(), is_digit);
    const auto last = std::find_if_not(first, input.end(), is_digit);
    if (first == last) return;
    const uint64_t value = InterestingInt();
    const std::string digits =
        Below(2) == 0 ? std::to_string(value) : std::to_string(static_cast<int64_t>(value));
    const auto gap = input.erase(first, last);
    input.insert(gap, digits.begin(), digits.end());
  }

  // A range of another input (or of this one) over the bytes here; sizes stay as they are.
  void OverwriteRange(Bytes& input, size_t at) {
    const Bytes other = Below(2) == 0 ? input : seeds_[Below(seeds_.size())];
    if (other.empty()) return;
    const size_t from = Below(other.size());
    const size_t count = RangeLength(std::min(input.size() - at, other.size() - from));
    std::copy_n(other.begin() + from, count, input.begin() + at);
  }

  const std::vector<Bytes>& seeds_;
  const size_t max_len_;
  std::mt19937_64 rng_;
};

std::optional<Options> ParseArguments(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (!argument.starts_with("--")) {
      options.paths.emplace_back(argument);
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string_view name = argument.substr(0, equals);
    uint64_t ignored = 0;
    uint64_t* number = name == "--seconds"      ? &options.seconds
                       : name == "--iterations" ? &options.iterations
                       : name == "--seed"       ? &options.seed
                       : name == "--max-len"    ? &options.max_len
                                                : &ignored;
    const std::string_view value =
        equals == std::string_view::npos ? std::string_view() : argument.substr(equals + 1);
    const auto [end, error] = std::from_chars(value.begin(), value.end(), *number);
    if (number == &ignored || error != std::errc() || end != value.end()) {
      std::fprintf(stderr,
                   "%s: cannot use %s\nusage: %s [--seconds=5] [--iterations=N] [--seed=1] "
                   "[--max-len=BYTES] FILE_OR_DIR...\n",
                   argv[0], argv[i], argv[0]);
      return std::nullopt;
    }
  }
  return options;
}

std::vector<Bytes> ReadSeeds(const std::vector<std::string>& paths) {
  std::vector<fs::path> files;
  for (const std::string& path : paths) {
    if (!fs::is_directory(path)) {
      files.emplace_back(path);
      continue;
    }
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());  // the order of a directory is not deterministic
  std::vector<Bytes> seeds;
  for (const fs::path& file : files) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) {
      std::fprintf(stderr, "fuzz: cannot read %s\n", file.c_str());
      return {};
    }
    seeds.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  }
  if (seeds.empty()) seeds.emplace_back();  // mutants then grow from nothing
  return seeds;
}

int Main(int argc, char** argv) {
  const std::optional<Options> options = ParseArguments(argc, argv);
  if (!options.has_value()) return 2;
  const std::vector<Bytes> seeds = ReadSeeds(options->paths);
  if (seeds.empty()) return 2;
  InstallCrashHandlers(argv[0]);

  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  Clock::duration slowest{};
  const auto timed_run = [&slowest](const Bytes& input) {
    const Clock::time_point begin = Clock::now();
    RunOne(input);
    slowest = std::max(slowest, Clock::now() - begin);
  };
  size_t longest = 0;
  for (const Bytes& seed : seeds) {
    timed_run(seed);
    longest = std::max(longest, seed.size());
  }
  const size_t max_len =
      options->max_len != 0 ? options->max_len : std::max<size_t>(2 * longest, 4096);
  Mutator mutator(seeds, options->seed, max_len);
  const auto done = [&](uint64_t iteration) {
    if (options->iterations == 0 && options->seconds == 0) return true;
    if (options->iterations != 0 && iteration >= options->iterations) return true;
    return options->seconds != 0 && Clock::now() - start >= std::chrono::seconds(options->seconds);
  };
  uint64_t iterations = 0;
  for (; !done(iterations); ++iterations) timed_run(mutator.Next());

  const auto milliseconds = [](Clock::duration duration) {
    return std::chrono::duration<double, std::milli>(duration).count();
  };
  std::printf("fuzz: %zu seeds, %llu mutants, seed %llu, %.1f s, slowest input %.1f ms\n",
              seeds.size(), static_cast<unsigned long long>(iterations),
              static_cast<unsigned long long>(options->seed),
              milliseconds(Clock::now() - start) / 1000, milliseconds(slowest));
  return 0;
}

}  // namespace
}  // namespace infllm::testing

int main(int argc, char** argv) { return infllm::testing::Main(argc, argv); }
