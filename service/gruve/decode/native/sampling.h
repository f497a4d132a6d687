// gruve.model.sampling for one row: the same integers, the same draws. Independent of slots, states and threads.

#ifndef GRUVE_NATIVE_SAMPLING_H
#define GRUVE_NATIVE_SAMPLING_H

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "abi.h"
#include "kernels.h"

namespace gruve {

struct SamplingParameters {
    uint64_t seed = 0;
    bool greedy = true;
    float scale = 0.0f;
    int32_t top_k = 0;          // 0 keeps all
    int32_t top_p_share = -1;   // -1 keeps all
    int32_t min_p_share = 0;
    float penalty = 1.0f;
    float inverse_penalty = 1.0f;
    int32_t repetition_window = 0;
    std::vector<std::pair<int32_t, float>> bias;
};

// Throws std::invalid_argument for values out of bounds.
SamplingParameters checked(const gruve_sampling& in, int32_t vocabulary_size);

// The last `known` tokens of a transcript by absolute position: token p is at p modulo 1024.
struct History {
    const int32_t* ring;
    int64_t position;  // of the newest token
    int32_t known;
};

// The buffers of a thread that samples.
struct Scratch {
    std::vector<float> adjusted;
    std::vector<int32_t> weights;
    std::vector<uint64_t> order;
    std::vector<double> logprobs;
    explicit Scratch(int32_t vocabulary_size)
        : adjusted(vocabulary_size), weights(vocabulary_size), order(vocabulary_size), logprobs(vocabulary_size) {}
    static size_t bytes(int32_t vocabulary_size) {
        return vocabulary_size * (sizeof(float) + sizeof(int32_t) + sizeof(uint64_t) + sizeof(double));
    }
};

struct Philox {
    uint32_t word[4];
};

// philox4x32-10 (Salmon et al. 2011).
Philox philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3);

// The token for absolute `position`. `masked` ids are not drawn. If no other id is left, returns token 0.
int32_t draw(
    const Kernels& kernels, const float* logits, int32_t vocabulary_size, const SamplingParameters& parameters,
    int64_t position, const History& history, const std::vector<int32_t>& masked, Scratch& scratch);

// ln softmax(logits) in float64, in `scratch.logprobs`.
void log_softmax(const float* logits, int32_t vocabulary_size, Scratch& scratch);

// The `count` largest of `scratch.logprobs`, ties by lower id; -1 and NaN beyond the vocabulary.
void likeliest(int32_t vocabulary_size, int32_t count, const Scratch& scratch, int32_t* ids, float* logprobs);

}  // namespace gruve

#endif
