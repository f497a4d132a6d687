// Sets the CPU's floating-point control register for a scope and restores it afterwards.

#ifndef GRUVE_NATIVE_FLOAT_CONTROL_H
#define GRUVE_NATIVE_FLOAT_CONTROL_H

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gruve {

// Rounds to nearest and disables traps, whatever the caller had set. `flush` makes denormals zero, because decaying
// states would otherwise slow every product down. `ieee` keeps them, because sampling is defined in plain IEEE
// arithmetic.
enum class Denormals { flush, ieee };

class FloatControl {
public:
    explicit FloatControl(Denormals denormals) {
#if defined(__x86_64__)
        saved_ = _mm_getcsr();
        _mm_setcsr(denormals == Denormals::flush ? 0x9FC0u : 0x1F80u);  // masks, and FTZ with DAZ
#elif defined(__aarch64__)
        uint64_t control = denormals == Denormals::flush ? uint64_t{1} << 24 : 0;  // FPCR.FZ
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(control));
#else
        (void)denormals;
#endif
    }
    ~FloatControl() {
#if defined(__x86_64__)
        _mm_setcsr(saved_);
#elif defined(__aarch64__)
        asm volatile("msr fpcr, %0" : : "r"(saved_));
#endif
    }
    FloatControl(const FloatControl&) = delete;
    FloatControl& operator=(const FloatControl&) = delete;

private:
#if defined(__x86_64__)
    uint32_t saved_ = 0;
#elif defined(__aarch64__)
    uint64_t saved_ = 0;
#endif
};

}  // namespace gruve

#endif
