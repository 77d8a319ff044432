#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "strata/text_corpus.h"

namespace strata {
namespace {

using Counts = std::unordered_map<uint32_t, uint32_t>;

// How often each run of n bytes occurs, keyed by the bytes; n <= 3. With `followed`, only runs that
// another byte follows: the contexts of runs of n + 1.
Counts count_runs(const std::vector<uint8_t>& bytes, size_t n, bool followed) {
  Counts counts;
  const uint32_t mask = (uint32_t{1} << (8 * n)) - 1;
  uint32_t key = 0;
  const size_t end = bytes.size() - (followed ? 1 : 0);
  for (size_t i = 0; i < end; ++i) {
    key = ((key << 8) | bytes[i]) & mask;
    if (i + 1 >= n) ++counts[key];
  }
  return counts;
}

double count_of(const Counts& counts, uint32_t key) {
  const auto it = counts.find(key);
  return it == counts.end() ? 0.0 : it->second;
}

// Held-out bytes under models of rising order.
class Interpolation {
 public:
  Interpolation(const std::vector<uint8_t>& train, const std::vector<uint8_t>& held_out)
      : train_(train), held_out_(held_out), lower_(held_out.size(), 1.0 / TextCorpus::kVocab) {}

  // Goes on to order n: p_n = (count + a * p_{n-1}) / (context + a) with the best a of a grid.
  // Returns the mean cross-entropy in nats a byte. The first n - 1 bytes have no full context and
  // keep the probability of the order before.
  double raise_to(size_t n) {
    const Counts runs = count_runs(train_, n, false);
    const Counts contexts = n > 1 ? count_runs(train_, n - 1, true) : Counts();
    std::vector<double> count(held_out_.size(), 0), context(held_out_.size(), 0);
    uint32_t key = 0;
    const uint32_t mask = (uint32_t{1} << (8 * n)) - 1;
    for (size_t i = 0; i < held_out_.size(); ++i) {
      key = ((key << 8) | held_out_[i]) & mask;
      if (i + 1 < n) continue;
      count[i] = count_of(runs, key);
      context[i] = n > 1 ? count_of(contexts, key >> 8) : static_cast<double>(train_.size());
    }
    double best_loss = std::numeric_limits<double>::infinity();
    double best_a = 1;
    for (double a = 0x1p-6; a <= 0x1p14; a *= 2) {
      const double loss = loss_with(a, count, context);
      if (loss < best_loss) {
        best_loss = loss;
        best_a = a;
      }
    }
    for (size_t i = 0; i < lower_.size(); ++i) {
      lower_[i] = probability(best_a, count[i], context[i], lower_[i]);
    }
    return best_loss;
  }

 private:
  static double probability(double a, double count, double context, double lower) {
    return (count + a * lower) / (context + a);
  }

  double loss_with(double a, const std::vector<double>& count,
                   const std::vector<double>& context) const {
    double sum = 0;
    for (size_t i = 0; i < lower_.size(); ++i) {
      sum -= std::log(probability(a, count[i], context[i], lower_[i]));
    }
    return sum / static_cast<double>(lower_.size());
  }

  const std::vector<uint8_t>& train_;
  const std::vector<uint8_t>& held_out_;
  std::vector<double> lower_;  // of each held-out byte, under the order reached
};

}  // namespace

NgramBaselines ngram_baselines(const TextCorpus& corpus) {
  Interpolation interpolation(corpus.train(), corpus.validation());
  NgramBaselines baselines;
  baselines.unigram = interpolation.raise_to(1);
  baselines.bigram = interpolation.raise_to(2);
  baselines.trigram = interpolation.raise_to(3);
  return baselines;
}

}  // namespace strata
