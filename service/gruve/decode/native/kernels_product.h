// Part of kernels_impl.h: the product of a few rows with a few groups of a matrix, in fp32, fp16 or int8, and the
// choice of its shape.

constexpr int32_t MAX_BLOCK = 8;  // the maximum number of rows in one pass
constexpr size_t AHEAD = 8192;    // prefetch distance in bytes of weights

// How a product uses weights of type W: `k_per_lane` consecutive values of K per lane, summed as `Sum`.
template <class V, class W>
struct Arithmetic {
    using Input = float;
    using Sum = typename V::Float;
    static constexpr int k_per_lane = 1;

    static Sum begin(const float* acc, const int32_t*, int) { return V::load(acc); }
    static Sum weights(const float* p) { return V::load(p); }
    static Sum weights(const uint16_t* p) { return V::load_half(p); }
    static Sum input(const float* x) { return V::set(*x); }
    static Sum add(Sum weights, Sum input, Sum sum) { return V::fma(weights, input, sum); }
    static void end(float* acc, Sum sum, const float*, int) { V::store(acc, sum); }
};

// Integer sums are exact in any order: 4,096 products of 8 and 7 bits stay far below 2**31. They are converted to fp32
// once.
template <class V>
struct Arithmetic<V, int8_t> {
    using Input = uint8_t;
    using Sum = typename V::Int;
    static constexpr int k_per_lane = 4;

    static Sum begin(const float*, const int32_t* offsets, int at) { return V::load_int(offsets + at); }
    static Sum weights(const int8_t* p) { return V::load_quads(p); }
    static Sum input(const uint8_t* x) { return V::set_quad(x); }
    static Sum add(Sum weights, Sum input, Sum sum) { return V::add_products(weights, input, sum); }
    static void end(float* acc, Sum sum, const float* steps, int at) {
        V::store(acc, V::fma(V::to_float(sum), V::load(steps + at), V::load(acc)));
    }
};

// acc[MR][P * NR][width] += x[MR][K] times P groups of NR vectors, `group` elements apart: MR rows by NR vectors are
// the microkernel of BLIS (Van Zee and van de Geijn 2015). `Widen` also leaves the weights as fp32 in `wide`, in the
// same order.
template <class V, class W, int MR, int NR, int P, bool Widen = false>
void product(
    float* __restrict acc, const void* weights, size_t group, const void* const* x, int32_t depth, const float* steps,
    const int32_t* offsets, float* __restrict wide) {
    using A = Arithmetic<V, W>;
    constexpr int C = P * NR, width = A::k_per_lane * V::width;
    typename A::Sum sum[MR][C];
    const typename A::Input* row[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
        row[r] = static_cast<const typename A::Input*>(x[r]);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) sum[r][c] = A::begin(acc + (r * C + c) * V::width, offsets, c * V::width);
    }
    const W* w = static_cast<const W*>(weights);
    for (int32_t k = 0; k < depth; k += A::k_per_lane, w += NR * width) {
        if constexpr (MR > 1) {  // a single row already reads at full speed; prefetch instructions would slow it down
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) __builtin_prefetch(reinterpret_cast<const char*>(w + p * group) + AHEAD);
        }
        if constexpr (MR <= C) {
            typename A::Sum b[MR];
#pragma GCC unroll 8
            for (int r = 0; r < MR; ++r) b[r] = A::input(row[r] + k);
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) {
                const auto v = A::weights(w + (c / NR) * group + (c % NR) * width);
                if constexpr (Widen) V::store(wide + c * width, v);
#pragma GCC unroll 8
                for (int r = 0; r < MR; ++r) sum[r][c] = A::add(v, b[r], sum[r][c]);
            }
        } else {
            typename A::Sum v[C];
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) {
                v[c] = A::weights(w + (c / NR) * group + (c % NR) * width);
                if constexpr (Widen) V::store(wide + c * width, v[c]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < MR; ++r) {
                const auto b = A::input(row[r] + k);
#pragma GCC unroll 16
                for (int c = 0; c < C; ++c) sum[r][c] = A::add(v[c], b, sum[r][c]);
            }
        }
        if constexpr (Widen) wide += C * width;
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) A::end(acc + (r * C + c) * V::width, sum[r][c], steps, c * V::width);
    }
}

using Product = void (*)(
    float*, const void*, size_t, const void* const*, int32_t, const float*, const int32_t*, float*);

// The maximum number of rows in a pass with NR vectors, and the maximum number of groups for a number of rows.
template <class V>
constexpr int max_rows(int vectors) {
    return V::accumulators / vectors < MAX_BLOCK ? V::accumulators / vectors : MAX_BLOCK;
}

template <class V>
constexpr bool are_few(int rows, int vectors) {
    return rows * vectors <= V::Few::accumulators;
}

template <class V>
constexpr int max_groups(int rows, int vectors, Number number) {
    const int sums =
        number == Number::fp16 && are_few<V>(rows, vectors) ? V::Few::accumulators : V::Others::accumulators;
    return rows * vectors * 4 <= sums ? 4 : rows * vectors * 2 <= sums ? 2 : 1;
}

template <class V, class W, bool few>
struct Chosen {
    using Vector = typename V::Others;
};

template <class V>
struct Chosen<V, uint16_t, true> {
    using Vector = typename V::Few;
};

template <class V, bool few>
struct Chosen<V, int8_t, few> {
    using Vector = typename V::Int8;
};

template <class Vectors, class W, int MR, int NR>
constexpr Product choose_product(int groups, bool widen) {
    using Wide = typename Vectors::Others;
    if constexpr (Wide::widens && sizeof(W) < sizeof(float) && Arithmetic<Wide, W>::k_per_lane == 1 &&
                  MR * NR <= Wide::accumulators) {
        if (widen) return product<Wide, W, MR, NR, 1, true>;
    }
    using V = typename Chosen<Vectors, W, are_few<Vectors>(MR, NR)>::Vector;
    constexpr int most = V::accumulators / (MR * NR);
    if constexpr (most >= 4) {
        if (groups == 4) return product<V, W, MR, NR, 4>;
    }
    if constexpr (most >= 2) {
        if (groups == 2) return product<V, W, MR, NR, 2>;
    }
    if constexpr (most >= 1) {
        if (groups == 1) return product<V, W, MR, NR, 1>;
    }
    return nullptr;
}

template <class V, class W, int NR>
Product find_product_of(int rows, int groups, bool widen) {
    switch (rows) {
        case 1: return choose_product<V, W, 1, NR>(groups, widen);
        case 2: return choose_product<V, W, 2, NR>(groups, widen);
        case 3: return choose_product<V, W, 3, NR>(groups, widen);
        case 4: return choose_product<V, W, 4, NR>(groups, widen);
        case 5: return choose_product<V, W, 5, NR>(groups, widen);
        case 6: return choose_product<V, W, 6, NR>(groups, widen);
        case 7: return choose_product<V, W, 7, NR>(groups, widen);
        default: return choose_product<V, W, 8, NR>(groups, widen);
    }
}

template <class V, class W>
Product find_product(int rows, int vectors, int groups, bool widen = false) {
    switch (vectors) {
        case 1: return find_product_of<V, W, 1>(rows, groups, widen);
        case 2: return find_product_of<V, W, 2>(rows, groups, widen);
        case 3: return find_product_of<V, W, 3>(rows, groups, widen);
        default: return find_product_of<V, W, 4>(rows, groups, widen);
    }
}
