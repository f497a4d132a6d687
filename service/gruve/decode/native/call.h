// One call of decode as a job: for each step the layers, the head, then a token for each row.

#ifndef GRUVE_NATIVE_CALL_H
#define GRUVE_NATIVE_CALL_H

#include <cstdint>

#include "abi.h"
#include "decoder.h"
#include "pool.h"

namespace gruve {

class Call final : public Job {
public:
    // `threads` is how many threads will share it.
    Call(Decoder& decoder, const gruve_call& call, Workspace& workspace, int32_t threads);

    // Whether it is too small to be worth waking another thread.
    bool is_small() const;

    int32_t next_phase() override;
    void run(int32_t tile, int32_t worker) override;

private:
    enum class Stage { start, inputs, layer, head, tokens };

    int32_t begin_step();
    int32_t begin_layer();
    void quantise_inputs(RowView& view, uint8_t* to) const;
    int32_t begin_head();
    int32_t begin_tokens();
    int32_t cut(const Matrix& matrix, int32_t rows);

    void make_input(int32_t row);
    void add_gates(int32_t row);
    bool draws(int32_t row) const;
    void take_token(int32_t row, Scratch& scratch);
    void advance(int32_t row, int32_t token, bool sampled);
    void record_logprobs(int32_t row, int32_t token, Scratch& scratch);

    Decoder& decoder_;
    const Model& model_;
    const gruve_call& call_;
    Workspace& workspace_;
    const int32_t threads_;

    Stage stage_ = Stage::start;
    int32_t step_ = 0;
    int32_t layer_ = 0;
    int32_t phase_ = 0;  // of the layer

    int32_t active_[GRUVE_MAX_ROWS];  // the call's rows that run this step
    int32_t active_count_ = 0;
    bool frozen_[GRUVE_MAX_ROWS] = {};
    bool prompted_[GRUVE_MAX_ROWS];   // whether the row's next token comes from its prompt

    RowView views_[GRUVE_MAX_ROWS];   // of the current phase
    int32_t view_count_ = 0;
    int32_t groups_ = 0;              // the groups of a tile
    int32_t rows_ = 0;                // the rows of a tile
};

}  // namespace gruve

#endif
