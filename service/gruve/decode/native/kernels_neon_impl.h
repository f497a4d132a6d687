// The kernels for 64-bit ARM: 4 units a vector, 24 sums in 32 registers. `kernels_neon.cpp` and `kernels_dotprod.cpp`
// include this file, each inside an anonymous namespace, as `kernels_impl.h` explains.

struct Neon {
    static constexpr int32_t width = 4;
    static constexpr int32_t accumulators = 24;
    static constexpr int32_t input_offset = 0;
    static constexpr bool half = true;
    static constexpr bool widens = false;

    using Few = Neon;
    using Others = Neon;
    using Int8 = Neon;
    using Float = float32x4_t;
    using Int = int32x4_t;

    static Float load(const float* p) { return vld1q_f32(p); }
    static Float load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static void store(float* p, Float a) { vst1q_f32(p, a); }
    static Float set(float a) { return vdupq_n_f32(a); }
    static Float add(Float a, Float b) { return vaddq_f32(a, b); }
    static Float sub(Float a, Float b) { return vsubq_f32(a, b); }
    static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
    static Float div(Float a, Float b) { return vdivq_f32(a, b); }
    static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
    // Not vminq_f32 and vmaxq_f32, which return NaN if one of the two is NaN.
    static Float min(Float a, Float b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
    static Float max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
    static Int load_int(const int32_t* p) { return vld1q_s32(p); }
    static Int load_quads(const int8_t* p) { return vreinterpretq_s32_s8(vld1q_s8(p)); }
    static Int set_quad(const uint8_t* p) {
        int32_t quad;
        __builtin_memcpy(&quad, p, sizeof quad);
        return vdupq_n_s32(quad);
    }
    static Int add_products(Int weights, Int inputs, Int c) {
        const int8x16_t w = vreinterpretq_s8_s32(weights), x = vreinterpretq_s8_s32(inputs);
        const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
        return vpadalq_s16(c, vpaddq_s16(low, high));  // two products of 127 and WEIGHT_STEPS fit into 16 bits
    }
    static Float to_float(Int a) { return vcvtq_f32_s32(a); }
    static Float power(Float shifted) {
        const int32x4_t bits = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
        return vreinterpretq_f32_s32(vaddq_s32(bits, vdupq_n_s32(0x3F800000)));
    }
};

#include "kernels_impl.h"

uint64_t weights(const float* logits, int32_t n, float highest_logit, float scale, int32_t* out) {
    uint64x2_t totals = vdupq_n_u64(0);
    int32_t i = 0;
    for (; i + 2 <= n; i += 2) {
        float32x2_t steps = vmul_n_f32(vsub_f32(vld1_f32(logits + i), vdup_n_f32(highest_logit)), scale);
        const float32x2_t lowest = vdup_n_f32(LOWEST_STEPS);
        steps = vbsl_f32(vcgt_f32(steps, lowest), steps, lowest);
        const int32x2_t exponent = vcvt_s32_f32(steps);
        const uint32x2_t part = vreinterpret_u32_s32(vand_s32(exponent, vdup_n_s32(0xFFFFF)));
        uint64x2_t power = vdupq_n_u64(EXP2[5]);
        for (int c = 4; c >= 0; --c)
            power = vaddq_u64(vdupq_n_u64(EXP2[c]), vshrq_n_u64(vmull_u32(vmovn_u64(power), part), 20));
        const int32x2_t shift = vsub_s32(vshr_n_s32(exponent, 20), vdup_n_s32(8));  // to the left, so never above -8
        power = vshlq_u64(power, vmovl_s32(shift));
        totals = vaddq_u64(totals, power);
        vst1_s32(out + i, vreinterpret_s32_u32(vmovn_u64(power)));
    }
    return vaddvq_u64(totals) + weights_from(i, logits, n, highest_logit, scale, out);
}

template <class V>
constexpr Kernels kernels(const char* name) {
    return {
        name, V::width, V::half, V::input_offset, groups_per_pass<V>, V::widens, run_layer<V>, run_head<V>,
        fold, sum_rows<Neon>, quantise<Neon>, highest<Neon>, weights,
        apply<Neon, sigmoid<Neon>>, apply<Neon, tanh<Neon>>,
    };
}
