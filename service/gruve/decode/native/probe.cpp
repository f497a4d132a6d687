#include "probe.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <new>

#include "memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr int64_t ROUNDS = 20000;  // between two readings of the clock: more than ten microseconds

struct Work {
    double amount;  // the operations or bytes of ROUNDS rounds
    float sink;     // keeps the compiler from removing the work
};

volatile float sunk;

// Repeats `round` for about `seconds` and returns its amount per second.
template <class Round>
double rate(double seconds, Round round) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    double amount = 0, elapsed = 0;
    do {
        const Work work = round();
        amount += work.amount;
        sunk = work.sink;
        elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    } while (elapsed < seconds);
    return amount / elapsed;
}

// Twelve chains are more than enough to cover a latency of four cycles on each of two ports, and leave registers for
// the operands. The factor is below 1, so that the sums converge and never become denormal.

#if defined(__x86_64__)
__attribute__((target("avx512f"))) Work fma_avx512() {
    const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
    __m512 sum[12];
    for (int i = 0; i < 12; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
    for (int64_t n = 0; n < ROUNDS; ++n) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) sum[i] = _mm512_fmadd_ps(sum[i], a, b);
    }
    for (int i = 1; i < 12; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return {2.0 * 16 * 12 * ROUNDS, _mm512_cvtss_f32(sum[0])};
}

__attribute__((target("avx2,fma"))) Work fma_avx2() {
    const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
    __m256 sum[12];
    for (int i = 0; i < 12; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
    for (int64_t n = 0; n < ROUNDS; ++n) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) sum[i] = _mm256_fmadd_ps(sum[i], a, b);
    }
    for (int i = 1; i < 12; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
    return {2.0 * 8 * 12 * ROUNDS, _mm256_cvtss_f32(sum[0])};
}
#elif defined(__aarch64__)
// Sixteen chains, for up to four ports. NEON adds to the sum and cannot multiply it, so the sums grow: to 10,000.
Work fma_neon() {
    const float32x4_t a = vdupq_n_f32(0.5f), b = vdupq_n_f32(1.0f);
    float32x4_t sum[16];
    for (int i = 0; i < 16; ++i) sum[i] = vdupq_n_f32(static_cast<float>(i));
    for (int64_t n = 0; n < ROUNDS; ++n) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) sum[i] = vfmaq_f32(sum[i], a, b);
    }
    for (int i = 1; i < 16; ++i) sum[0] = vaddq_f32(sum[0], sum[i]);
    return {2.0 * 4 * 16 * ROUNDS, vgetq_lane_f32(sum[0], 0)};
}
#endif

Work fma_portable() {
    float sum[12];
    for (int i = 0; i < 12; ++i) sum[i] = static_cast<float>(i);
    for (int64_t n = 0; n < ROUNDS; ++n)
        for (int i = 0; i < 12; ++i) sum[i] = std::fma(sum[i], 0.5f, 1.0f);
    for (int i = 1; i < 12; ++i) sum[0] += sum[i];
    return {2.0 * 12 * ROUNDS, sum[0]};
}

// The vectors of each instruction set, so that the sums stay in registers.
typedef uint64_t Wide __attribute__((vector_size(64), may_alias));
typedef uint64_t Half __attribute__((vector_size(32), may_alias));
typedef uint64_t Quarter __attribute__((vector_size(16), may_alias));

constexpr size_t STREAMS = 8;
constexpr size_t AHEAD = 2048;  // bytes

// One pass over `bytes`, a multiple of STREAMS vectors. Inlined into one function for each instruction set.
template <class Vector>
__attribute__((always_inline)) inline Work read_once(const void* begin, size_t bytes, int32_t pattern) {
    const Vector* data = static_cast<const Vector*>(begin);
    Vector sum[STREAMS] = {};
    const size_t count = bytes / sizeof(Vector), part = count / STREAMS;
    if (pattern == 1) {
        for (size_t i = 0; i < part; ++i)
#pragma GCC unroll 8
            for (size_t s = 0; s < STREAMS; ++s) sum[s] ^= data[s * part + i];
    } else if (pattern == 2) {
        for (size_t i = 0; i < count; i += STREAMS)
#pragma GCC unroll 8
            for (size_t s = 0; s < STREAMS; ++s) {
                __builtin_prefetch(data + i + s + AHEAD / sizeof(Vector));
                sum[s] ^= data[i + s];
            }
    } else {
        for (size_t i = 0; i < count; i += STREAMS)
#pragma GCC unroll 8
            for (size_t s = 0; s < STREAMS; ++s) sum[s] ^= data[i + s];
    }
    for (size_t s = 1; s < STREAMS; ++s) sum[0] ^= sum[s];
    return {static_cast<double>(bytes), static_cast<float>(sum[0][0])};
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) Work read_avx512(const void* data, size_t bytes, int32_t pattern) {
    return read_once<Wide>(data, bytes, pattern);
}
__attribute__((target("avx2"))) Work read_avx2(const void* data, size_t bytes, int32_t pattern) {
    return read_once<Half>(data, bytes, pattern);
}
#endif
Work read_portable(const void* data, size_t bytes, int32_t pattern) { return read_once<Quarter>(data, bytes, pattern); }

#if defined(__x86_64__)
bool is_avx512(const char* isa) { return std::strncmp(isa, "avx512", 6) == 0 || std::strcmp(isa, "zen4") == 0; }
bool is_avx2(const char* isa) { return std::strcmp(isa, "avx2") == 0 || std::strcmp(isa, "avxvnni") == 0; }
#endif

bool has(const char* isa) {
    const char* found = isa == nullptr ? nullptr : gruve_isa(isa);
    return found != nullptr && std::strcmp(found, isa) == 0;
}

}  // namespace

double gruve_probe_fma(const char* isa, double seconds) {
    if (!has(isa)) return 0;
#if defined(__x86_64__)
    if (is_avx512(isa)) return rate(seconds, fma_avx512);
    if (is_avx2(isa)) return rate(seconds, fma_avx2);
#elif defined(__aarch64__)
    if (std::strcmp(isa, "portable") != 0) return rate(seconds, fma_neon);
#endif
    return rate(seconds, fma_portable);
}

double gruve_probe_read(const char* isa, size_t bytes, int32_t pattern, double seconds) {
    constexpr size_t whole = sizeof(Wide) * STREAMS;
    bytes = bytes / whole * whole;
    if (!has(isa) || bytes == 0) return 0;
    try {
        const gruve::Pages pages(bytes);
        void* data = pages.at<char>(0);
        std::memset(data, 1, bytes);
        auto* read = read_portable;
#if defined(__x86_64__)
        if (is_avx512(isa)) read = read_avx512;
        if (is_avx2(isa)) read = read_avx2;
#endif
        return rate(seconds, [&] { return read(data, bytes, pattern); });
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

double gruve_probe_clock(double seconds) {
    return rate(seconds, [] {
        // The rotation and the exclusive or depend on each other, and the compiler can remove neither.
        uint64_t x = 1, y = 0x9E3779B97F4A7C15;
        for (int64_t n = 0; n < ROUNDS; ++n)
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                x = x << 1 | x >> 63;
                asm volatile("" : "+r"(x));
                x ^= y;
                asm volatile("" : "+r"(x));
            }
        return Work{2.0 * 16 * ROUNDS, static_cast<float>(x)};
    });
}
