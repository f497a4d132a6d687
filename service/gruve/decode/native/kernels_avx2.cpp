// The kernels for AVX2 with FMA and F16C, without AVX-VNNI and with it: 8 units a vector, 12 sums in 16 registers.

#include <immintrin.h>

#include "kernels.h"

namespace gruve {
namespace avx2 {
namespace {

struct Avx2 {
    static constexpr int32_t width = 8;
    static constexpr int32_t accumulators = 12;
    static constexpr int32_t input_offset = 128;
    static constexpr bool half = true;
    static constexpr bool widens = false;

    using Few = Avx2;
    using Others = Avx2;
    using Int8 = Avx2;
    using Float = __m256;
    using Int = __m256i;

    static Float load(const float* p) { return _mm256_loadu_ps(p); }
    static Float load_half(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
    static Float set(float a) { return _mm256_set1_ps(a); }
    static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
    static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
    static Int load_int(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Int load_quads(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
    static Int set_quad(const uint8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, sizeof quad);
        return _mm256_set1_epi32(quad);
    }
    static Int add_products(Int weights, Int inputs, Int c) {
        const __m256i pairs = _mm256_maddubs_epi16(inputs, weights);
        // Not _mm256_add_epi32: GCC 12 would keep the sums in two registers each, or in memory.
        __asm__("vpaddd %1, %0, %0" : "+x"(c) : "x"(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
        return c;
    }
    static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
    static Float power(Float shifted) {
        const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3F800000)));
    }
};

// With AVX-VNNI, one instruction for the three. Assembly, so that nothing else in this file is compiled for VNNI.
struct AvxVnni : Avx2 {
    using Int8 = AvxVnni;

    static Int add_products(Int weights, Int inputs, Int c) {
        __asm__("%{vex%} vpdpbusd %1, %2, %0" : "+x"(c) : "x"(weights), "x"(inputs));
        return c;
    }
};

#include "kernels_impl.h"

uint64_t weights(const float* logits, int32_t n, float highest_logit, float scale, int32_t* out) {
    __m256i totals = _mm256_setzero_si256();
    const __m256i compact = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        __m128 steps = _mm_sub_ps(_mm_loadu_ps(logits + i), _mm_set1_ps(highest_logit));
        steps = _mm_max_ps(_mm_mul_ps(steps, _mm_set1_ps(scale)), _mm_set1_ps(LOWEST_STEPS));
        const __m128i exponent = _mm_cvttps_epi32(steps);
        const __m256i shift = _mm256_cvtepi32_epi64(_mm_sub_epi32(_mm_set1_epi32(8), _mm_srai_epi32(exponent, 20)));
        const __m256i part = _mm256_cvtepi32_epi64(_mm_and_si128(exponent, _mm_set1_epi32(0xFFFFF)));
        __m256i power = _mm256_set1_epi64x(EXP2[5]);
        for (int c = 4; c >= 0; --c)
            power = _mm256_add_epi64(
                _mm256_set1_epi64x(EXP2[c]), _mm256_srli_epi64(_mm256_mul_epu32(power, part), 20));
        power = _mm256_srlv_epi64(power, shift);
        totals = _mm256_add_epi64(totals, power);
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(out + i),
            _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(power, compact)));
    }
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), totals);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3] + weights_from(i, logits, n, highest_logit, scale, out);
}

template <class V>
constexpr Kernels kernels(const char* name) {
    return {
        name, V::width, V::half, V::input_offset, groups_per_pass<V>, V::widens, run_layer<V>, run_head<V>,
        fold, sum_rows<Avx2>, quantise<Avx2>, highest<Avx2>, weights,
        apply<Avx2, sigmoid<Avx2>>, apply<Avx2, tanh<Avx2>>,
    };
}

}  // namespace
}  // namespace avx2

const Kernels avx2_kernels = avx2::kernels<avx2::Avx2>("avx2");
const Kernels avxvnni_kernels = avx2::kernels<avx2::AvxVnni>("avxvnni");

}  // namespace gruve
