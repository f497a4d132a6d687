// Checks of the values that come through the ABI. They throw std::invalid_argument and quote value and bound.

#ifndef GRUVE_NATIVE_BOUNDS_H
#define GRUVE_NATIVE_BOUNDS_H

#include <cstdint>
#include <stdexcept>
#include <string>

namespace gruve {

inline void check(const char* what, int64_t value, int64_t least, int64_t most) {
    if (least <= value && value <= most) return;
    throw std::invalid_argument(
        std::string(what) + " " + std::to_string(value) + " is not between " + std::to_string(least) + " and " +
        std::to_string(most));
}

inline void check_present(const char* what, const void* pointer) {
    if (pointer == nullptr) throw std::invalid_argument(std::string(what) + " is missing");
}

inline void check_all(const char* what, const int32_t* values, int64_t count, int64_t least, int64_t most) {
    check("an array's size", count, 0, int64_t{1} << 30);
    if (count > 0) check_present(what, values);
    for (int64_t i = 0; i < count; ++i) check(what, values[i], least, most);
}

}  // namespace gruve

#endif
