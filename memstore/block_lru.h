#pragma once

#include <cstdint>

namespace infllm::memstore {

// Base of what a LruList links. An object is in at most one list.
class LruNode {
  template <typename T>
  friend class LruList;
  LruNode* next_ = nullptr;  // towards less recently used
  LruNode* previous_ = nullptr;
};

// Links of T, most recently used first; T derives from LruNode and has lru_bytes(). Owns nothing.
// Not thread-safe.
template <typename T>
class LruList {
 public:
  LruList() { ends_.next_ = ends_.previous_ = &ends_; }
  LruList(const LruList&) = delete;
  LruList& operator=(const LruList&) = delete;

  bool empty() const { return ends_.next_ == &ends_; }
  int64_t bytes() const { return bytes_; }
  // The least recently used, or null.
  T* oldest() { return empty() ? nullptr : static_cast<T*>(ends_.previous_); }

  void PushNewest(T* node) { Link(node, &ends_); }
  void PushOldest(T* node) { Link(node, ends_.previous_); }
  void Remove(T* item) {
    LruNode* node = item;
    node->previous_->next_ = node->next_;
    node->next_->previous_ = node->previous_;
    node->next_ = node->previous_ = nullptr;
    bytes_ -= item->lru_bytes();
  }

 private:
  void Link(T* item, LruNode* after) {
    LruNode* node = item;
    node->previous_ = after;
    node->next_ = after->next_;
    after->next_->previous_ = node;
    after->next_ = node;
    bytes_ += item->lru_bytes();
  }

  LruNode ends_;
  int64_t bytes_ = 0;
};

}  // namespace infllm::memstore
