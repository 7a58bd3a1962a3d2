// Keys and values in pages, and one softmax over near and far ones for many sequences at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace infllm::kernels {

// The keys and values of `page_tokens` consecutive tokens in one layer are a *record*,
//   [kv_heads][K|V][page_tokens][head_dim],
// what the window, the memory store and the wire hold. Keys of a record are not rotated where they
// may become far ones; then a window page has its rotated keys behind the record,
//   [kv_heads][page_tokens][head_dim].
struct PageShape {
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t page_tokens = 0;
  DType dtype = DType::kF32;  // kF32 or kBF16
  // Whether rotated keys stand behind the record; otherwise the record's keys are rotated.
  bool rotated_behind = false;

  constexpr int64_t head_elements() const { return page_tokens * head_dim; }
  constexpr int64_t record_bytes() const {
    return 2 * kv_heads * head_elements() * static_cast<int64_t>(SizeOf(dtype));
  }
  constexpr int64_t page_bytes() const {
    return rotated_behind ? record_bytes() / 2 * 3 : record_bytes();
  }
  // Of token `slot` in KV head `head`, as an element of the page.
  constexpr int64_t key(int64_t head, int64_t slot) const {
    return 2 * head * head_elements() + slot * head_dim;
  }
  constexpr int64_t value(int64_t head, int64_t slot) const {
    return (2 * head + 1) * head_elements() + slot * head_dim;
  }
  constexpr int64_t rotated_key(int64_t head, int64_t slot) const {
    return rotated_behind ? (2 * kv_heads + head) * head_elements() + slot * head_dim
                          : key(head, slot);
  }
};

// An entry of a page table: the token slots [first, first + tokens) of a page.
struct PageEntry {
  const std::byte* page = nullptr;
  int64_t position = 0;  // in the sequence, of slot 0
  int32_t first = 0;
  int32_t tokens = 0;
};

// Splits stacked projections, rotates queries and keys, and writes keys and values into pages.
// Rotary embedding, half-split (NeoX) form: for i < head_dim/2, with the row's cosines and sines,
//   y[i] = x[i] cos[i] - x[i + D/2] sin[i];  y[i + D/2] = x[i + D/2] cos[i] + x[i] sin[i]
// Where a page keeps both forms of a key, the one that is rotated is the one that is kept, rounded
// to the page's dtype: so a page can be made again, bit for bit, from its record.
struct RotateAndStoreArgs {
  const void* qkv = nullptr;      // [rows, (q_heads + 2 kv_heads) * head_dim]: Q, then K, then V
  const float* angles = nullptr;  // [rows, head_dim]: D/2 cosines, then D/2 sines, of each position
  const float* far_angle = nullptr;  // [head_dim], or null: no q_far
  void* q_near = nullptr;            // [rows, q_heads, head_dim]: rotated by the row's own angle
  void* q_far = nullptr;             // [rows, q_heads, head_dim]: rotated by far_angle
  // [rows], shared memory: the page of each row, plus layer_offset bytes, and the token slot in it.
  std::byte* const* pages = nullptr;
  const int32_t* slots = nullptr;
  int64_t layer_offset = 0;
  int64_t rows = 0;
  int64_t q_heads = 0;
  PageShape page;
  DType activation_dtype = DType::kF32;  // of qkv, q_near, q_far
};

// The queries of one sequence that attend together: an exec block.
// Query row t is at position p = first_position + t. A near key at position j takes part iff
// 0 <= p - j < window, rotated, against q_near. A far key takes part iff p - j >= window, against
// q_far. Blocks take part in full, un-rotated, against q_far, their logits raised by block_bias.
// A row's result depends on its own span alone, bit for bit.
struct AttentionSpan {
  int64_t first_row = 0;  // of q and out
  int64_t rows = 0;
  int64_t first_position = 0;
  // Page tables, shared memory. Near and far entries point to pages of layer 0:
  // layer_offset is added. Entries of blocks are used as they are: records.
  const PageEntry* near = nullptr;
  int64_t near_pages = 0;
  const PageEntry* far = nullptr;
  int64_t far_pages = 0;
  const PageEntry* blocks = nullptr;
  int64_t block_count = 0;
  // Optional: the attention probability that each token of the near pages draws, summed over the
  // span's queries, is added here: one [q_heads, page_tokens] for each entry, at layer 0;
  // mass_layer_offset bytes are added. Null entries are left out; no two spans may have the same
  // one.
  float* const* near_mass = nullptr;
  // Optional [block_count]: the probability drawn by each block, summed over heads, queries and
  // tokens, is written here.
  float* block_mass = nullptr;
};
// One softmax over near and far keys for every span (InfLLM paper sec. 3.1; the baselines
// likewise).
//   out[t, h] = sum_j softmax_j(scale * q . k_j + bias_j) v_j;   query head h reads KV head
//   h/(H/Hkv)
// A row that sees no key is zero.
struct AttentionArgs {
  const void* q_near = nullptr;          // [all rows, q_heads, head_dim]
  const void* q_far = nullptr;           // likewise; may be null if no span has far pages or blocks
  void* out = nullptr;                   // [all rows, q_heads, head_dim]
  const AttentionSpan* spans = nullptr;  // shared memory
  int64_t span_count = 0;
  int64_t layer_offset = 0;       // bytes
  int64_t mass_layer_offset = 0;  // bytes
  int64_t q_heads = 0;
  PageShape page;
  int64_t window = 0;
  float scale = 1;       // > 0
  float block_bias = 0;  // nats
  // Far pages are met by their rotated keys (streaming-llm), not by those of their records.
  bool far_rotated = false;
  // The published code's double counting: every far key takes part, whatever its distance.
  bool far_unmasked = false;
  DType q_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
};

}  // namespace infllm::kernels
