#include "pointers.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "bounds.h"

namespace gruve {
namespace {

constexpr int64_t BAR_TOKENS = 256;  // tokens of a bar that have a place
constexpr int32_t UNKNOWN = std::numeric_limits<int32_t>::min();
constexpr int64_t RING = GRUVE_HISTORY - 1;
constexpr int32_t MAX_TRANSPOSED = 32;  // tokens of a transposed bar that are compared

std::vector<int32_t> copied(const char* what, const int32_t* values, int32_t count, int64_t least, int64_t most) {
    check_all(what, values, count, least, most);
    return count > 0 ? std::vector<int32_t>(values, values + count) : std::vector<int32_t>();
}

}  // namespace

PointerSpec checked(const gruve_pointers* given, int32_t vocabulary_size) {
    PointerSpec spec;
    if (given == nullptr) return spec;
    check("bars", given->bars_size, 0, GRUVE_MAX_POINTERS);
    check("followers", given->followers_size, 0, GRUVE_MAX_POINTERS);
    check("transposed", given->transposed_size, 0, GRUVE_MAX_POINTERS);
    spec.size = given->bars_size + given->followers_size + given->transposed_size;
    check("pointers", spec.size, 1, GRUVE_MAX_POINTERS);
    spec.bars = copied("a bar distance", given->bars, given->bars_size, 1, MAX_BAR_DISTANCE);
    spec.followers = copied("a follower length", given->followers, given->followers_size, 1, 32);
    spec.transposed = copied("a transposed bar's distance", given->transposed, given->transposed_size, 1, MAX_BAR_DISTANCE);
    check("the scale's size", given->scale_size, spec.transposed.empty() ? 0 : 2, vocabulary_size);
    spec.scale = copied("a token of the scale", given->scale, given->scale_size, 0, vocabulary_size - 1);
    spec.steps.assign(vocabulary_size, -1);
    for (size_t step = 0; step < spec.scale.size(); ++step) spec.steps[spec.scale[step]] = static_cast<int32_t>(step);
    spec.kinds = copied("a token's kind", given->kinds, vocabulary_size, GRUVE_PLAIN_TOKEN, GRUVE_PART_TOKEN);
    spec.advances = copied("an advance", given->advances, vocabulary_size, -1000, 1000);
    spec.start_token = given->start_token;
    check("start_token", spec.start_token, -1, vocabulary_size - 1);
    spec.place_step = given->place_step;
    check("place_step", spec.place_step, 1, 1000);
    spec.places = given->places;
    check("places", spec.places, 0, 256);
    spec.counts = given->counts;
    check("counts", spec.counts, 0, MAX_BAR_DISTANCE);
    spec.matches = given->matches;
    check("matches", spec.matches, 0, 32);
    spec.has_bars = !spec.bars.empty() || !spec.transposed.empty() || spec.places > 0 || spec.counts > 0;
    spec.longest = std::max(spec.matches - 1, 0);
    for (const int32_t length : spec.followers) spec.longest = std::max(spec.longest, length);
    check_present("the pointers' rows", given->weight);
    check_present("the pointers' gates", given->gate);
    check_present("the pointers' gate biases", given->gate_bias);
    if (spec.matches > 0) check_present("the match rows", given->match);
    if (spec.places > 0) check_present("the place rows", given->place);
    if (spec.counts > 0) check_present("the count rows", given->count);
    return spec;
}

void PointerTracker::begin(const PointerSpec& spec, int32_t vocabulary_size) {
    *this = PointerTracker();
    spec_ = &spec;
    none_ = vocabulary_size;
    places_.assign(GRUVE_HISTORY, UNKNOWN);
    links_.assign(GRUVE_HISTORY, 0);
    completed_.resize(MAX_BAR_DISTANCE);
    restart_ = std::numeric_limits<int64_t>::min();
}

void PointerTracker::feed(const int32_t* ring, int64_t position, int32_t known) {
    const int32_t token = ring[position & RING];
    position_ = position;
    if (token == spec_->start_token) {
        restart_ = position;
        completed_count_ = part_ = 0;
    }
    start_ = std::max(restart_, position - known + 1);
    int64_t before = position - 1;
    while (before >= start_ && ring[before & RING] != token) --before;
    links_[position & RING] = static_cast<int16_t>(before >= start_ ? position - before : 0);
    if (spec_->has_bars) feed_bars(token);

    int32_t pointer = 0;
    for (const int32_t distance : spec_->bars) {
        const int64_t at = same_place(ring, distance);
        point(ring, pointer++, at, at < 0 ? 0 : match(ring, at, spec_->matches - 1));
    }
    find_followers(ring);
    pointer += static_cast<int32_t>(spec_->followers.size());
    for (const int32_t distance : spec_->transposed) transpose(ring, pointer++, agreeing(ring, distance));
    pointed_.place_row = 0;
    if (spec_->places > 0) {
        const int32_t step = spec_->place_step, last = spec_->places - 1;
        pointed_.place_row = place_ == UNKNOWN ? last : std::min(std::max(place_, 0) / step, last);
    }
    pointed_.count_row = spec_->counts > 0 ? std::min(count(), spec_->counts - 1) : 0;
}

void PointerTracker::feed_bars(int32_t token) {
    const int32_t kind = spec_->kinds[token];
    if (kind != GRUVE_PLAIN_TOKEN) {
        if (open_ && opening_ >= start_ && (place_ == UNKNOWN || place_ > 0))
            completed_[completed_count_++ % MAX_BAR_DISTANCE] = {opening_, position_, part_};
        if (kind == GRUVE_PART_TOKEN) ++part_;
    }
    if (kind != GRUVE_PLAIN_TOKEN || token == spec_->start_token) {
        open_ = true;
        opening_ = position_;
        place_ = 0;
    } else if (!open_ || position_ - opening_ >= BAR_TOKENS) {
        place_ = UNKNOWN;
    } else {
        place_ += spec_->advances[token];
    }
    places_[position_ & RING] = place_;
}

// The number of completed bars of this part in the window, at most the last row of the table.
int32_t PointerTracker::count() const {
    int32_t found = 0;
    while (found < std::min<int64_t>(completed_count_, spec_->counts)) {
        const Bar& bar = completed_[(completed_count_ - 1 - found) % MAX_BAR_DISTANCE];
        if (bar.part != part_ || bar.opening < start_) break;
        ++found;
    }
    return found;
}

// The bar in which a token may have the present place, `distance` bars ago; null if there is none.
const PointerTracker::Bar* PointerTracker::bar_ago(int32_t distance) const {
    if (place_ == UNKNOWN || completed_count_ < distance) return nullptr;
    const Bar& bar = completed_[(completed_count_ - distance) % MAX_BAR_DISTANCE];
    return bar.opening < start_ ? nullptr : &bar;
}

// The position at the present place, `distance` bars ago: the first with the present token, else the first, else -1.
int64_t PointerTracker::same_place(const int32_t* ring, int32_t distance) const {
    const Bar* bar = bar_ago(distance);
    if (bar == nullptr) return -1;
    const int32_t token = ring[position_ & RING];
    const int64_t end = std::min(bar->close, bar->opening + BAR_TOKENS);
    int64_t first = -1;
    for (int64_t at = bar->opening; at < end; ++at) {
        if (places_[at & RING] != place_) continue;
        if (ring[at & RING] == token) return at;
        if (first < 0) first = at;
    }
    return first;
}

// The first position at the present place, `distance` bars ago, whose token is the present one, or of the scale as it is.
int64_t PointerTracker::agreeing(const int32_t* ring, int32_t distance) const {
    const Bar* bar = bar_ago(distance);
    if (bar == nullptr) return -1;
    const int32_t token = ring[position_ & RING];
    const bool in_scale = spec_->steps[token] >= 0;
    const int64_t end = std::min(bar->close, bar->opening + BAR_TOKENS);
    for (int64_t at = bar->opening; at < end; ++at) {
        const int32_t there = ring[at & RING];
        if (places_[at & RING] == place_ && (there == token || (in_scale && spec_->steps[there] >= 0))) return at;
    }
    return -1;
}

// Names the token after `at`, moved along the scale as far as the tokens up to the present one are from those up to `at`.
void PointerTracker::transpose(const int32_t* ring, int32_t pointer, int64_t at) {
    point(ring, pointer, -1, 0);
    if (at < 0) return;
    const auto& steps = spec_->steps;
    int32_t moved = 0, length = 0;
    bool known = false;
    for (; length < MAX_TRANSPOSED && at - length >= start_; ++length) {
        const int32_t there = ring[(at - length) & RING], here = ring[(position_ - length) & RING];
        if (steps[there] >= 0 && steps[here] >= 0) {
            const int32_t distance = steps[here] - steps[there];
            if (known && distance != moved) break;
            known = true;
            moved = distance;
        } else if (there != here) {
            break;
        }
    }
    if (moved == 0) return;
    int32_t named = ring[(at + 1) & RING];
    if (steps[named] >= 0) {
        const int32_t step = steps[named] + moved;
        if (step < 0 || step >= static_cast<int32_t>(spec_->scale.size())) return;
        named = spec_->scale[step];
    }
    pointed_.tokens[pointer] = named;
    pointed_.matches[pointer] = std::min(length, std::max(spec_->matches - 1, 0));
}

// Walks back over the occurrences of the present token. For each follower length, the first one whose match is long
// enough is the last occurrence of that many tokens.
void PointerTracker::find_followers(const int32_t* ring) {
    const auto& lengths = spec_->followers;
    const int32_t first = static_cast<int32_t>(spec_->bars.size()), count = static_cast<int32_t>(lengths.size());
    if (count == 0) return;
    uint32_t open = (1u << count) - 1;
    int64_t at = position_;
    while (open != 0) {
        const int32_t link = links_[at & RING];
        at -= link;
        if (link == 0 || at < start_) break;
        const int32_t matched = match(ring, at, spec_->longest);
        for (int32_t i = 0; i < count; ++i) {
            if ((open >> i & 1) == 0 || matched < lengths[i]) continue;
            point(ring, first + i, at, std::min(matched, std::max(spec_->matches - 1, 0)));
            open &= ~(1u << i);
        }
    }
    for (int32_t i = 0; i < count; ++i)
        if (open >> i & 1) point(ring, first + i, -1, 0);
}

// The number of equal tokens when going backwards from `at` and from the present token, at most `most`.
int32_t PointerTracker::match(const int32_t* ring, int64_t at, int32_t most) const {
    int32_t equal = 0;
    while (equal < most && at - equal >= start_ && ring[(at - equal) & RING] == ring[(position_ - equal) & RING]) ++equal;
    return equal;
}

// A position of -1 means none.
void PointerTracker::point(const int32_t* ring, int32_t pointer, int64_t at, int32_t matched) {
    pointed_.tokens[pointer] = at < 0 ? none_ : ring[(at + 1) & RING];
    pointed_.matches[pointer] = matched;
}

}  // namespace gruve
