// Part of kernels_impl.h: sigmoid and tanh of a vector, the same bits on every CPU.

// 2**(t - n) - 1 and 2**n, where n is the integer nearest t: a polynomial of degree 6 in t - n, with a relative error
// below 1e-8 before rounding. |t| <= 126.
template <class V>
struct Exponential {
    typename V::Float power;     // 2**n
    typename V::Float fraction;  // 2**(t - n) - 1
};

template <class V>
inline Exponential<V> exponential(typename V::Float t) {
    const auto magic = V::set(0x1.8p23f);
    const auto shifted = V::add(t, magic);
    const auto f = V::sub(t, V::sub(shifted, magic));
    auto q = V::set(0x1.44138ap-13f);
    q = V::fma(q, f, V::set(0x1.5f0890p-10f));
    q = V::fma(q, f, V::set(0x1.3b2a54p-7f));
    q = V::fma(q, f, V::set(0x1.c6af6cp-5f));
    q = V::fma(q, f, V::set(0x1.ebfbe0p-3f));
    q = V::fma(q, f, V::set(0x1.62e430p-1f));
    return {V::power(shifted), V::mul(q, f)};
}

template <class V>
inline typename V::Float sigmoid(typename V::Float x) {
    const auto t = V::max(V::min(V::mul(x, V::set(-0x1.715476p0f)), V::set(126.0f)), V::set(-126.0f));
    const auto e = exponential<V>(t);
    const auto one = V::set(1.0f);
    return V::div(one, V::add(one, V::fma(e.power, e.fraction, e.power)));
}

template <class V>
inline typename V::Float tanh(typename V::Float x) {
    // tanh(x) = (e**2x - 1) / (e**2x + 1), without cancellation near 0. For |x| > 9.01 it is +-1 in fp32.
    const auto t = V::max(V::min(V::mul(x, V::set(0x1.715476p1f)), V::set(26.0f)), V::set(-26.0f));
    const auto e = exponential<V>(t);
    const auto m = V::fma(e.power, e.fraction, V::sub(e.power, V::set(1.0f)));
    return V::div(m, V::add(m, V::set(2.0f)));
}

// For tests: y[i] = function(x[i]), computed in each lane in turn.
template <class V, typename V::Float (*function)(typename V::Float)>
void apply(const float* x, float* y, int32_t n) {
    alignas(64) float lanes[V::width] = {};
    for (int32_t i = 0; i < n; ++i) {
        lanes[i % V::width] = x[i];
        V::store(lanes, function(V::load(lanes)));
        y[i] = lanes[i % V::width];
    }
}
