// Slots with a sequence each, and calls of several steps for some of them: what gruve.engine.decode.Backend promises.

#ifndef GRUVE_NATIVE_DECODER_H
#define GRUVE_NATIVE_DECODER_H

#include <cstdint>
#include <memory>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "model.h"
#include "pool.h"
#include "sampling.h"

namespace gruve {

constexpr int32_t MATCHED = 1 << 30;  // gruve.engine.stops.MATCHED

// gruve.engine.decode.Reason: why a row froze.
enum class Reason : int32_t { running = 0, stop = 1, end_of_sequence = 2, length = 3 };

struct Slot {
    bool occupied = false;
    int32_t parity = 0;  // which of the two copies of the state is the present one
    int32_t pending = 0;
    int64_t position = 0;
    int32_t drawn = 0;
    std::vector<int32_t> forced;
    size_t forced_at = 0;
    int32_t max_tokens = 0;
    int32_t min_tokens = 0;
    int32_t end_id = -1;
    const int32_t* stop_table = nullptr;
    int32_t stop_state = 0;
    int32_t logprobs = -1;
    SamplingParameters sampling;
    std::vector<int32_t> masked;        // never drawn
    std::vector<int32_t> masked_early;  // nor these before `min_tokens`
    std::vector<int32_t> history;       // by position modulo 1024
    int32_t known = 0;                  // how many of the last tokens `history` has
};

class Decoder {
public:
    Decoder(std::shared_ptr<const Model> model, int32_t slots, int32_t threads);
    ~Decoder();
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // All of these throw std::invalid_argument and have then changed nothing.
    void admit(int32_t slot, const gruve_row& row, const float* state);
    void decode(const gruve_call& call);
    void snapshot(int32_t slot, float* state) const;
    void release(int32_t slot);
    void last_logits(int32_t row, float* logits) const;

    const Model& model() const { return *model_; }
    // Whether this is a child of the process that made the decoder.
    bool forked() const { return pool_->forked(); }

private:
    friend class Call;

    // One slot's states: two copies of h, for a step reads the old ones while it writes the new; then c.
    float* h(int32_t slot, int32_t parity) const;
    float* c(int32_t slot) const;
    float* scratch(int32_t row) const;
    float* logits(int32_t row) const;
    void check_slot(int32_t slot) const;
    void check_row(const gruve_row& row) const;
    void check_call(const gruve_call& call) const;

    const std::shared_ptr<const Model> model_;
    const size_t layer_floats_;  // of one state tensor
    const size_t slot_floats_;
    std::vector<Slot> slots_;
    Pages states_;
    Pages rows_;  // per row of a call: scratch, then logits
    std::vector<Scratch> scratches_;
    std::unique_ptr<Pool> pool_;
    int32_t last_rows_ = 0;
};

}  // namespace gruve

#endif
