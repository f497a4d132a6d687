// Conversion to fp16.

#ifndef GRUVE_NATIVE_FP16_H
#define GRUVE_NATIVE_FP16_H

#include <cstdint>
#include <cstring>

namespace gruve {

// Writes the bits of `value` in fp16. Returns false, and writes nothing, if fp16 does not hold it exactly.
inline bool to_half(float value, uint16_t& half) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xFFu) - 127;
    const uint32_t mantissa = bits & 0x7FFFFFu;
    if ((bits & 0x7FFFFFFFu) == 0) {
        half = sign;
    } else if (exponent >= -14 && exponent <= 15) {
        if (mantissa & 0x1FFFu) return false;
        half = static_cast<uint16_t>(sign | (exponent + 15) << 10 | mantissa >> 13);
    } else if (exponent >= -24 && exponent < -14) {
        const int32_t shift = -1 - exponent;  // a subnormal counts steps of 2**-24
        const uint32_t whole = mantissa | 0x800000u;
        if (whole & ((1u << shift) - 1)) return false;
        half = static_cast<uint16_t>(sign | whole >> shift);
    } else {
        return false;
    }
    return true;
}

}  // namespace gruve

#endif
