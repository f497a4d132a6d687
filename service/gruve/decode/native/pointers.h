// The pointers of a transcript, token by token: gruve.model.pointers.point, computed incrementally.

#ifndef GRUVE_NATIVE_POINTERS_H
#define GRUVE_NATIVE_POINTERS_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "abi.h"

namespace gruve {

constexpr int32_t MAX_BAR_DISTANCE = 64;

// gruve.model.pointers.PointerConfig. A size of 0 is a model without pointers.
struct PointerSpec {
    int32_t size = 0;  // K: the bar distances, then the follower lengths, then the transposed distances
    std::vector<int32_t> bars;
    std::vector<int32_t> followers;
    std::vector<int32_t> transposed;
    std::vector<int32_t> scale;
    std::vector<int32_t> steps;     // (V,): each token's place in the scale, -1 for none
    std::vector<int32_t> kinds;     // (V,): a gruve_token_kind each
    std::vector<int32_t> advances;  // (V,)
    bool has_bars = false;
    int32_t start_token = -1;
    int32_t place_step = 1;
    int32_t places = 0;
    int32_t counts = 0;
    int32_t matches = 0;
    int32_t longest = 0;  // the longest match that a pointer or a match row distinguishes
};

// Throws std::invalid_argument for a value out of bounds. `pointers` may be null.
PointerSpec checked(const gruve_pointers* pointers, int32_t vocabulary_size);

// gruve.model.pointers.Pointed; a pointer that names no token has `token` V and `match` 0.
struct Pointed {
    int32_t tokens[GRUVE_MAX_POINTERS] = {};
    int32_t matches[GRUVE_MAX_POINTERS] = {};
    int32_t place_row = 0;
    int32_t count_row = 0;
};

// Follows one transcript, whose last tokens are in the slot's ring, by position modulo 1024.
//
// Its results depend on the window only. A tracker that has read the window's tokens and one that has read the whole
// transcript return the same, because tokens before `start_` are never used.
class PointerTracker {
public:
    // Forgets everything; `spec` must outlive the tracker.
    void begin(const PointerSpec& spec, int32_t vocabulary_size);
    // Takes the token at `position`. The ring holds it and the `known` - 1 tokens before it, at most 1,024 together.
    void feed(const int32_t* ring, int64_t position, int32_t known);

    const Pointed& pointed() const { return pointed_; }
    // The bytes that one takes beside itself.
    static constexpr size_t bytes() {
        return GRUVE_HISTORY * (sizeof(int32_t) + sizeof(int16_t)) + MAX_BAR_DISTANCE * sizeof(Bar);
    }

private:
    struct Bar {
        int64_t opening;
        int64_t close;
        int64_t part;
    };

    void feed_bars(int32_t token);
    int32_t count() const;
    const Bar* bar_ago(int32_t distance) const;
    int64_t same_place(const int32_t* ring, int32_t distance) const;
    int64_t agreeing(const int32_t* ring, int32_t distance) const;
    void transpose(const int32_t* ring, int32_t pointer, int64_t at);
    void find_followers(const int32_t* ring);
    int32_t match(const int32_t* ring, int64_t at, int32_t most) const;
    void point(const int32_t* ring, int32_t pointer, int64_t at, int32_t matched);

    const PointerSpec* spec_ = nullptr;
    int32_t none_ = 0;
    std::vector<int32_t> places_;  // by position modulo 1024
    std::vector<int16_t> links_;   // likewise: the distance back to the same token, 0 if it is not in the window
    std::vector<Bar> completed_;   // the last of them, by number modulo MAX_BAR_DISTANCE
    int64_t completed_count_ = 0;
    int64_t part_ = 0;
    int64_t opening_ = 0;          // of the bar that is open, if one is
    bool open_ = false;
    int32_t place_ = 0;
    int64_t position_ = 0;
    int64_t start_ = 0;            // the position of the window's first token
    int64_t restart_ = 0;          // the position of the last start token, or where the transcript begins
    Pointed pointed_;
};

}  // namespace gruve

#endif
