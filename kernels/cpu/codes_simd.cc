#include "kernels/cpu/codes_simd.h"

#include "kernels/cpu/simd.h"
#include "kernels/ops/select.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

constexpr int kLevels = 15;        // of a code, beside 0
constexpr int kQueryLevels = 255;  // of a query, likewise
constexpr int kTile = 16;          // blocks whose codes lie together
constexpr int kParts = kTile / kLanes;
constexpr int kLineChannels = 8;
constexpr int kLineBytes = kTile * kLineChannels / 2;
constexpr int kAhead = 32 * kLineBytes;  // codes that are asked for before they are needed
// Steps and units are at least this, so that their inverses are finite; products up to kLargest
// are far from what overflows.
constexpr float kSmallest = 1e-37f;
constexpr float kLargest = 1e37f;

struct Codes {
  explicit Codes(std::byte* codes, int64_t width)
      : origin(reinterpret_cast<float*>(codes)),
        step(origin + CodedWidth(width)),
        lines(codes + 2 * sizeof(float) * static_cast<size_t>(CodedWidth(width))) {}
  // The codes of block b in its tile's first line.
  std::byte* of(int64_t b, int64_t coded) const {
    return lines + b / kTile * kLineBytes * (coded / kLineChannels) + b % kTile * 4;
  }
  float* origin;
  float* step;
  std::byte* lines;
};

int LanesLeft(int64_t n, int64_t i) { return static_cast<int>(n - i < kLanes ? n - i : kLanes); }
VecF Abs(VecF v) { return (VecF)((VecU)v & 0x7fffffffu); }
// NaN becomes `low`.
VecF Clamp(VecF v, float low, float high) {
  v = v > Set(low) ? v : Set(low);
  return v < Set(high) ? v : Set(high);
}

// The first n lanes, 0..255 each.
void StoreBytes(uint8_t* to, VecI v, int n) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  const Bytes bytes = __builtin_convertvector(v, Bytes);
  if (n == kLanes) {
    std::memcpy(to, &bytes, sizeof(bytes));
  } else {
    std::memcpy(to, &bytes, static_cast<size_t>(n));
  }
}
template <typename T>
VecF LoadSome(const T* p, int n) {
  return n == kLanes ? Load(p) : LoadPartial(p, n);
}

// ---- encoding ----

template <typename T>
void EncodeRows(const T* rows, int64_t width, uint8_t* scratch, std::byte* to) {
  const Codes codes(to, width);
  const int64_t coded = CodedWidth(width);
  std::memset(to, 0, RunCodeBytes(width));
  // Of the first half of the elements, the least keys, the negative is coded.
  const auto sign = [&](int64_t c) {
    return (VecF)((VecI)(LaneNumbers() + static_cast<int>(c) < static_cast<int>(width / 2)) &
                  static_cast<int32_t>(0x80000000u));
  };
  const auto load = [&](int64_t b, int64_t c, VecF minus) {
    return (VecF)((VecU)LoadSome(rows + b * width + c, LanesLeft(width, c)) ^ (VecU)minus);
  };
  for (int64_t c = 0; c < width; c += kLanes) {
    const VecF minus = sign(c);
    VecF low = load(0, c, minus), high = low, nothing = low * Set(0);
    for (int64_t b = 1; b < kRunBlocks; ++b) {
      const VecF y = load(b, c, minus);
      low = Min(y, low);
      high = Max(y, high);
      nothing += y * Set(0);  // unless y is not finite
    }
    // A little more than needed, so that a rounded level is not beyond the last.
    const VecF step = Max((high - low) * Set(1.00001f / kLevels), Set(kSmallest));
    StorePartial(codes.origin + c, low + nothing, LanesLeft(width, c));
    StorePartial(codes.step + c, step, LanesLeft(width, c));
  }
  for (int64_t b = 0; b < kRunBlocks; ++b) {
    for (int64_t c = 0; c < width; c += kLanes) {
      const int here = LanesLeft(width, c);
      const VecF inverse = Set(1) / Max(LoadSome(codes.step + c, here), Set(kSmallest));
      const VecF y = load(b, c, sign(c)) - LoadSome(codes.origin + c, here);
      const VecF level = Clamp(y * inverse, 0, kLevels);
      const VecI whole = __builtin_convertvector(level, VecI);
      const VecI n = whole - (__builtin_convertvector(whole, VecF) < level);  // upwards
      StoreBytes(scratch + c, n, here);
    }
    std::memset(scratch + width, 0, static_cast<size_t>(coded - width));
    std::byte* line = codes.of(b, coded);
    for (int64_t c = 0; c < coded; c += kLineChannels, line += kLineBytes) {
      uint32_t low, high;
      std::memcpy(&low, scratch + c, sizeof(low));
      std::memcpy(&high, scratch + c + 4, sizeof(high));
      low |= high << 4;
      std::memcpy(line, &low, sizeof(low));
    }
  }
}

void Encode(const void* rows, bool bf16, int64_t width, uint8_t* scratch, std::byte* codes) {
  if (bf16) {
    EncodeRows(static_cast<const uint16_t*>(rows), width, scratch, codes);
  } else {
    EncodeRows(static_cast<const float*>(rows), width, scratch, codes);
  }
}

// ---- bounds ----

// The bound of a block is base + unit (m . n).
struct Line {
  float base = 0;
  float unit = 0;
};

// Levels of a query, [CodedWidth(width)], for a run.
Line MakeLevels(const float* query, int64_t width, const Codes& codes, uint8_t* levels) {
  VecF origin_sum = {}, size_sum = {}, largest = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    const int here = LanesLeft(width, c);
    const VecF w = Abs(LoadSome(query + c, here));
    const VecF origin = LoadSome(codes.origin + c, here);
    const VecF step = LoadSome(codes.step + c, here);
    origin_sum += w * origin;
    size_sum += w * (Abs(origin) + step * Set(kLevels));
    largest = Max(w * step, largest);
  }
  const float most = ReduceMax(largest) / kQueryLevels;
  const float unit = most > kSmallest ? most : kSmallest;
  const VecF inverse = Set(1 / unit);
  VecF rest_sum = {}, level_sum = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    const int here = LanesLeft(width, c);
    const VecF part = Abs(LoadSome(query + c, here)) * LoadSome(codes.step + c, here);
    const VecI m =
        __builtin_convertvector(Clamp(part * inverse + Set(0.5f), 0, kQueryLevels), VecI);
    const VecF level = __builtin_convertvector(m, VecF);
    rest_sum += Max(part - level * Set(unit), VecF{});
    level_sum += level;
    StoreBytes(levels + c, m, here);
  }
  std::memset(levels + width, 0, static_cast<size_t>(CodedWidth(width) - width));
  // All sums below are at most `all`, and so are those of a product's terms.
  const float rest = kLevels * ReduceAdd(rest_sum);
  const float size = ReduceAdd(size_sum);
  const float all = size + rest + kLevels * unit * ReduceAdd(level_sum);
  if (!(all < kLargest)) return {__builtin_inff(), 0};
  // A sum of n terms is off by at most n 2^-24 of what its terms are in size, and so is this one; a
  // term is off by a few 2^-24, one that underflows by what is smaller than all steps.
  const float terms = static_cast<float>(width);
  const float rounding = (2 * terms + 64) * 0x1p-24f * size + 16 * 0x1p-24f * all;
  return {ReduceAdd(origin_sum) + rest + rounding + terms * 256 * kSmallest, unit};
}

// ArrangeLevels puts levels in the order in which DotTile meets them: from the end of
// [kLevelBytes * coded] into all of it. DotTile: lane b of the sums is m . n of block b of the tile
// whose codes begin at `lines`.
#if defined(__AVX512VNNI__)

constexpr int64_t kLevelBytes = 1;  // of a channel

void ArrangeLevels(uint8_t*, int64_t) {}

template <int kCount>
void DotTile(const std::byte* lines, const uint8_t* const* levels, int64_t coded,
             VecI (&sums)[kCount][kParts]) {
  const __m512i half = _mm512_set1_epi8(kLevels);
  __m512i low[kCount] = {}, high[kCount] = {};
  for (int64_t c = 0; c < coded; c += kLineChannels, lines += kLineBytes) {
    __builtin_prefetch(lines + kAhead);
    const __m512i both = _mm512_loadu_si512(lines);
    const __m512i n_low = _mm512_and_si512(both, half);
    const __m512i n_high = _mm512_and_si512(_mm512_maskz_srli_epi16(~0u, both, 4), half);
#pragma GCC unroll 4
    for (int q = 0; q < kCount; ++q) {
      int32_t m[2];
      std::memcpy(m, levels[q] + c, sizeof(m));
      low[q] = _mm512_dpbusd_epi32(low[q], _mm512_set1_epi32(m[0]), n_low);
      high[q] = _mm512_dpbusd_epi32(high[q], _mm512_set1_epi32(m[1]), n_high);
    }
  }
  for (int q = 0; q < kCount; ++q) sums[q][0] = (VecI)_mm512_add_epi32(low[q], high[q]);
}

#else

// Two halves of a word are multiplied at once: shifted by 4 i, the low four bits of each are codes
// of channels kFirst[i] and kFirst[i] + 2 of the line.
typedef uint16_t Halves __attribute__((vector_size(kLanes * 4)));
constexpr int64_t kLevelBytes = 2;
constexpr int kFirst[4] = {0, 4, 1, 5};
// Lines whose products fit into 16 bits together.
constexpr int kLinesAtOnce = 0xffff / (4 * kLevels * kQueryLevels);

void ArrangeLevels(uint8_t* levels, int64_t coded) {
  for (int64_t c = 0; c < coded; c += kLineChannels) {
    uint8_t of_line[kLineChannels];
    std::memcpy(of_line, levels + coded + c, sizeof(of_line));
    uint16_t pairs[kLineChannels];
    for (int i = 0; i < 4; ++i) {
      pairs[2 * i] = of_line[kFirst[i]];
      pairs[2 * i + 1] = of_line[kFirst[i] + 2];
    }
    std::memcpy(levels + 2 * c, pairs, sizeof(pairs));
  }
}

template <int kCount>
void DotTile(const std::byte* lines, const uint8_t* const* levels, int64_t coded,
             VecI (&sums)[kCount][kParts]) {
  VecU all[kCount][kParts] = {};
  for (int64_t c = 0; c < coded;) {
    const int64_t end = c + kLinesAtOnce * kLineChannels;
    Halves some[kCount][kParts] = {};
    for (; c < end && c < coded; c += kLineChannels, lines += kLineBytes) {
      __builtin_prefetch(lines + kAhead);
      VecU words[kParts];
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        std::memcpy(&words[p], lines + p * sizeof(VecU), sizeof(VecU));
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
        for (int q = 0; q < kCount; ++q) {
          uint32_t m;
          std::memcpy(&m, levels[q] + 2 * c + 4 * i, sizeof(m));
          const auto level = (Halves)(m - VecU{});
#pragma GCC unroll 4
          for (int p = 0; p < kParts; ++p) {
            some[q][p] += (Halves)((words[p] >> 4 * i) & 0x000f000fu) * level;
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kCount; ++q) {
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        all[q][p] += ((VecU)some[q][p] & 0xffffu) + ((VecU)some[q][p] >> 16);
      }
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < kCount; ++q) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) sums[q][p] = (VecI)all[q][p];
  }
}

#endif

template <int kCount>
void BoundRun(const BoundedQuery* queries, int64_t width, const std::byte* run, uint8_t* scratch) {
  const Codes codes(const_cast<std::byte*>(run), width);
  const int64_t coded = CodedWidth(width);
  const uint8_t* levels[kCount];
  Line line[kCount];
  for (int q = 0; q < kCount; ++q) {
    uint8_t* const to = scratch + q * kLevelBytes * coded;
    line[q] = MakeLevels(queries[q].query, width, codes, to + (kLevelBytes - 1) * coded);
    ArrangeLevels(to, coded);
    levels[q] = to;
  }
  for (int64_t b = 0; b < kRunBlocks; b += kTile) {
    VecI sums[kCount][kParts];
    DotTile<kCount>(codes.of(b, coded), levels, coded, sums);
    for (int q = 0; q < kCount; ++q) {
      for (int p = 0; p < kParts; ++p) {
        const VecF dots = __builtin_convertvector(sums[q][p], VecF);
        Store(queries[q].out + b + p * kLanes, Set(line[q].base) + Set(line[q].unit) * dots);
      }
    }
  }
}

void Bound(const BoundedQuery* queries, int64_t count, int64_t width, const std::byte* codes,
           uint8_t* scratch) {
  if constexpr (kLanes >= 8) {  // else their sums do not fit into the registers
    for (; count > 2; count -= 4, queries += 4) {
      if (count == 3) return BoundRun<3>(queries, width, codes, scratch);
      BoundRun<4>(queries, width, codes, scratch);
    }
  }
  for (; count > 1; count -= 2, queries += 2) BoundRun<2>(queries, width, codes, scratch);
  if (count == 1) BoundRun<1>(queries, width, codes, scratch);
}

// Bit i tells whether lane i is not below.
uint32_t NotBelow(VecF values, float least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)values, (__m512)Set(least), _CMP_NLT_UQ);
#elif defined(__AVX2__)
  const __m256 lanes = _mm256_cmp_ps((__m256)values, (__m256)Set(least), _CMP_NLT_UQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(lanes));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(!(values[i] < least)) << i;
  return bits;
#endif
}

int64_t FindNotBelow(const float* values, int64_t n, float least, uint32_t* out) {
  int64_t found = 0;
  for (int64_t begin = 0; begin < n; begin += kLanes) {
    const int here = LanesLeft(n, begin);
    uint32_t bits = NotBelow(LoadPartial(values + begin, here), least) & ((1u << here) - 1);
    for (; bits != 0; bits &= bits - 1) {
      out[found++] = static_cast<uint32_t>(begin) + static_cast<uint32_t>(__builtin_ctz(bits));
    }
  }
  return found;
}

}  // namespace

const CodeKernels kCodeKernels = {Encode, Bound, FindNotBelow};

}  // namespace infllm::kernels::INFLLM_ISA
