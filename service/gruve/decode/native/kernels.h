// What each instruction set offers the decoder: tiles of a layer or of the head, and the loops of sampling over a
// vocabulary. Plain data in and out, so that an object compiled for one CPU shares no inline code with the others.
//
// Legend: H hidden, V vocabulary, K depth of a product, `width` the units in one vector of the instruction set.

#ifndef GRUVE_NATIVE_KERNELS_H
#define GRUVE_NATIVE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

namespace gruve {

enum class Cell : int32_t { gru_after, gru_before, lstm, elman };

// How a matrix stores its weights. int8 weights are multiples of their row's step, with four consecutive k side by
// side.
enum class Number : int32_t { fp32, fp16, int8 };

// The inputs of an int8 product are between -1 and 1, as multiples of 1/127. They are stored with an offset added where
// the instruction set multiplies unsigned inputs: 128, else 0.
constexpr int32_t INPUT_STEPS = 127;
// The largest int8 weight. AVX2 adds two products in int16: 2 * 255 * 63 is below 32768, so this is exact.
constexpr int32_t WEIGHT_STEPS = 63;

// A weight matrix cut into groups of `vectors` vectors of columns, each group stored as [K][vectors][width]. The last
// group has `last_vectors`. In a gated cell, a group is one vector of units with all gates of these units side by side.
struct Matrix {
    const void* data = nullptr;
    int32_t depth = 0;
    int32_t vectors = 0;
    int32_t groups = 0;
    int32_t last_vectors = 0;
    Number number = Number::fp32;
    // For int8, one value per column in the order of the groups: the factor from integer sum to fp32, and the
    // correction for the inputs' offset, which is minus `input_offset` times the sum of the column's weights.
    const float* steps = nullptr;
    const int32_t* offsets = nullptr;
};

// One recurrent layer. A row's chain starts from its `start` (table row or bias) and adds x, then h, in the order of k.
struct Layer {
    Cell cell = Cell::gru_after;
    Matrix x;                        // depth 0: `start` already has the input's part
    Matrix h;                        // GRU with reset=before: r and z only
    Matrix n;                        // GRU with reset=before: the new gate's recurrent product, second phase
    const float* bias_hn = nullptr;  // GRU with reset=after
};

// Where one row of a phase reads and writes. Vectors of H are padded to whole vectors of the widest instruction set.
struct RowView {
    const float* start;     // packed like the groups
    const float* x;
    const float* h;         // the layer's old state
    const uint8_t* int8_x;  // for int8 matrices: x in steps,
    const uint8_t* int8_h;  // and h, or r * h for the second phase of reset=before
    float* out;             // the layer's new state, or the logits
    float* c;               // LSTM: read and written
    float* update;          // GRU with reset=before, between its phases: z,
    float* reset;           // r * h,
    float* n_input;         // and the new gate's input part
};

struct Kernels {
    const char* name;
    int32_t width;
    bool half;  // stores fp16 matrices as they are
    int32_t input_offset;  // of the inputs of int8 products
    // The number of groups in one pass over `rows` rows: enough to keep the multiply-add units busy.
    int32_t (*groups_per_pass)(int32_t rows, const Matrix& matrix);
    bool widens;  // if rows need several passes, the first one stores fp16 weights as fp32 for the others
    // Groups [first, first + count) of a layer for all `rows`; `phase` is 1 for the second half of reset=before. `wide`
    // is scratch memory of one thread, `wide_floats` of the layer or the head, or null if nothing is widened.
    void (*layer)(
        const Layer&, int32_t phase, int32_t first, int32_t count, const RowView* rows, int32_t row_count, float* wide);
    void (*head)(
        const Matrix&, int32_t first, int32_t count, const RowView* rows, int32_t row_count, float* wide);
    // sums[n] += sum over k of a[k] * b[k][n] in float64, k in order; out[n] = float(sums[n]).
    void (*fold)(const float* a, int32_t k, const float* b, int32_t n, double* sums, float* out);
    // out[i] = the sum of rows[r][i] in the order of r, at least one row; the same bits for every instruction set.
    void (*sum_rows)(const float* const* rows, int32_t count, int32_t n, float* out);
    // out[i] = input_offset + x[i] in steps, rounded to the nearest, ties to even, the lowest eight bits of it. x is
    // clamped to [-1, 1]; NaN becomes 1.
    void (*quantise)(const float* x, int32_t n, uint8_t* out);
    float (*highest)(const float* logits, int32_t n);
    // sampling.weights; returns their sum.
    uint64_t (*weights)(const float* logits, int32_t n, float highest, float scale, int32_t* weights);
    void (*sigmoid)(const float* x, float* y, int32_t n);
    void (*tanh)(const float* x, float* y, int32_t n);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avxvnni_kernels;     // AVX2 with AVX-VNNI
extern const Kernels avx512_kernels;
extern const Kernels avx512vnni_kernels;  // AVX-512 with VNNI
extern const Kernels zen4_kernels;        // likewise
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
extern const Kernels dotprod_kernels;  // NEON with the dot-product instructions
#endif

// Whether the int8 products of `kernels` equal plain integer products, for every tile shape, random and extreme values.
bool multiplies_exactly(const Kernels& kernels);

}  // namespace gruve

#endif
