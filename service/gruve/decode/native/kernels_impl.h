// The kernels, written once over a vector type `V` and compiled once per instruction set.
//
// Results do not depend on tiling: every output is one chain of fused multiply-adds in the order of k, and everything
// else is a fixed sequence of fp32 operations on one element. With int8 weights, the chain of one matrix is an exact
// sum of integers instead. It does not matter which outputs share a vector, a tile or a thread. This file is compiled
// with -ffp-contract=off, so only the operations written as fma are fused.
//
// Each instruction set has a source file that includes this one, inside an anonymous namespace within a namespace
// named after it. So the linker can never use a function compiled for AVX-512 on a CPU that has AVX2 only. For the same
// reason this file uses no standard containers or algorithms.
//
// V provides: Float, `width`, `accumulators` (sums kept in registers), `widens`, load, load_half, store, set, add, sub,
// mul, div, fma, min, max (b unless a < b or a > b, so NaN gives b) and power (2**n from the bits of n + 1.5 * 2**23).
// For int8: Int, load_int, load_quads (four weights of K per lane, signed), set_quad (four inputs, signed if `input_offset`
// is 0), add_products (c plus the exact sum of the four products, if no weight exceeds WEIGHT_STEPS) and to_float.
// Three variants of V may replace it: V::Few in products of fp16 weights with so few rows that all sums fit in its
// registers, V::Whole in products of int8 weights, V::Others in all other products.

constexpr int32_t MAX_BLOCK = 8;  // the maximum number of rows in one pass
constexpr size_t AHEAD = 8192;    // prefetch distance in bytes of weights

// ---- elementwise functions

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

// ---- products

// How a product uses weights of type W: `together` consecutive values of K per lane, summed as `Sum`.
template <class V, class W>
struct Arithmetic {
    using Input = float;
    using Sum = typename V::Float;
    static constexpr int together = 1;

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
    static constexpr int together = 4;

    static Sum begin(const float*, const int32_t* offsets, int at) { return V::load_int(offsets + at); }
    static Sum weights(const int8_t* p) { return V::load_quads(p); }
    static Sum input(const uint8_t* x) { return V::set_quad(x); }
    static Sum add(Sum weights, Sum input, Sum sum) { return V::add_products(weights, input, sum); }
    static void end(float* acc, Sum sum, const float* steps, int at) {
        V::store(acc, V::fma(V::to_float(sum), V::load(steps + at), V::load(acc)));
    }
};

// acc[MR][P * NR][width] += x[MR][K] times P groups of NR vectors, `group` elements apart. `Widen` also leaves the
// weights as fp32 in `wide`, in the same order.
template <class V, class W, int MR, int NR, int P, bool Widen = false>
void product(
    float* __restrict acc, const void* weights, size_t group, const void* const* x, int32_t depth, const float* steps,
    const int32_t* offsets, float* __restrict wide) {
    using A = Arithmetic<V, W>;
    constexpr int C = P * NR, width = A::together * V::width;
    typename A::Sum sum[MR][C];
    const typename A::Input* row[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
        row[r] = static_cast<const typename A::Input*>(x[r]);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) sum[r][c] = A::begin(acc + (r * C + c) * V::width, offsets, c * V::width);
    }
    const W* w = static_cast<const W*>(weights);
    for (int32_t k = 0; k < depth; k += A::together, w += NR * width) {
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
    using Vector = typename V::Whole;
};

template <class Vectors, class W, int MR, int NR>
constexpr Product choose_product(int groups, bool widen) {
    using Wide = typename Vectors::Others;
    if constexpr (Wide::widens && sizeof(W) < sizeof(float) && Arithmetic<Wide, W>::together == 1 &&
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

// ---- tiles

// Sums of one pass: [row][group][vector][width].
template <class V>
struct alignas(64) Sums {
    float at[V::accumulators * V::width];
};

// One pass: `rows` rows through `groups` adjacent groups of `vectors` vectors, groups `first` on.
template <class V>
struct Pass {
    const RowView* rows;
    int32_t row_count;
    int32_t first;
    int32_t groups;
    int32_t vectors;
    int32_t stride;  // vectors of a full group: where group g starts in `start` and in a plain matrix's output
    bool begins;     // whether it is the first of several passes through these groups
    float* wide;     // where the first pass stores fp16 weights as fp32 for the other passes; null for a single pass

    int32_t cell(int r, int p) const { return (r * groups + p) * vectors * V::width; }
    size_t start_of(int p) const { return static_cast<size_t>(first + p) * stride * V::width; }

    void begin(Sums<V>& sums) const {
        for (int r = 0; r < row_count; ++r)
            for (int p = 0; p < groups; ++p)
                for (int c = 0; c < vectors; ++c) {
                    const float* start = rows[r].start + start_of(p) + c * V::width;
                    V::store(sums.at + cell(r, p) + c * V::width, V::load(start));
                    // Each row starts from its own row of the table; prefetch the part that the next pass needs.
                    __builtin_prefetch(start + groups * stride * V::width);
                }
    }

    // Where the widened weights of a layer's second matrix are stored: after those of `matrix`.
    float* wide_behind(const Matrix& matrix) const {
        return wide == nullptr ? nullptr : wide + static_cast<size_t>(matrix.depth) * matrix.vectors * V::width;
    }

    // Adds the product with each row's `x`, or with its `whole` if the matrix is int8.
    template <class X>
    void multiply(
        Sums<V>& sums, const Matrix& matrix, X RowView::*x, const uint8_t* RowView::*whole, float* widened) const {
        const void* at[MAX_BLOCK];
        for (int r = 0; r < row_count; ++r)
            at[r] = matrix.number == Number::int8 ? static_cast<const void*>(rows[r].*whole) : rows[r].*x;
        switch (matrix.number) {
            case Number::fp32: return multiply_as<float>(sums, matrix, at);
            case Number::fp16:
                if constexpr (V::half) {
                    if (widened == nullptr) return multiply_as<uint16_t>(sums, matrix, at);
                    if (begins) return multiply_as<uint16_t>(sums, matrix, at, widened);
                    find_product<V, float>(row_count, vectors, 1)(
                        sums.at, widened, 0, at, matrix.depth, nullptr, nullptr, nullptr);
                }
                return;
            case Number::int8: return multiply_as<int8_t>(sums, matrix, at);
        }
    }

    template <class W>
    void multiply_as(
        Sums<V>& sums, const Matrix& matrix, const void* const* x, float* widened = nullptr) const {
        constexpr int together = Arithmetic<V, W>::together;
        const size_t depth = static_cast<size_t>((matrix.depth + together - 1) / together * together);
        const size_t group = depth * matrix.vectors * V::width;
        find_product<V, W>(row_count, vectors, groups, widened != nullptr)(
            sums.at, static_cast<const W*>(matrix.data) + first * group, group, x, matrix.depth,
            together == 1 ? nullptr : matrix.steps + start_of(0), together == 1 ? nullptr : matrix.offsets + start_of(0),
            widened);
    }
};

// Calls `pass` for groups [first, first + count) and all rows, in blocks of rows of nearly equal size. A single block
// takes several groups in each pass. Several blocks go through one group at a time, while its weights are in the cache.
template <class V, class Body>
inline void for_each_pass(
    const Matrix& matrix, int32_t first, int32_t count, const RowView* rows, int32_t row_count, float* wide, Body body) {
    while (count > 0) {
        const bool tail = first == matrix.groups - 1;
        const int32_t vectors = tail ? matrix.last_vectors : matrix.vectors;
        const int32_t most = max_rows<V>(vectors);
        const int32_t blocks = (row_count + most - 1) / most;
        int32_t groups = 1;
        if (blocks == 1 && !tail) {
            const int32_t full = matrix.groups - (matrix.last_vectors != matrix.vectors) - first;
            const int32_t together = max_groups<V>(row_count, vectors, matrix.number);
            groups = together <= count && together <= full ? together : 1;
        }
        for (int32_t b = 0; b < blocks; ++b) {
            const int32_t from = row_count * b / blocks, to = row_count * (b + 1) / blocks;
            body(Pass<V>{
                rows + from, to - from, first, groups, vectors, matrix.vectors, b == 0,
                V::widens && blocks > 1 ? wide : nullptr});
        }
        first += groups;
        count -= groups;
    }
}

template <class V>
inline void begin_with_input(const Pass<V>& pass, const Layer& layer, Sums<V>& sums) {
    pass.begin(sums);
    if (layer.x.depth > 0) pass.multiply(sums, layer.x, &RowView::x, &RowView::whole_x, pass.wide);
}

// h + z * (n - h)
template <class V>
inline typename V::Float blend(typename V::Float h, typename V::Float z, typename V::Float n) {
    return V::fma(z, V::sub(n, h), h);
}

template <class V>
void gru_after(const Pass<V>& pass, const Layer& layer) {
    Sums<V> sums, fresh;
    begin_with_input(pass, layer, sums);
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p) {
            float* s = sums.at + pass.cell(r, p) + 2 * V::width;
            V::store(fresh.at + pass.cell(r, p), V::load(s));
            V::store(s, V::load(layer.bias_hn + (pass.first + p) * V::width));
        }
    pass.multiply(sums, layer.h, &RowView::h, &RowView::whole_h, pass.wide_behind(layer.x));
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p) {
            const float* s = sums.at + pass.cell(r, p);
            const int32_t unit = (pass.first + p) * V::width;
            const auto reset = sigmoid<V>(V::load(s));
            const auto update = sigmoid<V>(V::load(s + V::width));
            const auto n = tanh<V>(
                V::fma(reset, V::load(s + 2 * V::width), V::load(fresh.at + pass.cell(r, p))));
            V::store(pass.rows[r].out + unit, blend<V>(V::load(pass.rows[r].h + unit), update, n));
        }
}

template <class V>
void gru_before_gates(const Pass<V>& pass, const Layer& layer) {
    Sums<V> sums, gates;
    begin_with_input(pass, layer, sums);
    const Pass<V> two{pass.rows, pass.row_count, pass.first, pass.groups, 2, 2, pass.begins, pass.wide};
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p) {
            const float* s = sums.at + pass.cell(r, p);
            V::store(gates.at + two.cell(r, p), V::load(s));
            V::store(gates.at + two.cell(r, p) + V::width, V::load(s + V::width));
            V::store(pass.rows[r].fresh + (pass.first + p) * V::width, V::load(s + 2 * V::width));
        }
    two.multiply(gates, layer.h, &RowView::h, &RowView::whole_h, pass.wide_behind(layer.x));
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p) {
            const float* s = gates.at + two.cell(r, p);
            const int32_t unit = (pass.first + p) * V::width;
            V::store(pass.rows[r].reset + unit, V::mul(sigmoid<V>(V::load(s)), V::load(pass.rows[r].h + unit)));
            V::store(pass.rows[r].update + unit, sigmoid<V>(V::load(s + V::width)));
        }
}

template <class V>
void gru_before_state(const Pass<V>& pass, const Layer& layer) {
    Sums<V> sums;
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p)
            for (int c = 0; c < pass.vectors; ++c)
                V::store(
                    sums.at + pass.cell(r, p) + c * V::width,
                    V::load(pass.rows[r].fresh + pass.start_of(p) + c * V::width));
    pass.multiply(sums, layer.n, &RowView::reset, &RowView::whole_h, pass.wide);
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p)
            for (int c = 0; c < pass.vectors; ++c) {
                const size_t unit = pass.start_of(p) + c * V::width;
                const auto n = tanh<V>(V::load(sums.at + pass.cell(r, p) + c * V::width));
                const RowView& row = pass.rows[r];
                V::store(row.out + unit, blend<V>(V::load(row.h + unit), V::load(row.update + unit), n));
            }
}

template <class V>
void lstm(const Pass<V>& pass, const Layer& layer) {
    Sums<V> sums;
    begin_with_input(pass, layer, sums);
    pass.multiply(sums, layer.h, &RowView::h, &RowView::whole_h, pass.wide_behind(layer.x));
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p) {
            const float* s = sums.at + pass.cell(r, p);
            float* c = pass.rows[r].c + (pass.first + p) * V::width;
            const auto input = sigmoid<V>(V::load(s));
            const auto forget = sigmoid<V>(V::load(s + V::width));
            const auto g = tanh<V>(V::load(s + 2 * V::width));
            const auto output = sigmoid<V>(V::load(s + 3 * V::width));
            const auto next = V::fma(forget, V::load(c), V::mul(input, g));
            V::store(c, next);
            V::store(pass.rows[r].out + (pass.first + p) * V::width, V::mul(output, tanh<V>(next)));
        }
}

template <class V>
void elman(const Pass<V>& pass, const Layer& layer) {
    Sums<V> sums;
    begin_with_input(pass, layer, sums);
    pass.multiply(sums, layer.h, &RowView::h, &RowView::whole_h, pass.wide_behind(layer.x));
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p)
            for (int c = 0; c < pass.vectors; ++c)
                V::store(
                    pass.rows[r].out + pass.start_of(p) + c * V::width,
                    tanh<V>(V::load(sums.at + pass.cell(r, p) + c * V::width)));
}

template <class V>
int32_t groups_per_pass(int32_t rows, const Matrix& matrix) {
    return max_groups<V>(rows, matrix.vectors, matrix.number);
}

template <class V>
void run_layer(
    const Layer& layer, int32_t phase, int32_t first, int32_t count, const RowView* rows, int32_t row_count,
    float* wide) {
    const auto each = [&](const Matrix& matrix, void (*cell)(const Pass<V>&, const Layer&)) {
        for_each_pass<V>(matrix, first, count, rows, row_count, wide, [&](const Pass<V>& pass) { cell(pass, layer); });
    };
    switch (layer.cell) {
        case Cell::gru_after: return each(layer.x, gru_after<V>);
        case Cell::gru_before:
            return phase == 0 ? each(layer.x, gru_before_gates<V>) : each(layer.n, gru_before_state<V>);
        case Cell::lstm: return each(layer.x, lstm<V>);
        case Cell::elman: return each(layer.x, elman<V>);
    }
}

template <class V>
void run_head(
    const Matrix& matrix, int32_t first, int32_t count, const RowView* rows, int32_t row_count, float* wide) {
    for_each_pass<V>(matrix, first, count, rows, row_count, wide, [&](const Pass<V>& pass) {
        Sums<V> sums;
        pass.begin(sums);
        pass.multiply(sums, matrix, &RowView::x, &RowView::whole_x, pass.wide);
        for (int r = 0; r < pass.row_count; ++r)
            for (int p = 0; p < pass.groups; ++p)
                for (int c = 0; c < pass.vectors; ++c)
                    V::store(
                        pass.rows[r].out + pass.start_of(p) + c * V::width,
                        V::load(sums.at + pass.cell(r, p) + c * V::width));
    });
}

// ---- loading and sampling

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
void to_steps(const float* x, int32_t n, uint8_t* out) {
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

template <class V>
void sigmoids(const float* x, float* y, int32_t n) {
    alignas(64) float lanes[V::width] = {};
    for (int32_t i = 0; i < n; ++i) {
        lanes[i % V::width] = x[i];
        V::store(lanes, sigmoid<V>(V::load(lanes)));
        y[i] = lanes[i % V::width];
    }
}

template <class V>
void tanhs(const float* x, float* y, int32_t n) {
    alignas(64) float lanes[V::width] = {};
    for (int32_t i = 0; i < n; ++i) {
        lanes[i % V::width] = x[i];
        V::store(lanes, tanh<V>(V::load(lanes)));
        y[i] = lanes[i % V::width];
    }
}
