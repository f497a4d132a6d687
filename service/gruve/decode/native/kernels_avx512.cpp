// The kernels for AVX-512, without VNNI and with it: 16 units a vector, 24 sums in 32 registers.

#include <immintrin.h>

#include "kernels.h"

namespace gruve {
namespace avx512 {
namespace {

// The operations of products with few rows, on 256-bit halves. Zen 4 executes 512 bits as two halves anyway, and
// converts fp16 faster in this form: a step of a single row takes a third less time.
struct InHalves {
    static constexpr int32_t width = 16;
    static constexpr int32_t accumulators = 12;

    struct Float {
        __m256 low, high;
    };

    static Float load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static Float load_half(const uint16_t* p) {
        const auto* halves = reinterpret_cast<const __m128i*>(p);
        return {_mm256_cvtph_ps(_mm_load_si128(halves)), _mm256_cvtph_ps(_mm_load_si128(halves + 1))};
    }
    static void store(float* p, Float a) {
        _mm256_storeu_ps(p, a.low);
        _mm256_storeu_ps(p + 8, a.high);
    }
    static Float set(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
    static Float fma(Float a, Float b, Float c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
};

struct Avx512 {
    static constexpr int32_t width = 16;
    static constexpr int32_t accumulators = 24;
    static constexpr int32_t input_offset = 128;
    static constexpr bool half = true;
    static constexpr bool widens = true;  // on Intel, a conversion occupies both multiply units

    using Few = Avx512;
    using Others = Avx512;
    using Int8 = Avx512;
    using Float = __m512;
    using Int = __m512i;

    static Float load(const float* p) { return _mm512_loadu_ps(p); }
    static Float load_half(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
    static Float set(float a) { return _mm512_set1_ps(a); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
    static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
    static Int load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
    static Int load_quads(const int8_t* p) { return _mm512_load_si512(p); }
    static Int set_quad(const uint8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, sizeof quad);
        return _mm512_set1_epi32(quad);
    }
    static Int add_products(Int weights, Int inputs, Int c) {
        const __m512i pairs = _mm512_maddubs_epi16(inputs, weights);
        // Not _mm512_add_epi32: GCC 12 would keep the sums in two registers each, or in memory.
        __asm__("vpaddd %1, %0, %0" : "+v"(c) : "v"(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))));
        return c;
    }
    static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
    static Float power(Float shifted) {
        const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
        return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3F800000)));
    }
};

// With VNNI, one instruction for the three. Assembly, so that nothing else in this file is compiled for VNNI.
struct Avx512Vnni : Avx512 {
    using Int8 = Avx512Vnni;

    static Int add_products(Int weights, Int inputs, Int c) {
        __asm__("vpdpbusd %1, %2, %0" : "+v"(c) : "v"(weights), "v"(inputs));
        return c;
    }
};

struct Zen4 : Avx512Vnni {
    using Few = InHalves;
};

#include "kernels_impl.h"

uint64_t weights(const float* logits, int32_t n, float highest_logit, float scale, int32_t* out) {
    __m512i totals = _mm512_setzero_si512();
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 steps = _mm256_sub_ps(_mm256_loadu_ps(logits + i), _mm256_set1_ps(highest_logit));
        steps = _mm256_max_ps(_mm256_mul_ps(steps, _mm256_set1_ps(scale)), _mm256_set1_ps(LOWEST_STEPS));
        const __m256i exponent = _mm256_cvttps_epi32(steps);
        const __m512i shift =
            _mm512_cvtepi32_epi64(_mm256_sub_epi32(_mm256_set1_epi32(8), _mm256_srai_epi32(exponent, 20)));
        const __m512i part = _mm512_cvtepi32_epi64(_mm256_and_si256(exponent, _mm256_set1_epi32(0xFFFFF)));
        __m512i power = _mm512_set1_epi64(EXP2[5]);
        for (int c = 4; c >= 0; --c)
            power = _mm512_add_epi64(_mm512_set1_epi64(EXP2[c]), _mm512_srli_epi64(_mm512_mul_epu32(power, part), 20));
        power = _mm512_srlv_epi64(power, shift);
        totals = _mm512_add_epi64(totals, power);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtepi64_epi32(power));
    }
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(totals)) + weights_from(i, logits, n, highest_logit, scale, out);
}

template <class V>
constexpr Kernels kernels(const char* name) {
    return {
        name, V::width, V::half, V::input_offset, groups_per_pass<V>, V::widens, run_layer<V>, run_head<V>,
        fold, sum_rows<Avx512>, quantise<Avx512>, highest<Avx512>, weights,
        apply<Avx512, sigmoid<Avx512>>, apply<Avx512, tanh<Avx512>>,
    };
}

}  // namespace
}  // namespace avx512

const Kernels avx512_kernels = avx512::kernels<avx512::Avx512>("avx512");
const Kernels avx512vnni_kernels = avx512::kernels<avx512::Avx512Vnni>("avx512vnni");
const Kernels zen4_kernels = avx512::kernels<avx512::Zen4>("zen4");

}  // namespace gruve
