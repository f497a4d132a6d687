#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "bounds.h"
#include "call.h"

namespace gruve {
namespace {

// Rows are an odd number of cache lines apart, so that the same unit of many rows does not map to one cache set.
size_t odd_lines(size_t floats) { return floats / LANES % 2 == 0 ? floats + LANES : floats; }

// The number of floats that hold two inputs of int8 products.
size_t int8_floats(const Model& model) {
    return model.int8 ? round_up(static_cast<size_t>(model.padded_size) * 2 / sizeof(float), LANES) : 0;
}

// The number of floats of a workspace's row.
size_t workspace_floats(const Model& model) {
    const size_t layers = 3 * static_cast<size_t>(model.padded_size);
    return odd_lines(layers + model.logits_stride + int8_floats(model) + model.input_floats());
}

size_t layer_floats(const Model& model) { return static_cast<size_t>(model.num_layers) * model.padded_size; }

size_t slot_floats(const Model& model) { return odd_lines(layer_floats(model) * (model.state_tensors() + 1)); }

void check_sizes(int32_t slots, int32_t threads) {
    check("slots", slots, 1, GRUVE_MAX_SLOTS);
    check("threads", threads, 1, GRUVE_MAX_THREADS);
}

}  // namespace

size_t Workspace::bytes(const Model& model, int32_t threads) {
    const size_t wide = Pages::resident(model.wide_floats() * sizeof(float));
    return Pages::resident(workspace_floats(model) * GRUVE_MAX_ROWS * sizeof(float)) +
           threads * (Scratch::bytes(model.vocabulary_size) + wide);
}

size_t Decoder::bytes(const Model& model, int32_t slots, int32_t threads) {
    check_sizes(slots, threads);
    const size_t tracker = model.pointers.size > 0 ? PointerTracker::bytes() : 0;
    const size_t held = sizeof(Slot) + sizeof(std::atomic<bool>) + GRUVE_HISTORY * sizeof(int32_t) + tracker;
    return Pages::resident(slots * slot_floats(model) * sizeof(float)) + slots * held +
           Workspace::bytes(model, threads) + threads * Workspace::bytes(model, 1);
}

Workspace::Workspace(const Model& model, int32_t threads)
    : row_floats(workspace_floats(model)),
      logits_offset(3 * static_cast<size_t>(model.padded_size)),
      logits_stride(model.logits_stride),
      input_offset(logits_offset + model.logits_stride + int8_floats(model)),
      rows(row_floats * GRUVE_MAX_ROWS * sizeof(float)) {
    for (int32_t i = 0; i < threads; ++i) scratches.emplace_back(model.vocabulary_size);
    for (int32_t i = 0; i < threads; ++i) wide.emplace_back(model.wide_floats() * sizeof(float));
}

Decoder::Decoder(std::shared_ptr<const Model> model, int32_t slots, int32_t threads)
    : model_(std::move(model)),
      layer_floats_(layer_floats(*model_)),
      slot_floats_(slot_floats(*model_)) {
    check_sizes(slots, threads);
    slots_.resize(slots);
    states_ = Pages(slot_floats_ * slots * sizeof(float));
    held_ = std::make_unique<std::atomic<bool>[]>(slots);
    workspaces_.push_back(std::make_unique<Workspace>(*model_, threads));
    for (int32_t i = 0; i < threads; ++i) workspaces_.push_back(std::make_unique<Workspace>(*model_, 1));
    pool_ = std::make_unique<Pool>(threads);
}

Decoder::~Decoder() {
    if (pool_->forked()) static_cast<void>(pool_.release());
}

float* Decoder::h(int32_t slot, int32_t parity) const {
    return states_.at<float>((slot_floats_ * slot + layer_floats_ * parity) * sizeof(float));
}

float* Decoder::c(int32_t slot) const { return h(slot, 2); }

Decoder::Hold::Hold(Decoder& decoder, const int32_t* slots, int32_t count)
    : decoder_(decoder), slots_(slots), count_(count) {
    for (int32_t i = 0; i < count; ++i) {
        if (!decoder.held_[slots[i]].exchange(true, std::memory_order_acquire)) continue;
        release(i);
        throw Busy("slot " + std::to_string(slots[i]) + " is in use by another thread");
    }
}

Decoder::Hold::~Hold() { release(count_); }

void Decoder::Hold::release(int32_t count) {
    for (int32_t i = 0; i < count; ++i) decoder_.held_[slots_[i]].store(false, std::memory_order_release);
}

Decoder::Taken::Taken(Decoder& decoder, bool exclusive) {
    const auto& workspaces = decoder.workspaces_;
    for (size_t i = exclusive ? 0 : 1; i < workspaces.size(); ++i) {
        if (workspaces[i]->taken.exchange(true, std::memory_order_acquire)) continue;
        workspace = workspaces[i].get();
        shared = i == 0;
        return;
    }
    throw Busy(std::to_string(workspaces.size() - 1) + " calls are under way, one for each thread");
}

void Decoder::check_slot(int32_t slot) const {
    check("slot", slot, 0, static_cast<int64_t>(slots_.size()) - 1);
}

void Decoder::check_row(const gruve_row& row) const {
    const int64_t last = model_->vocabulary_size - 1, most = std::numeric_limits<int32_t>::max();
    check("position", row.position, 0, GRUVE_MAX_POSITION);
    check("the history's size", row.history_size, 1, GRUVE_HISTORY);
    check_all("history token", row.history, row.history_size, 0, last);
    check_all("forced token", row.forced, row.forced_size, 0, last);
    check_all("stop token", row.stop_ids, row.stop_ids_size, 0, last);
    check("max_tokens", row.max_tokens, 0, most);
    check("min_tokens", row.min_tokens, 0, most);
    check("generated", row.generated, 0, most);
    check("end_id", row.end_id, -1, last);
    check("logprobs", row.logprobs, -1, GRUVE_MAX_LOGPROBS);
    if (row.stop_table == nullptr) {
        check("stop_state", row.stop_state, 0, 0);
        return;
    }
    check("stop_states", row.stop_states, 1, MATCHED);
    check("stop_state", row.stop_state, 0, row.stop_states - 1);
    const int64_t entries = int64_t{row.stop_states} * model_->vocabulary_size;
    int32_t lowest = 0, highest = 0;
    for (int64_t i = 0; i < entries; ++i) {
        const int32_t state = row.stop_table[i] & ~MATCHED;
        lowest = std::min(lowest, state);
        highest = std::max(highest, state);
    }
    check("a stop table's next state", lowest < 0 ? lowest : highest, 0, row.stop_states - 1);
}

void Decoder::admit(int32_t slot, const gruve_row& row, const float* state) {
    check_slot(slot);
    check_row(row);
    const Hold hold(*this, &slot, 1);
    Slot next;
    next.sampling = checked(row.sampling, model_->vocabulary_size);
    next.occupied = true;
    next.parity = slots_[slot].parity;
    next.position = row.position;
    next.pending = row.history[row.history_size - 1];
    next.generated = row.generated;
    next.forced.assign(row.forced, row.forced + row.forced_size);
    next.max_tokens = row.max_tokens;
    next.min_tokens = row.min_tokens;
    next.end_id = row.end_id;
    next.stop_table = row.stop_table;
    next.stop_state = row.stop_state;
    next.logprobs = row.logprobs;
    if (row.ignore_eos && row.end_id >= 0) next.masked.push_back(row.end_id);
    next.masked_early = next.masked;
    if (row.end_id >= 0) next.masked_early.push_back(row.end_id);
    next.masked_early.insert(next.masked_early.end(), row.stop_ids, row.stop_ids + row.stop_ids_size);
    next.history.resize(GRUVE_HISTORY);
    next.known = static_cast<int32_t>(std::min<int64_t>(row.history_size, row.position + 1));
    for (int32_t age = 0; age < next.known; ++age)
        next.history[(row.position - age) & (GRUVE_HISTORY - 1)] = row.history[row.history_size - 1 - age];
    if (model_->pointers.size > 0) {
        next.pointers.begin(model_->pointers, model_->vocabulary_size);
        for (int32_t i = 0; i < next.known; ++i)
            next.pointers.feed(next.history.data(), row.position - next.known + 1 + i, i + 1);
    }

    const size_t H = model_->hidden_size, L = model_->num_layers;
    for (size_t l = 0; l < L; ++l)
        for (int32_t tensor = 0; tensor < model_->state_tensors(); ++tensor) {
            float* to = (tensor == 0 ? h(slot, next.parity) : c(slot)) + l * model_->padded_size;
            if (state == nullptr) {
                std::memset(to, 0, H * sizeof(float));
            } else {
                std::memcpy(to, state + (tensor * L + l) * H, H * sizeof(float));
            }
        }
    slots_[slot] = std::move(next);
}

void Decoder::snapshot(int32_t slot, float* state) {
    check_slot(slot);
    const Hold hold(*this, &slot, 1);
    const size_t H = model_->hidden_size, L = model_->num_layers;
    for (size_t l = 0; l < L; ++l)
        for (int32_t tensor = 0; tensor < model_->state_tensors(); ++tensor) {
            const float* from = (tensor == 0 ? h(slot, slots_[slot].parity) : c(slot)) + l * model_->padded_size;
            std::memcpy(state + (tensor * L + l) * H, from, H * sizeof(float));
        }
}

void Decoder::release(int32_t slot) {
    check_slot(slot);
    const Hold hold(*this, &slot, 1);
    Slot empty;
    empty.parity = slots_[slot].parity;
    slots_[slot] = std::move(empty);
}

void Decoder::check_call(const gruve_call& call) const {
    check("rows", call.rows, 1, GRUVE_MAX_ROWS);
    check("steps", call.steps, 1, GRUVE_MAX_STEPS);
    check_all("slot", call.slots, call.rows, 0, static_cast<int64_t>(slots_.size()) - 1);
    check_all("limit", call.limits, call.rows, 0, std::numeric_limits<int32_t>::max());
    check("alternatives", call.alternatives, 0, GRUVE_MAX_LOGPROBS);
    check_present("tokens", call.tokens);
    check_present("steps_taken", call.steps_taken);
    check_present("statuses", call.statuses);
    for (int32_t i = 0; i < call.rows; ++i)
        if (std::find(call.slots, call.slots + i, call.slots[i]) != call.slots + i)
            throw std::invalid_argument("slot " + std::to_string(call.slots[i]) + " is given twice");
}

// The checks that depend on the content of the slots. The caller must have reserved the slots.
void Decoder::check_slots(const gruve_call& call) const {
    for (int32_t i = 0; i < call.rows; ++i) {
        const Slot& slot = slots_[call.slots[i]];
        if (!slot.occupied)
            throw std::invalid_argument("slot " + std::to_string(call.slots[i]) + " holds no sequence");
        if (slot.logprobs < 0) continue;
        check("a row's logprobs", slot.logprobs, 0, call.alternatives);
        check_present("chosen", call.chosen);
        if (call.alternatives == 0) continue;
        check_present("top_ids", call.top_ids);
        check_present("top", call.top);
    }
}

void Decoder::decode(const gruve_call& call) {
    check_call(call);
    const Hold hold(*this, call.slots, call.rows);
    check_slots(call);
    const Taken taken(*this, call.exclusive != 0);
    std::fill_n(call.tokens, static_cast<size_t>(call.rows) * call.steps, -1);
    std::fill_n(call.steps_taken, call.rows, 0);
    std::fill_n(call.statuses, call.rows, 0);
    const size_t cells = static_cast<size_t>(call.rows) * call.steps;
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    if (call.chosen) std::fill_n(call.chosen, cells, nan);
    if (call.top_ids) std::fill_n(call.top_ids, cells * call.alternatives, -1);
    if (call.top) std::fill_n(call.top, cells * call.alternatives, nan);
    taken.workspace->last_rows = call.rows;
    last_.store(taken.workspace, std::memory_order_relaxed);
    Call job(*this, call, *taken.workspace, taken.shared ? pool_->threads() : 1);
    if (taken.shared) {
        pool_->run(job, job.is_small());
    } else {
        run_alone(job);
    }
}

void Decoder::last_logits(int32_t row, float* out) const {
    const Workspace* last = last_.load(std::memory_order_relaxed);
    check("row", row, 0, last == nullptr ? -1 : last->last_rows - 1);
    std::memcpy(out, last->logits(row), sizeof(float) * model_->vocabulary_size);
}

}  // namespace gruve
