// Part of kernels_impl.h: loops over plain vectors. They fold weights, make the inputs of layers and of int8 products,
// and sample from logits.

inline void fold(const float* a, int32_t k, const float* b, int32_t n, double* sums, float* out) {
    // A product of two fp32 values is exact in float64, so fusing this would not change the result.
    for (int32_t j = 0; j < k; ++j) {
        const double factor = a[j];
        const float* row = b + static_cast<size_t>(j) * n;
        for (int32_t i = 0; i < n; ++i) sums[i] += factor * static_cast<double>(row[i]);
    }
    for (int32_t i = 0; i < n; ++i) out[i] = static_cast<float>(sums[i]);
}

template <class V>
void sum_rows(const float* const* rows, int32_t count, int32_t n, float* out) {
    int32_t i = 0;
    for (; i + V::width <= n; i += V::width) {
        auto sum = V::load(rows[0] + i);
        for (int32_t r = 1; r < count; ++r) sum = V::add(sum, V::load(rows[r] + i));
        V::store(out + i, sum);
    }
    for (; i < n; ++i) {
        float sum = rows[0][i];
        for (int32_t r = 1; r < count; ++r) sum += rows[r][i];
        out[i] = sum;
    }
}

template <class V>
void quantise(const float* x, int32_t n, uint8_t* out) {
    constexpr float most = INPUT_STEPS, magic = 0x1.8p23f;
    for (int32_t i = 0; i < n; ++i) {
        float steps = x[i] * most;
        steps = steps < most ? steps : most;
        steps = steps > -most ? steps : -most;
        out[i] = static_cast<uint8_t>(static_cast<int32_t>((steps + magic) - magic) + V::input_offset);
    }
}

template <class V>
float highest(const float* logits, int32_t n) {
    constexpr float LOWEST = -__builtin_inff();
    auto best = V::set(LOWEST);
    int32_t i = 0;
    for (; i + V::width <= n; i += V::width) best = V::max(V::load(logits + i), best);
    alignas(64) float lanes[V::width];
    V::store(lanes, best);
    float result = LOWEST;
    for (int32_t j = 0; j < V::width; ++j) result = lanes[j] > result ? lanes[j] : result;
    for (; i < n; ++i) result = logits[i] > result ? logits[i] : result;
    return result;
}

// gruve.model.sampling.weights for one logit: the exponent of 2, truncated to steps of 2**-20, then 2**x from EXP2.
constexpr float LOWEST_STEPS = -33554432.0f;  // LOWEST_EXPONENT << EXPONENT_BITS
constexpr int64_t EXP2[6] = {1073741824, 744265554, 257874613, 59914704, 9681959, 2004817};

inline int32_t weight(float logit, float highest_logit, float scale) {
    const float steps = (logit - highest_logit) * scale;
    const int32_t exponent = static_cast<int32_t>(steps > LOWEST_STEPS ? steps : LOWEST_STEPS);
    const int64_t part = exponent & 0xFFFFF;
    int64_t power = EXP2[5];
    for (int c = 4; c >= 0; --c) power = EXP2[c] + ((power * part) >> 20);
    return static_cast<int32_t>(power >> (8 - (exponent >> 20)));
}

// The weights from logit `first` on, and their sum: all of them, or the end that fills no vector.
inline uint64_t weights_from(
    int32_t first, const float* logits, int32_t n, float highest_logit, float scale, int32_t* out) {
    uint64_t total = 0;
    for (int32_t i = first; i < n; ++i) {
        out[i] = weight(logits[i], highest_logit, scale);
        total += static_cast<uint64_t>(out[i]);
    }
    return total;
}
