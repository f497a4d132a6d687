// The kernels in plain C++, for any CPU: the same operations in the same order, std::fma for each fused one.

#include <cmath>
#include <cstring>

#include "kernels.h"

namespace gruve {
namespace portable {
namespace {

struct Portable {
    static constexpr int32_t width = 8;
    static constexpr int32_t accumulators = 8;
    static constexpr int32_t input_offset = 128;
    static constexpr bool half = false;
    static constexpr bool widens = false;

    using Few = Portable;
    using Others = Portable;
    using Int8 = Portable;

    struct Float {
        float lane[width];
    };
    struct Int {
        int32_t lane[4 * width];  // a sum takes the first quarter, four products a lane take it all
    };

    template <class Each>
    static Float make(Each each) {
        Float result;
        for (int32_t i = 0; i < width; ++i) result.lane[i] = each(i);
        return result;
    }

    static Float load(const float* p) { return make([&](int32_t i) { return p[i]; }); }
    static void store(float* p, Float a) {
        for (int32_t i = 0; i < width; ++i) p[i] = a.lane[i];
    }
    static Float set(float a) { return make([&](int32_t) { return a; }); }
    static Float add(Float a, Float b) { return make([&](int32_t i) { return a.lane[i] + b.lane[i]; }); }
    static Float sub(Float a, Float b) { return make([&](int32_t i) { return a.lane[i] - b.lane[i]; }); }
    static Float mul(Float a, Float b) { return make([&](int32_t i) { return a.lane[i] * b.lane[i]; }); }
    static Float div(Float a, Float b) { return make([&](int32_t i) { return a.lane[i] / b.lane[i]; }); }
    static Float fma(Float a, Float b, Float c) {
        return make([&](int32_t i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
    }
    static Float min(Float a, Float b) {
        return make([&](int32_t i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static Float max(Float a, Float b) {
        return make([&](int32_t i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static Int load_int(const int32_t* p) {
        Int result{};
        for (int32_t i = 0; i < width; ++i) result.lane[i] = p[i];
        return result;
    }
    static Int load_quads(const int8_t* p) {
        Int result;
        for (int32_t i = 0; i < 4 * width; ++i) result.lane[i] = p[i];
        return result;
    }
    static Int set_quad(const uint8_t* p) {
        Int result;
        for (int32_t i = 0; i < 4 * width; ++i) result.lane[i] = p[i % 4];
        return result;
    }
    static Int add_products(Int weights, Int inputs, Int c) {
        for (int32_t i = 0; i < width; ++i)
            for (int32_t j = 4 * i; j < 4 * i + 4; ++j) c.lane[i] += weights.lane[j] * inputs.lane[j];
        return c;
    }
    static Float to_float(Int a) { return make([&](int32_t i) { return static_cast<float>(a.lane[i]); }); }
    static Float power(Float shifted) {
        return make([&](int32_t i) {
            uint32_t bits;
            std::memcpy(&bits, &shifted.lane[i], sizeof bits);
            bits = (bits << 23) + 0x3F800000u;
            float result;
            std::memcpy(&result, &bits, sizeof result);
            return result;
        });
    }
};

#include "kernels_impl.h"

uint64_t weights(const float* logits, int32_t n, float highest_logit, float scale, int32_t* out) {
    return weights_from(0, logits, n, highest_logit, scale, out);
}

constexpr Kernels kernels = {
    "portable", Portable::width, Portable::half, Portable::input_offset, groups_per_pass<Portable>,
    Portable::widens, run_layer<Portable>, run_head<Portable>,
    fold, sum_rows<Portable>, quantise<Portable>, highest<Portable>, weights,
    apply<Portable, sigmoid<Portable>>, apply<Portable, tanh<Portable>>,
};

}  // namespace
}  // namespace portable

const Kernels portable_kernels = portable::kernels;

}  // namespace gruve
