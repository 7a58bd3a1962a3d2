#include "tests/worker/infllm_oracle.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

namespace infllm::worker {
namespace {

using Vector = std::vector<double>;

double Dot(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

void Softmax(Vector& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - top);
  for (double& value : x) value /= sum;
}

// Indices of the `count` largest, best first; ties go to the smaller index.
std::vector<int64_t> Largest(const Vector& values, int64_t count) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(count)));
  return order;
}

class Oracle {
 public:
  Oracle(const ModelConfig& model, const AttentionOptions& options, const Sequence& sequence)
      : model_(model), o_(options), s_(sequence), group_(model.q_heads / model.kv_heads) {
    mass_.assign(static_cast<size_t>(model.q_heads), Vector(static_cast<size_t>(s_.tokens), 0.0));
    run_.out.assign(s_.q.size(), 0.0);
    const double dim = static_cast<double>(model.head_dim);
    double base = model.rope_theta, factor = 1;
    if (o_.rope_scaling == RopeScaling::kLinear) factor = o_.rope_factor;
    if (o_.rope_scaling == RopeScaling::kNtk) base *= std::pow(o_.rope_factor, dim / (dim - 2));
    for (int64_t p = 0; p < model.head_dim / 2; ++p) {
      frequency_.push_back(std::pow(base, -2.0 * static_cast<double>(p) / dim) / factor);
    }
  }

  OracleRun Run() && {
    for (int64_t begin = 0; begin < s_.tokens; begin += o_.exec_block) {
      ExecBlock(begin, std::min(begin + o_.exec_block, s_.tokens));
    }
    return std::move(run_);
  }

 private:
  Vector Row(const std::vector<float>& x, int64_t heads, int64_t token, int64_t head) const {
    const auto at = x.begin() + (token * heads + head) * model_.head_dim;
    return Vector(at, at + model_.head_dim);
  }
  Vector Key(int64_t j, int64_t g) const { return Row(s_.k, model_.kv_heads, j, g); }
  Vector Query(int64_t i, int64_t h) const { return Row(s_.q, model_.q_heads, i, h); }

  // `x` turned by `positions`.
  Vector Rotated(const Vector& x, int64_t positions) const {
    const size_t half = x.size() / 2;
    Vector y(x.size());
    for (size_t p = 0; p < half; ++p) {
      const double angle = static_cast<double>(positions) * frequency_[p];
      const double c = std::cos(angle), s = std::sin(angle);
      y[p] = x[p] * c - x[p + half] * s;
      y[p + half] = x[p + half] * c + x[p] * s;
    }
    return y;
  }

  int64_t BlockBegin(int64_t block) const { return o_.n_init + block * o_.block_tokens; }

  // What stands for `block` when query head `h` scores it: q . it.
  double Logit(const Vector& q, int64_t h, int64_t block) const {
    const int64_t begin = BlockBegin(block), g = h / group_;
    if (o_.representative == kernels::RepresentativeKind::kBounds) {
      Vector low = Key(begin, g), high = low;
      for (int64_t j = begin; j < begin + o_.block_tokens; ++j) {
        const Vector k = Key(j, g);
        for (size_t d = 0; d < k.size(); ++d) {
          low[d] = std::min(low[d], k[d]);
          high[d] = std::max(high[d], k[d]);
        }
      }
      double bound = 0;
      for (size_t d = 0; d < q.size(); ++d) bound += std::max(q[d] * low[d], q[d] * high[d]);
      return bound;
    }
    const auto& mass = mass_[static_cast<size_t>(h)];
    double sum = 0;
    for (const int64_t token : Largest(
             Vector(mass.begin() + begin, mass.begin() + begin + o_.block_tokens), o_.repr_top_k)) {
      sum += Dot(q, Key(begin + token, g));
    }
    return sum / static_cast<double>(o_.repr_top_k);
  }

  OracleRetrieval Retrieve(int64_t begin, int64_t end, int64_t blocks) const {
    Vector scores(static_cast<size_t>(blocks), 0.0);
    for (int64_t h = 0; h < model_.q_heads; ++h) {
      Vector mean(static_cast<size_t>(model_.head_dim), 0.0);
      for (int64_t i = begin; i < end; ++i) {
        const Vector q = Rotated(Query(i, h), o_.n_local - 1);
        for (size_t d = 0; d < q.size(); ++d) mean[d] += q[d] / static_cast<double>(end - begin);
      }
      Vector votes;
      for (int64_t b = 0; b < blocks; ++b) votes.push_back(Logit(mean, h, b));
      if (o_.scoring == kernels::Scoring::kHeadVote) {
        for (double& vote : votes) vote /= std::sqrt(static_cast<double>(model_.head_dim));
        Softmax(votes);
      }
      for (size_t b = 0; b < votes.size(); ++b) scores[b] += votes[b];
    }
    OracleRetrieval result{.position = begin, .blocks = Largest(scores, o_.top_k)};
    std::sort(result.blocks.begin(), result.blocks.end());
    result.mass.assign(result.blocks.size(), 0.0);
    return result;
  }

  struct Seen {
    int64_t distance = 0;
    bool near = false;
    std::optional<size_t> selected;  // which block of the retrieval
  };
  // What query i sees of key j.
  std::optional<Seen> See(int64_t i, int64_t j, int64_t blocks,
                          const OracleRetrieval& retrieval) const {
    if (i - j < o_.n_local) return Seen{.distance = i - j, .near = true};
    Seen seen{.distance = o_.n_local - 1};
    if (j >= o_.n_init && j < BlockBegin(blocks)) {
      const int64_t block = (j - o_.n_init) / o_.block_tokens;
      const auto at = std::find(retrieval.blocks.begin(), retrieval.blocks.end(), block);
      if (at == retrieval.blocks.end()) return std::nullopt;
      seen.selected = static_cast<size_t>(at - retrieval.blocks.begin());
    }
    return seen;
  }

  void ExecBlock(int64_t begin, int64_t end) {
    const int64_t past = begin - o_.n_local - o_.n_init;
    const int64_t blocks = past < 0 ? 0 : past / o_.block_tokens;
    OracleRetrieval retrieval;
    if (blocks > 0 && o_.top_k > 0) retrieval = Retrieve(begin, end, blocks);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < model_.q_heads; ++h) Attend(i, h, blocks, retrieval);
    }
    if (!retrieval.blocks.empty()) run_.retrievals.push_back(std::move(retrieval));
  }

  void Attend(int64_t i, int64_t h, int64_t blocks, OracleRetrieval& retrieval) {
    std::vector<std::pair<int64_t, Seen>> keys;
    Vector p;
    for (int64_t j = 0; j <= i; ++j) {
      const std::optional<Seen> seen = See(i, j, blocks, retrieval);
      if (!seen.has_value()) {
        ++run_.unseen;
        continue;
      }
      keys.emplace_back(j, *seen);
      p.push_back(Dot(Rotated(Query(i, h), seen->distance), Key(j, h / group_)) /
                      std::sqrt(static_cast<double>(model_.head_dim)) +
                  (seen->selected.has_value() ? o_.far_bias : 0));
    }
    Softmax(p);
    for (size_t n = 0; n < keys.size(); ++n) {
      const auto& [j, seen] = keys[n];
      const Vector v = Row(s_.v, model_.kv_heads, j, h / group_);
      double* const out =
          &run_.out[static_cast<size_t>((i * model_.q_heads + h) * model_.head_dim)];
      for (size_t d = 0; d < v.size(); ++d) out[d] += p[n] * v[d];
      if (seen.near) mass_[static_cast<size_t>(h)][static_cast<size_t>(j)] += p[n];
      if (seen.selected.has_value()) retrieval.mass[*seen.selected] += p[n];
    }
  }

  const ModelConfig& model_;
  const AttentionOptions& o_;
  const Sequence& s_;
  const int64_t group_;
  Vector frequency_;          // radians per position
  std::vector<Vector> mass_;  // per query head: what each token drew while in a window
  OracleRun run_;
};

}  // namespace

OracleRun OracleInfLlm(const ModelConfig& model, const AttentionOptions& options,
                       const Sequence& sequence) {
  return Oracle(model, options, sequence).Run();
}

}  // namespace infllm::worker
