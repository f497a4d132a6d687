// Measures the limits of this CPU, to compare with a decode step in benchmarks. Decoding does not use it.

#ifndef GRUVE_NATIVE_PROBE_H
#define GRUVE_NATIVE_PROBE_H

#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif

// Each function runs on the calling thread for about `seconds` and returns a rate; 0 if `isa` is not one of gruve_isa's
// names or this CPU does not have it.

// Floating-point operations per second: independent chains of fused multiply-adds in registers, two operations per
// lane.
GRUVE_EXPORT double gruve_probe_fma(const char* isa, double seconds);

// Bytes per second, reading `bytes` of memory repeatedly in whole vectors. `pattern` 0 reads it from start to end, 1
// reads eight parts side by side, 2 reads from start to end with prefetches. Returns 0 if the memory is not available.
GRUVE_EXPORT double gruve_probe_read(const char* isa, size_t bytes, int32_t pattern, double seconds);

// Clock cycles per second: a chain of operations that take one cycle each and depend on the one before.
GRUVE_EXPORT double gruve_probe_clock(double seconds);

#ifdef __cplusplus
}
#endif

#endif
