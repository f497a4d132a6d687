#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "bounds.h"

namespace gruve {
namespace {

constexpr int WEIGHT_BITS = 22;
constexpr int SHARE_BITS = 24;
constexpr int32_t MAX_SHARE = 1 << SHARE_BITS;
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// An integer key that sorts by (logit descending, id ascending), largest first.
uint64_t rank(float logit, int32_t id) {
    uint32_t bits;
    const float value = logit + 0.0f;  // -0 and 0 are the same logit
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(ordered) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(id));
}

int32_t id_of(uint64_t rank) { return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(rank)); }

bool changes_logits(const SamplingParameters& p, const std::vector<int32_t>& masked) {
    return (p.penalty != 1.0f && p.repetition_window > 0) || !p.bias.empty() || !masked.empty();
}

// Repetition penalty, bias, mask: one rounding for each operation.
const float* adjust(
    const float* logits, int32_t V, const SamplingParameters& p, const History& history,
    const std::vector<int32_t>& masked, std::vector<float>& adjusted) {
    std::copy(logits, logits + V, adjusted.begin());
    if (p.penalty != 1.0f) {
        const int64_t window = std::min<int64_t>(p.repetition_window, history.known);
        for (int64_t age = 0; age < window; ++age) {
            const int32_t token = history.ring[(history.position - age) & (GRUVE_HISTORY - 1)];
            const float logit = logits[token];  // not `adjusted`: a token that was seen twice is penalised once
            adjusted[token] = logit > 0.0f ? logit * p.inverse_penalty : logit * p.penalty;
        }
    }
    for (const auto& [token, bias] : p.bias) adjusted[token] += bias;
    for (const int32_t token : masked) adjusted[token] = LOWEST;
    return adjusted.data();
}

int32_t first_at(const float* logits, int32_t V, float value) {
    const float* found = std::find(logits, logits + V, value);
    return found == logits + V ? 0 : static_cast<int32_t>(found - logits);
}

// Sets the weights that top-k, top-p and min-p drop to zero; returns the sum of the others. Tokens with weight zero are
// not candidates: they come last in the order and cannot be drawn.
uint64_t truncate(const float* logits, int32_t V, const SamplingParameters& p, uint64_t total, Scratch& scratch) {
    std::vector<int32_t>& w = scratch.weights;
    const uint64_t least = static_cast<uint64_t>(p.min_p_share) << WEIGHT_BITS;
    if (p.top_k > 0 || p.top_p_share >= 0) {
        auto begin = scratch.order.begin(), end = begin;
        for (int32_t id = 0; id < V; ++id)
            if (w[id] > 0) *end++ = rank(logits[id], id);
        if (p.top_k > 0 && p.top_k < end - begin) {
            std::nth_element(begin, begin + p.top_k, end, std::greater<>());
            for (auto dropped = begin + p.top_k; dropped != end; ++dropped) {
                total -= static_cast<uint64_t>(w[id_of(*dropped)]);
                w[id_of(*dropped)] = 0;
            }
            end = begin + p.top_k;
        }
        if (p.top_p_share >= 0) {
            // A heap yields the likeliest first, and only as many as are needed; the rest is dropped.
            const uint64_t bound = static_cast<uint64_t>(p.top_p_share) * total;
            uint64_t before = 0;
            std::make_heap(begin, end);
            do {
                before += static_cast<uint64_t>(w[id_of(*begin)]);
                std::pop_heap(begin, end--);
            } while (begin != end && before << SHARE_BITS < bound);
            for (auto dropped = begin; dropped != end; ++dropped) w[id_of(*dropped)] = 0;
            total = before;
        }
    }
    if (least > 0) {
        total = 0;
        for (int32_t id = 0; id < V; ++id) {
            if (static_cast<uint64_t>(w[id]) << SHARE_BITS < least) w[id] = 0;
            total += static_cast<uint64_t>(w[id]);
        }
    }
    return total;
}

// The first token at which the cumulative weight exceeds `target`: searched by stretches, then by single tokens.
int32_t token_at(const int32_t* weights, int32_t V, uint64_t target) {
    constexpr int32_t STRETCH = 64;  // their sum fits into 32 bits
    int32_t token = 0;
    for (; token + STRETCH < V; token += STRETCH) {
        uint32_t sum = 0;
        for (int32_t i = 0; i < STRETCH; ++i) sum += static_cast<uint32_t>(weights[token + i]);
        if (sum > target) break;
        target -= sum;
    }
    for (; token < V - 1 && static_cast<uint32_t>(weights[token]) <= target; ++token)
        target -= static_cast<uint32_t>(weights[token]);
    return token;
}

}  // namespace

SamplingParameters checked(const gruve_sampling& in, int32_t vocabulary_size) {
    check("top_k", in.top_k, 0, std::numeric_limits<int32_t>::max());
    check("top_p's share", in.top_p_share, -1, MAX_SHARE);
    check("min_p's share", in.min_p_share, 0, MAX_SHARE);
    check("repetition_window", in.repetition_window, 0, GRUVE_HISTORY);
    check_all("logit_bias token", in.bias_ids, in.bias_size, 0, vocabulary_size - 1);
    if (in.bias_size > 0) check_present("logit_bias", in.bias);
    if (!in.greedy) check_positive("scale", in.scale);
    check_positive("penalty", in.penalty);
    check_positive("inverse_penalty", in.inverse_penalty);
    SamplingParameters out;
    out.seed = in.seed;
    out.greedy = in.greedy != 0;
    out.scale = in.scale;
    out.top_k = in.top_k;
    out.top_p_share = in.top_p_share;
    out.min_p_share = in.min_p_share;
    out.penalty = in.penalty;
    out.inverse_penalty = in.inverse_penalty;
    out.repetition_window = in.repetition_window;
    for (int32_t i = 0; i < in.bias_size; ++i) {
        if (!std::isfinite(in.bias[i]))
            throw std::invalid_argument(
                "logit_bias " + quoted(in.bias[i]) + " of token " + std::to_string(in.bias_ids[i]) + " is not finite");
        out.bias.emplace_back(in.bias_ids[i], in.bias[i]);
    }
    return out;
}

Philox philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t low = uint64_t{0xD2511F53u} * c0, high = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(high >> 32) ^ c1 ^ key0;
        c1 = static_cast<uint32_t>(high);
        c2 = static_cast<uint32_t>(low >> 32) ^ c3 ^ key1;
        c3 = static_cast<uint32_t>(low);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

int32_t draw(
    const Kernels& kernels, const float* logits, int32_t V, const SamplingParameters& p, int64_t position,
    const History& history, const std::vector<int32_t>& masked, Scratch& scratch) {
    if (changes_logits(p, masked)) logits = adjust(logits, V, p, history, masked, scratch.adjusted);
    const float highest = kernels.highest(logits, V);
    if (p.greedy) return first_at(logits, V, highest);
    uint64_t total = kernels.weights(logits, V, highest, p.scale, scratch.weights.data());
    if (total == 0) return 0;
    if (p.top_k > 0 || p.top_p_share >= 0 || p.min_p_share > 0) total = truncate(logits, V, p, total, scratch);
    const auto counter = static_cast<uint64_t>(position);
    const Philox words = philox(
        static_cast<uint32_t>(p.seed), static_cast<uint32_t>(p.seed >> 32), static_cast<uint32_t>(counter),
        static_cast<uint32_t>(counter >> 32), 0, 0);
    // floor(u * total / 2**32) for total < 2**39
    const uint64_t u = words.word[0];
    uint64_t target = (u * (total >> 16) + ((u * (total & 0xFFFF)) >> 16)) >> 16;
    return token_at(scratch.weights.data(), V, target);
}

void log_softmax(const float* logits, int32_t V, Scratch& scratch) {
    const double highest = *std::max_element(logits, logits + V);
    double sum = 0.0;
    for (int32_t id = 0; id < V; ++id) sum += std::exp(logits[id] - highest);
    const double log_sum = std::log(sum);
    for (int32_t id = 0; id < V; ++id) scratch.logprobs[id] = logits[id] - highest - log_sum;
}

void likeliest(int32_t V, int32_t count, const Scratch& scratch, int32_t* ids, float* logprobs) {
    const std::vector<double>& all = scratch.logprobs;
    int32_t found = 0;
    for (int32_t id = 0; id < V && count > 0; ++id) {
        if (found == count && !(all[id] > all[ids[count - 1]])) continue;
        int32_t at = found < count ? found++ : count - 1;
        for (; at > 0 && all[id] > all[ids[at - 1]]; --at) ids[at] = ids[at - 1];
        ids[at] = id;
    }
    for (int32_t i = 0; i < count; ++i) {
        logprobs[i] = i < found ? static_cast<float>(all[ids[i]]) : std::numeric_limits<float>::quiet_NaN();
        if (i >= found) ids[i] = -1;
    }
}

}  // namespace gruve
