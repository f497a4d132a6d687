// The C ABI between gruve.decode.native and its shared library. Plain structs, plain functions, no global state.
//
// Every function that can fail returns a Status and, unless it is OK, writes a message into `error` (at most
// `error_size` bytes with the final 0). Nothing is read past the sizes given; every index is checked before it is used.
// A model is immutable and may be shared by any number of decoders and threads. A decoder may be shared by threads if
// each slot is used by one caller at a time and at most as many calls of decode are under way as it has threads.
// Otherwise the function returns BUSY and changes nothing. Array arguments are read during the call only, unless stated
// otherwise.

#ifndef GRUVE_NATIVE_ABI_H
#define GRUVE_NATIVE_ABI_H

#include <stddef.h>
#include <stdint.h>

#define GRUVE_ABI_VERSION 8
#define GRUVE_MAX_VOCABULARY 65535
#define GRUVE_MAX_SIZE 4096
#define GRUVE_MIN_HIDDEN 8
#define GRUVE_MAX_LAYERS 4
#define GRUVE_MAX_SLOTS (1 << 20)
#define GRUVE_MAX_ROWS 64
#define GRUVE_MAX_STEPS 4096
#define GRUVE_MAX_THREADS 256
#define GRUVE_HISTORY 1024
#define GRUVE_MAX_POSITION (INT64_C(1) << 62)
#define GRUVE_MAX_LOGPROBS 1024
#define GRUVE_MAX_POINTERS 16

#ifdef __cplusplus
extern "C" {
#endif

#define GRUVE_EXPORT __attribute__((visibility("default")))

enum gruve_status { GRUVE_OK = 0, GRUVE_INVALID = 1, GRUVE_FAILED = 2, GRUVE_BUSY = 3 };
enum gruve_cell { GRUVE_GRU_AFTER = 0, GRUVE_GRU_BEFORE = 1, GRUVE_LSTM = 2, GRUVE_ELMAN = 3 };

// The effect of a token on the bars of gruve.model.pointers: none; closes a bar and opens the next; also begins a part.
enum gruve_token_kind { GRUVE_PLAIN_TOKEN = 0, GRUVE_BAR_TOKEN = 1, GRUVE_PART_TOKEN = 2 };

// gruve.model.pointers.PointerConfig and the weights of pointers, row-major fp32; K = bars_size +
// followers_size + transposed_size. `weight`, `match`, `place` and `count` must outlive the model.
typedef struct {
    int32_t bars_size;
    int32_t followers_size;
    int32_t transposed_size;
    int32_t scale_size;
    const int32_t* bars;
    const int32_t* followers;
    const int32_t* transposed;
    const int32_t* scale;
    const int32_t* kinds;      // (V,)
    const int32_t* advances;   // (V,)
    int32_t start_token;       // -1 for none
    int32_t place_step;
    int32_t places;
    int32_t counts;
    int32_t matches;
    const float* weight;       // (K, V + 1, E)
    const float* match;        // (K, matches, E), or null
    const float* place;        // (places, E), or null
    const float* count;        // (counts, E), or null
    const float* gate;         // (K, H)
    const float* gate_bias;    // (K, matches, or 1 without)
} gruve_pointers;

// A model's weights, row-major fp32, as in gruve.model.config: V tokens, E embedding, H hidden, L layers, G gates (4 in
// an LSTM, 3 in a GRU, 1 in Elman's). `embedding` must outlive the model.
typedef struct {
    int32_t cell;              // a gruve_cell
    int32_t vocabulary_size;   // V, 1 to GRUVE_MAX_VOCABULARY
    int32_t embedding_size;    // E, 1 to GRUVE_MAX_SIZE
    int32_t hidden_size;       // H, GRUVE_MIN_HIDDEN to GRUVE_MAX_SIZE
    int32_t num_layers;        // L, 1 to GRUVE_MAX_LAYERS
    int32_t half;              // 1: every weight matrix holds fp16 values and may be stored so
    int32_t int8;              // 1: layers and head multiply states in int8 and sum integers; 0: all in fp32
    const float* embedding;                      // (V, E)
    const float* weight_ih[GRUVE_MAX_LAYERS];    // (G*H, E or H)
    const float* weight_hh[GRUVE_MAX_LAYERS];    // (G*H, H)
    const float* bias[GRUVE_MAX_LAYERS];         // (G*H,)
    const float* bias_hn[GRUVE_MAX_LAYERS];      // (H,), only for GRUVE_GRU_AFTER
    const float* head_weight;                    // (V, H), or null where the head is tied
    const float* head_projection;                // (E, H) where the head is tied and E differs from H, or null
    const float* head_bias;                      // (V,)
    const gruve_pointers* pointers;              // null for a model without pointers
} gruve_weights;

// The parameters of gruve.model.sampling, converted to integers and fp32 by its functions.
typedef struct {
    uint64_t seed;
    int32_t greedy;
    float scale;               // sampling.scale(temperature)
    int32_t top_k;             // 0 keeps all
    int32_t top_p_share;       // sampling.share(top_p), -1 keeps all
    int32_t min_p_share;       // sampling.share(min_p)
    float penalty;
    float inverse_penalty;     // sampling.inverse_penalty(penalty)
    int32_t repetition_window; // 0 to GRUVE_HISTORY
    int32_t bias_size;
    const int32_t* bias_ids;
    const float* bias;
} gruve_sampling;

// gruve.decode.Row. `stop_table` must stay valid until the slot is admitted again or released; the rest is copied.
typedef struct {
    int64_t position;          // 0 to GRUVE_MAX_POSITION
    const int32_t* history;
    const int32_t* forced;
    const int32_t* stop_table; // (stop_states, V) or null
    const int32_t* stop_ids;
    int32_t history_size;      // 1 to GRUVE_HISTORY
    int32_t forced_size;
    int32_t stop_states;
    int32_t stop_state;
    int32_t stop_ids_size;
    int32_t max_tokens;
    int32_t min_tokens;
    int32_t generated;
    int32_t end_id;            // -1 for none
    int32_t ignore_eos;
    int32_t logprobs;          // -1 for none
    gruve_sampling sampling;
} gruve_row;

// One call of decode. The call writes the outputs. Those of log-probabilities may be null if no row requests any.
typedef struct {
    int32_t rows;              // 1 to GRUVE_MAX_ROWS
    int32_t steps;             // 1 to GRUVE_MAX_STEPS
    int32_t alternatives;      // the third dimension of `top_ids` and `top`: at least the largest `logprobs` of a row
    int32_t exclusive;         // 1: no other call is under way, so all threads help; 0: the caller's thread works alone
    const int32_t* slots;      // (rows,), distinct
    const int32_t* limits;     // (rows,)
    int32_t* tokens;           // (steps, rows)
    int32_t* steps_taken;      // (rows,)
    int32_t* statuses;         // (rows,): a gruve.decode.RowStatus each
    float* chosen;             // (steps, rows)
    int32_t* top_ids;          // (steps, rows, alternatives)
    float* top;                // (steps, rows, alternatives)
} gruve_call;

typedef struct gruve_model gruve_model;
typedef struct gruve_decoder gruve_decoder;

// The version that the loader compares before it calls anything else.
GRUVE_EXPORT int32_t gruve_abi_version(void);
GRUVE_EXPORT void gruve_struct_sizes(
    size_t* weights, size_t* pointers, size_t* sampling, size_t* row, size_t* call);

// `wanted`, or with null or "" the fastest: "avx512vnni", "zen4" (AVX-512 with VNNI in the form that suits Zen 4),
// "avx512", "avxvnni" (AVX2 with AVX-VNNI), "avx2", "dotprod" (NEON with dot products), "neon" or "portable". Null if
// `wanted` is none of these or this CPU does not support it.
GRUVE_EXPORT const char* gruve_isa(const char* wanted);
// 1 if the int8 products of `isa`, which gruve_isa returned, are those of plain integers. Takes some milliseconds.
GRUVE_EXPORT int32_t gruve_multiplies_exactly(const char* isa);

// Packs weights for `isa`, a name that gruve_isa returned.
GRUVE_EXPORT int32_t gruve_model_create(
    const gruve_weights* weights, const char* isa, gruve_model** model, char* error, size_t error_size);
// The bytes that the packed weights would take, and those of a decoder when every slot has a sequence. Reads no weight:
// the addresses say only which there are.
GRUVE_EXPORT int32_t gruve_memory(
    const gruve_weights* weights, const char* isa, int32_t slots, int32_t threads, size_t* model, size_t* decoder,
    char* error, size_t error_size);
GRUVE_EXPORT void gruve_model_destroy(gruve_model* model);
GRUVE_EXPORT size_t gruve_model_bytes(const gruve_model* model);

// `slots` is 1 to GRUVE_MAX_SLOTS, `threads` 1 to GRUVE_MAX_THREADS. A decoder keeps its model alive: the two may be
// destroyed in any order.
GRUVE_EXPORT int32_t gruve_decoder_create(
    const gruve_model* model, int32_t slots, int32_t threads, gruve_decoder** decoder, char* error, size_t error_size);
// Waits for calls that are under way; no other may begin.
GRUVE_EXPORT void gruve_decoder_destroy(gruve_decoder* decoder);

// `state` of gruve_admit and gruve_snapshot is (state tensors, L, H) fp32; null admits zeros.
GRUVE_EXPORT int32_t gruve_admit(
    gruve_decoder* decoder, int32_t slot, const gruve_row* row, const float* state, char* error, size_t error_size);
GRUVE_EXPORT int32_t gruve_decode(gruve_decoder* decoder, const gruve_call* call, char* error, size_t error_size);
GRUVE_EXPORT int32_t gruve_snapshot(
    gruve_decoder* decoder, int32_t slot, float* state, char* error, size_t error_size);
GRUVE_EXPORT int32_t gruve_release(gruve_decoder* decoder, int32_t slot, char* error, size_t error_size);

// For tests: the parts of a step by themselves.

// The logits (V,) of row `row` in the last step of the last call to begin, if the row sampled or requested
// log-probabilities in it. No call may be under way.
GRUVE_EXPORT int32_t gruve_last_logits(
    gruve_decoder* decoder, int32_t row, float* logits, char* error, size_t error_size);
// The token that `sampling` draws from `logits` for absolute `position`, 0 to GRUVE_MAX_POSITION; `history` oldest
// first.
GRUVE_EXPORT int32_t gruve_draw(
    const char* isa, const float* logits, int32_t vocabulary_size, const gruve_sampling* sampling, int64_t position,
    const int32_t* history, int32_t history_size, const int32_t* masked, int32_t masked_size, int32_t* token,
    char* error, size_t error_size);
// The four words of philox4x32-10.
GRUVE_EXPORT void gruve_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t words[4]);
// sigmoid(x) and tanh(x) of n values.
GRUVE_EXPORT int32_t gruve_activations(
    const char* isa, const float* x, int32_t n, float* sigmoid, float* tanh, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif
