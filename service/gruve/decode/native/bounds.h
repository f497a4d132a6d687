// Checks of the values that come through the ABI. They throw std::invalid_argument and quote value and bound.

#ifndef GRUVE_NATIVE_BOUNDS_H
#define GRUVE_NATIVE_BOUNDS_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace gruve {

inline void check(const char* what, int64_t value, int64_t least, int64_t most) {
    if (least <= value && value <= most) return;
    throw std::invalid_argument(
        std::string(what) + " " + std::to_string(value) + " is not between " + std::to_string(least) + " and " +
        std::to_string(most));
}

// A number as an error quotes it: different floats have different texts.
inline std::string quoted(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}

inline void check_positive(const char* what, float value) {
    if (value > 0.0f && std::isfinite(value)) return;
    throw std::invalid_argument(std::string(what) + " " + quoted(value) + " is not positive and finite");
}

inline void check_present(const char* what, const void* pointer) {
    if (pointer == nullptr) throw std::invalid_argument(std::string(what) + " is missing");
}

inline void check_all(const char* what, const int32_t* values, int64_t count, int64_t least, int64_t most) {
    constexpr int64_t MOST = int64_t{1} << 30;
    if (count < 0 || count > MOST)
        check((std::string("the size of the array of each ") + what).c_str(), count, 0, MOST);
    if (count > 0) check_present(what, values);
    for (int64_t i = 0; i < count; ++i) check(what, values[i], least, most);
}

}  // namespace gruve

#endif
