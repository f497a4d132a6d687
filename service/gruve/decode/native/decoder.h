// Slots with a sequence each, and calls of several steps for some of them: what gruve.decode.Backend promises.

#ifndef GRUVE_NATIVE_DECODER_H
#define GRUVE_NATIVE_DECODER_H

#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "model.h"
#include "pointers.h"
#include "pool.h"
#include "sampling.h"

namespace gruve {

constexpr int32_t MATCHED = 1 << 30;  // gruve.decode.stops.MATCHED

// gruve.decode.Reason: why a row froze.
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
    PointerTracker pointers;            // at the pending token, for a model with pointers
};

// A slot, or everything that can decode, is in use by another thread.
struct Busy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What one call computes in: several may be under way at a time.
struct Workplace {
    Workplace(const Model& model, int32_t threads);

    float* scratch(int32_t row) const { return rows.at<float>(row_floats * row * sizeof(float)); }
    float* logits(int32_t row) const { return scratch(row) + logits_offset; }
    int16_t* whole(int32_t row) const { return reinterpret_cast<int16_t*>(logits(row) + logits_stride); }

    // Layer 0's input where pointers make it.
    float* input(int32_t row) const { return scratch(row) + input_offset; }

    size_t row_floats;
    size_t logits_offset;
    size_t logits_stride;
    size_t input_offset;
    // Per row of a call: three of the layer's size, logits, two inputs of int16 products, and layer 0's input.
    Pages rows;
    std::vector<Scratch> scratches;  // one a thread
    std::vector<Pages> wide;         // one a thread: weights of fp16 as fp32
    std::atomic<bool> taken{false};
    int32_t last_rows = 0;
};

class Decoder {
public:
    Decoder(std::shared_ptr<const Model> model, int32_t slots, int32_t threads);
    ~Decoder();
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // All of these may be called by several threads at a time. They throw std::invalid_argument, or Busy where another
    // thread uses the slot, and have then changed nothing.
    void admit(int32_t slot, const gruve_row& row, const float* state);
    void decode(const gruve_call& call);
    void snapshot(int32_t slot, float* state);
    void release(int32_t slot);
    void last_logits(int32_t row, float* logits) const;

    const Model& model() const { return *model_; }
    // Whether this is a child of the process that made the decoder.
    bool forked() const { return pool_->forked(); }

private:
    friend class Call;

    // Holds slots against other threads.
    class Hold {
    public:
        Hold(Decoder& decoder, const int32_t* slots, int32_t count);
        ~Hold();
        Hold(const Hold&) = delete;
        Hold& operator=(const Hold&) = delete;

    private:
        void release(int32_t count);
        Decoder& decoder_;
        const int32_t* slots_;
        int32_t count_;
    };

    // Takes a workplace that is free, the shared one if it may.
    class Taken {
    public:
        Taken(Decoder& decoder, bool alone);
        ~Taken() { place->taken.store(false, std::memory_order_release); }
        Taken(const Taken&) = delete;
        Taken& operator=(const Taken&) = delete;

        Workplace* place = nullptr;
        bool shared = false;
    };

    // One slot's states: two copies of h, for a step reads the old ones while it writes the new; then c.
    float* h(int32_t slot, int32_t parity) const;
    float* c(int32_t slot) const;
    void check_slot(int32_t slot) const;
    void check_row(const gruve_row& row) const;
    void check_call(const gruve_call& call) const;
    void check_slots(const gruve_call& call) const;

    const std::shared_ptr<const Model> model_;
    const size_t layer_floats_;  // of one state tensor
    const size_t slot_floats_;
    std::vector<Slot> slots_;
    Pages states_;
    std::unique_ptr<std::atomic<bool>[]> held_;  // one a slot
    // The first one's calls are shared out over the pool's threads, the others' run on their caller's thread.
    std::vector<std::unique_ptr<Workplace>> workplaces_;
    std::atomic<const Workplace*> last_{nullptr};
    std::unique_ptr<Pool> pool_;
};

}  // namespace gruve

#endif
