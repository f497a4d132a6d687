#include "call.h"

#include <algorithm>

#include "float_control.h"

namespace gruve {
namespace {

// The maximum rows of a tile: enough to amortise reading the weights, few enough to divide a phase evenly.
constexpr int32_t TILE_ROWS = 32;
// More tiles balance the threads better, but a pass over fewer groups reads fewer weight streams at once.
constexpr int32_t TILES_PER_THREAD = 2;
constexpr int32_t TOKEN_ROWS = 4;
// The number of multiply-adds that take about as long as waking a thread.
constexpr int64_t SMALL = 1 << 20;

}  // namespace

Call::Call(Decoder& decoder, const gruve_call& call, Workspace& workspace, int32_t threads)
    : decoder_(decoder), model_(decoder.model()), call_(call), workspace_(workspace), threads_(threads) {}

bool Call::is_small() const {
    const int64_t H = model_.hidden_size;
    const int64_t step = H * model_.gates * H * (2 * model_.num_layers - 1) + H * model_.vocabulary_size;
    return step * call_.rows * call_.steps < SMALL;
}

int32_t Call::next_phase() {
    switch (stage_) {
        case Stage::start:
            return begin_step();
        case Stage::inputs:
            return begin_layer();
        case Stage::layer:
            if (++phase_ < model_.phases()) return begin_layer();
            phase_ = 0;
            return ++layer_ < model_.num_layers ? begin_layer() : begin_head();
        case Stage::head:
            return begin_tokens();
        case Stage::tokens:
            ++step_;
            return begin_step();
    }
    return 0;
}

int32_t Call::begin_step() {
    active_count_ = 0;
    if (step_ == call_.steps) return 0;
    for (int32_t row = 0; row < call_.rows; ++row)
        if (!frozen_[row] && call_.limits[row] > step_) active_[active_count_++] = row;
    if (active_count_ == 0) return 0;
    for (int32_t i = 0; i < active_count_; ++i) {
        const Slot& slot = decoder_.slots_[call_.slots[active_[i]]];
        prompted_[active_[i]] = slot.forced_at < slot.forced.size();
    }
    layer_ = 0;
    phase_ = 0;
    if (model_.pointers.size > 0 && step_ == 0) {  // inputs of later steps are computed at the end of the step before
        stage_ = Stage::inputs;
        return (active_count_ + TOKEN_ROWS - 1) / TOKEN_ROWS;
    }
    return begin_layer();
}

int32_t Call::begin_layer() {
    stage_ = Stage::layer;
    const size_t below = static_cast<size_t>(layer_) * model_.padded_size;
    for (int32_t i = 0; i < active_count_; ++i) {
        const int32_t at = call_.slots[active_[i]];
        const Slot& slot = decoder_.slots_[at];
        RowView& view = views_[i];
        view.h = decoder_.h(at, slot.parity) + below;
        view.out = decoder_.h(at, 1 - slot.parity) + below;
        view.c = model_.cell == Cell::lstm ? decoder_.c(at) + below : nullptr;
        view.update = workspace_.scratch(i);
        view.reset = view.update + model_.padded_size;
        view.n_input = view.reset + model_.padded_size;
        if (layer_ > 0) {
            view.start = model_.bias[layer_];
            view.x = view.out - model_.padded_size;
        } else {
            const float* input = model_.pointers.size > 0 ? workspace_.input(active_[i]) : nullptr;
            if (model_.folded) {
                view.start = input != nullptr ? input : model_.table + model_.table_stride * slot.pending;
                view.x = nullptr;
            } else {
                view.start = model_.bias[0];
                view.x = input != nullptr
                             ? input
                             : model_.embedding + static_cast<size_t>(model_.embedding_size) * slot.pending;
            }
        }
        if (model_.int8) quantise_inputs(view, workspace_.int8_inputs(i));
    }
    view_count_ = active_count_;
    return cut(model_.tiled(layer_, phase_), view_count_);
}

// Writes the inputs of this phase's int8 products to `to`.
void Call::quantise_inputs(RowView& view, uint8_t* to) const {
    const int32_t size = model_.padded_size;
    view.int8_h = to;
    view.int8_x = to + size;
    model_.kernels->quantise(phase_ == 0 ? view.h : view.reset, size, to);
    if (phase_ == 0 && layer_ > 0) model_.kernels->quantise(view.x, size, to + size);
}

int32_t Call::begin_head() {
    stage_ = Stage::head;
    view_count_ = 0;
    for (int32_t i = 0; i < active_count_; ++i) {
        const int32_t row = active_[i], at = call_.slots[row];
        if (!draws(row) && decoder_.slots_[at].logprobs < 0) continue;
        RowView& view = views_[view_count_++];
        view.start = model_.head_bias;
        view.x = decoder_.h(at, 1 - decoder_.slots_[at].parity) +
                 static_cast<size_t>(model_.num_layers - 1) * model_.padded_size;
        view.out = workspace_.logits(row);
        if (!model_.int8) continue;
        view.int8_x = workspace_.int8_inputs(row);
        model_.kernels->quantise(view.x, model_.padded_size, workspace_.int8_inputs(row));
    }
    return view_count_ == 0 ? begin_tokens() : cut(model_.head, view_count_);
}

int32_t Call::begin_tokens() {
    stage_ = Stage::tokens;
    return (active_count_ + TOKEN_ROWS - 1) / TOKEN_ROWS;
}

// Cuts a phase into tiles and returns their number.
int32_t Call::cut(const Matrix& matrix, int32_t rows) {
    rows_ = std::min(rows, TILE_ROWS);
    groups_ = model_.kernels->groups_per_pass(rows, matrix);
    const int32_t row_tiles = (rows + rows_ - 1) / rows_, wanted = threads_ * TILES_PER_THREAD;
    const auto tiles = [&] { return (matrix.groups + groups_ - 1) / groups_ * row_tiles; };
    while (groups_ > 1 && tiles() < wanted) groups_ /= 2;
    return tiles();
}

void Call::run(int32_t tile, int32_t worker) {
    if (stage_ == Stage::tokens || stage_ == Stage::inputs) {
        const FloatControl control(Denormals::ieee);
        const int32_t end = std::min(active_count_, (tile + 1) * TOKEN_ROWS);
        for (int32_t i = tile * TOKEN_ROWS; i < end; ++i) {
            if (stage_ == Stage::tokens) {
                take_token(active_[i], workspace_.scratches[worker]);
            } else {
                make_input(active_[i]);
            }
        }
        return;
    }
    // int8 gives the same bits on all devices, and GPUs keep denormals.
    const FloatControl control(model_.int8 ? Denormals::ieee : Denormals::flush);
    const Matrix& matrix = stage_ == Stage::head ? model_.head : model_.tiled(layer_, phase_);
    const int32_t row_tiles = (view_count_ + rows_ - 1) / rows_;
    const int32_t first = tile / row_tiles * groups_, from = tile % row_tiles * rows_;
    const int32_t groups = std::min(groups_, matrix.groups - first), rows = std::min(rows_, view_count_ - from);
    float* wide = workspace_.wide[worker].at<float>(0);
    if (stage_ == Stage::head) {
        model_.kernels->head(matrix, first, groups, views_ + from, rows, wide);
    } else {
        model_.kernels->layer(model_.layers[layer_], phase_, first, groups, views_ + from, rows, wide);
    }
}

// Computes layer 0's input for a row's pending token.
void Call::make_input(int32_t row) {
    const Slot& slot = decoder_.slots_[call_.slots[row]];
    const float* rows[MAX_INPUT_ROWS];
    const int32_t count = model_.input_rows(slot.pending, slot.pointers.pointed(), rows);
    const size_t floats = model_.folded ? model_.table_stride : model_.embedding_size;
    model_.kernels->sum_rows(rows, count, static_cast<int32_t>(floats), workspace_.input(row));
}

// Adds each pointer's gate, stored after the logits, to the logit of the token that the pointer names.
void Call::add_gates(int32_t row) {
    const Pointed& pointed = decoder_.slots_[call_.slots[row]].pointers.pointed();
    const int32_t V = model_.vocabulary_size, biases = std::max(model_.pointers.matches, 1);
    float* logits = workspace_.logits(row);
    for (int32_t k = 0; k < model_.pointers.size; ++k) {
        if (pointed.tokens[k] == V) continue;
        logits[pointed.tokens[k]] += logits[V + k] + model_.gate_bias[k * biases + pointed.matches[k]];
    }
}

bool Call::draws(int32_t row) const { return !prompted_[row]; }

void Call::take_token(int32_t row, Scratch& scratch) {
    const Slot& slot = decoder_.slots_[call_.slots[row]];
    if (model_.pointers.size > 0 && (draws(row) || slot.logprobs >= 0)) add_gates(row);
    int32_t token;
    if (draws(row)) {
        token = draw(
            *model_.kernels, workspace_.logits(row), model_.vocabulary_size, slot.sampling, slot.position + 1,
            {slot.history.data(), slot.position, slot.known},
            slot.generated < slot.min_tokens ? slot.masked_early : slot.masked, scratch);
    } else {
        token = slot.forced[slot.forced_at];
    }
    if (slot.logprobs >= 0) record_logprobs(row, token, scratch);
    advance(row, token, draws(row));
}

// Advances a row past `token`: updates position, counts, history and stops, and decides whether the row freezes.
void Call::advance(int32_t row, int32_t token, bool sampled) {
    Slot& slot = decoder_.slots_[call_.slots[row]];
    call_.tokens[static_cast<size_t>(step_) * call_.rows + row] = token;
    ++call_.steps_taken[row];
    slot.parity = 1 - slot.parity;
    slot.pending = token;
    ++slot.position;
    slot.history[slot.position & (GRUVE_HISTORY - 1)] = token;
    slot.known = std::min(slot.known + 1, GRUVE_HISTORY);
    RowStatus status = RowStatus::running;
    if (sampled) {
        ++slot.generated;
        bool matched = false;
        if (slot.stop_table != nullptr) {
            const size_t at = static_cast<size_t>(slot.stop_state) * model_.vocabulary_size + token;
            const int32_t entry = slot.stop_table[at];
            slot.stop_state = entry & (MATCHED - 1);
            matched = entry >= MATCHED && slot.generated >= slot.min_tokens;
        }
        if (token == slot.end_id) {
            status = RowStatus::end_of_sequence;
        } else if (matched) {
            status = RowStatus::stop;
        }
    } else {
        ++slot.forced_at;
    }
    const bool prompt_left = slot.forced_at < slot.forced.size();
    if (status == RowStatus::running && slot.generated >= slot.max_tokens && !prompt_left) status = RowStatus::length;
    call_.statuses[row] = static_cast<int32_t>(status);
    frozen_[row] = status != RowStatus::running;
    if (model_.pointers.size == 0) return;
    slot.pointers.feed(slot.history.data(), slot.position, slot.known);
    if (!frozen_[row] && step_ + 1 < std::min(call_.limits[row], call_.steps)) make_input(row);
}

void Call::record_logprobs(int32_t row, int32_t token, Scratch& scratch) {
    const int32_t count = decoder_.slots_[call_.slots[row]].logprobs;
    const size_t cell = static_cast<size_t>(step_) * call_.rows + row;
    log_softmax(workspace_.logits(row), model_.vocabulary_size, scratch);
    call_.chosen[cell] = static_cast<float>(scratch.logprobs[token]);
    if (count > 0)
        likeliest(
            model_.vocabulary_size, count, scratch, call_.top_ids + cell * call_.alternatives,
            call_.top + cell * call_.alternatives);
}

}  // namespace gruve
