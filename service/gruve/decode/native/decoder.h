// The slots, each with a sequence, and calls of several steps for some of them: gruve.decode.Backend in C++.

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

// gruve.decode.RowStatus.
enum class RowStatus : int32_t { running = 0, stop = 1, end_of_sequence = 2, length = 3 };

struct Slot {
    bool occupied = false;
    int32_t parity = 0;  // which of the two copies of the state is current
    int32_t pending = 0;
    int64_t position = 0;
    int64_t generated = 0;  // may pass `max_tokens`, which is 32 bits: a row that has ended can be decoded again
    std::vector<int32_t> forced;
    size_t forced_at = 0;
    int32_t max_tokens = 0;
    int32_t min_tokens = 0;
    int32_t end_id = -1;
    const int32_t* stop_table = nullptr;
    int32_t stop_state = 0;
    int32_t logprobs = -1;
    SamplingParameters sampling;
    std::vector<int32_t> masked;        // never sampled
    std::vector<int32_t> masked_early;  // not sampled before `min_tokens` are generated
    std::vector<int32_t> history;       // by position modulo 1024
    int32_t known = 0;                  // the number of tokens in `history`
    PointerTracker pointers;            // for a model with pointers: their state at the pending token
};

// Thrown if a slot or all workspaces are in use by other threads.
struct Busy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The buffers of one call. Several calls, each with its own, may be under way at once.
struct Workspace {
    Workspace(const Model& model, int32_t threads);
    // The bytes that it takes. The model may have been laid out only.
    static size_t bytes(const Model& model, int32_t threads);

    float* scratch(int32_t row) const { return rows.at<float>(row_floats * row * sizeof(float)); }
    float* logits(int32_t row) const { return scratch(row) + logits_offset; }
    uint8_t* int8_inputs(int32_t row) const { return reinterpret_cast<uint8_t*>(logits(row) + logits_stride); }

    // Layer 0's input, for a model with pointers.
    float* input(int32_t row) const { return scratch(row) + input_offset; }

    size_t row_floats;
    size_t logits_offset;
    size_t logits_stride;
    size_t input_offset;
    // Per row of a call: three buffers of the layer's size, logits, two inputs of int8 products, and layer 0's input.
    Pages rows;
    std::vector<Scratch> scratches;  // one per thread
    std::vector<Pages> wide;         // one per thread: fp16 weights as fp32
    std::atomic<bool> taken{false};
    int32_t last_rows = 0;
};

class Decoder {
public:
    Decoder(std::shared_ptr<const Model> model, int32_t slots, int32_t threads);
    ~Decoder();
    // The bytes that a decoder takes when every slot has a sequence, without prompts and what belongs to requests. The
    // model may have been laid out only. Throws std::invalid_argument like the constructor.
    static size_t bytes(const Model& model, int32_t slots, int32_t threads);
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    // Several threads may call these at once. They throw std::invalid_argument, or Busy if another thread uses the
    // slot. If they throw, they have changed nothing.
    void admit(int32_t slot, const gruve_row& row, const float* state);
    void decode(const gruve_call& call);
    void snapshot(int32_t slot, float* state);
    void release(int32_t slot);
    void last_logits(int32_t row, float* logits) const;

    const Model& model() const { return *model_; }
    // Whether this process is a forked child of the process that made the decoder.
    bool forked() const { return pool_->forked(); }

private:
    friend class Call;

    // Reserves slots for the calling thread.
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

    // Takes a free workspace. An exclusive call takes the one that the pool's threads share, if it is free.
    class Taken {
    public:
        Taken(Decoder& decoder, bool exclusive);
        ~Taken() { workspace->taken.store(false, std::memory_order_release); }
        Taken(const Taken&) = delete;
        Taken& operator=(const Taken&) = delete;

        Workspace* workspace = nullptr;
        bool shared = false;
    };

    // One slot's states: two copies of h, because a step reads the old one while it writes the new one; then c.
    float* h(int32_t slot, int32_t parity) const;
    float* c(int32_t slot) const;
    void check_slot(int32_t slot) const;
    void check_row(const gruve_row& row) const;
    void check_call(const gruve_call& call) const;
    void check_slots(const gruve_call& call) const;

    const std::shared_ptr<const Model> model_;
    const size_t layer_floats_;  // the floats of one layer of one state tensor
    const size_t slot_floats_;
    std::vector<Slot> slots_;
    Pages states_;
    std::unique_ptr<std::atomic<bool>[]> held_;  // one per slot
    // A call in the first one is split over the pool's threads; calls in the others run on their caller's thread.
    std::vector<std::unique_ptr<Workspace>> workspaces_;
    std::atomic<const Workspace*> last_{nullptr};
    std::unique_ptr<Pool> pool_;
};

}  // namespace gruve

#endif
