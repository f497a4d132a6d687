// What this CPU can do at most, for benchmarks to hold a step against. Decoding knows nothing of it.

#ifndef GRUVE_NATIVE_PROBE_H
#define GRUVE_NATIVE_PROBE_H

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each works on the calling thread for about `seconds` and returns a rate; 0 where `isa` is not one of gruve_isa's
// names or this CPU has it not.

// Floating-point operations a second: independent chains of fused multiply-adds, two operations a lane, in registers.
GRUVE_EXPORT double gruve_probe_fma(const char* isa, double seconds);

// Bytes a second, reading `bytes` of memory over and over in whole vectors. `pattern` 0 goes through it from end to
// end, 1 through eight parts side by side, 2 from end to end with prefetches ahead. 0 where there is not the memory.
GRUVE_EXPORT double gruve_probe_read(const char* isa, size_t bytes, int32_t pattern, double seconds);

// Clock cycles a second: a chain of operations that each take one cycle and wait for the one before.
GRUVE_EXPORT double gruve_probe_clock(double seconds);

#ifdef __cplusplus
}
#endif

#endif
