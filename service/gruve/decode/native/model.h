// A model's weights, checked, folded and packed once for one instruction set. Immutable and shared by decoders.

#ifndef GRUVE_NATIVE_MODEL_H
#define GRUVE_NATIVE_MODEL_H

#include <cstdint>

#include "abi.h"
#include "kernels.h"
#include "memory.h"
#include "pointers.h"

namespace gruve {

constexpr size_t LANES = 16;  // the widest vector: states and biases are padded to whole ones

struct Model {
    Cell cell;
    int32_t vocabulary_size;
    int32_t embedding_size;
    int32_t hidden_size;
    int32_t padded_size;  // H in whole vectors
    int32_t num_layers;
    int32_t gates;
    bool int8;            // whether layers and head multiply states in int8
    const Kernels* kernels;

    Layer layers[GRUVE_MAX_LAYERS];
    const float* bias[GRUVE_MAX_LAYERS] = {};  // packed like the layer's groups; for layer 0 only without a table
    bool folded = false;                  // whether there is a table
    const float* table = nullptr;         // layer 0: embedding times W plus bias, (V, table_stride), packed likewise
    size_t table_stride = 0;
    const float* embedding = nullptr;     // the caller's (V, E), if there is no table
    PointerSpec pointers;
    // What pointers add to layer 0's input. With a table, these are packed rows of `table_stride`; those of a pointer
    // are differences to its row for "none", which is part of the table. Without one, they are the caller's rows (E,).
    const float* pointer_rows = nullptr;  // (K, V + 1)
    const float* match_rows = nullptr;    // (K, matches)
    const float* place_rows = nullptr;    // (places,)
    const float* count_rows = nullptr;    // (counts,)
    const float* gate_bias = nullptr;     // (K, matches), or (K, 1) without matches
    Matrix head;                          // V rows, then a gate's for each pointer
    const float* head_bias = nullptr;
    size_t logits_stride = 0;             // V + K in whole vectors

    Pages pages;

    // The floats of one row's input to layer 0 in a model with pointers.
    size_t input_floats() const {
        if (pointers.size == 0) return 0;
        return folded ? table_stride : round_up(static_cast<size_t>(embedding_size), LANES);
    }
    // Writes the rows whose sum is that input, for a pending token and its pointers, and returns their number.
    int32_t input_rows(int32_t token, const Pointed& pointed, const float** rows) const;

    int32_t state_tensors() const { return cell == Cell::lstm ? 2 : 1; }
    // The floats that a thread needs to widen the fp16 weights of a layer or of the head.
    size_t wide_floats() const;
    // The number of phases of a layer's step, and the matrix whose groups a phase's tiles are made of.
    int32_t phases() const { return cell == Cell::gru_before ? 2 : 1; }
    const Matrix& tiled(int32_t l, int32_t phase) const { return phase == 1 ? layers[l].n : layers[l].x; }
};

// The most rows that `input_rows` gives.
constexpr int32_t MAX_INPUT_ROWS = 2 * GRUVE_MAX_POINTERS + 3;

// Sets all of a model but its arrays, and returns the bytes that they take. Reads no weight. Throws
// std::invalid_argument for a size out of bounds or an array that is missing.
size_t lay_out(const gruve_weights& weights, const Kernels& kernels, Model& model);

// Throws std::invalid_argument as `lay_out` does, or if a weight is no fp16 value though `half` is set, or not finite
// in int8; and std::bad_alloc.
void pack(const gruve_weights& weights, const Kernels& kernels, Model& model);

}  // namespace gruve

#endif
