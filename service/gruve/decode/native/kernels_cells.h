// Part of kernels_impl.h: the passes over the groups of a matrix, the cells computed in them, and the head.

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

    // Adds the product with each row's `x`, or with its `int8` if the matrix is int8.
    template <class X>
    void multiply(
        Sums<V>& sums, const Matrix& matrix, X RowView::*x, const uint8_t* RowView::*int8, float* widened) const {
        const void* at[MAX_BLOCK];
        for (int r = 0; r < row_count; ++r)
            at[r] = matrix.number == Number::int8 ? static_cast<const void*>(rows[r].*int8) : rows[r].*x;
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
        constexpr int k_per_lane = Arithmetic<V, W>::k_per_lane;
        const size_t depth = static_cast<size_t>((matrix.depth + k_per_lane - 1) / k_per_lane * k_per_lane);
        const size_t group = depth * matrix.vectors * V::width;
        find_product<V, W>(row_count, vectors, groups, widened != nullptr)(
            sums.at, static_cast<const W*>(matrix.data) + first * group, group, x, matrix.depth,
            k_per_lane == 1 ? nullptr : matrix.steps + start_of(0),
            k_per_lane == 1 ? nullptr : matrix.offsets + start_of(0), widened);
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
            const int32_t wanted = max_groups<V>(row_count, vectors, matrix.number);
            groups = wanted <= count && wanted <= full ? wanted : 1;
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
    if (layer.x.depth > 0) pass.multiply(sums, layer.x, &RowView::x, &RowView::int8_x, pass.wide);
}

// h + z * (n - h)
template <class V>
inline typename V::Float blend(typename V::Float h, typename V::Float z, typename V::Float n) {
    return V::fma(z, V::sub(n, h), h);
}

template <class V>
void gru_after(const Pass<V>& pass, const Layer& layer) {
    Sums<V> sums, n_input;
    begin_with_input(pass, layer, sums);
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p) {
            float* s = sums.at + pass.cell(r, p) + 2 * V::width;
            V::store(n_input.at + pass.cell(r, p), V::load(s));
            V::store(s, V::load(layer.bias_hn + (pass.first + p) * V::width));
        }
    pass.multiply(sums, layer.h, &RowView::h, &RowView::int8_h, pass.wide_behind(layer.x));
    for (int r = 0; r < pass.row_count; ++r)
        for (int p = 0; p < pass.groups; ++p) {
            const float* s = sums.at + pass.cell(r, p);
            const int32_t unit = (pass.first + p) * V::width;
            const auto reset = sigmoid<V>(V::load(s));
            const auto update = sigmoid<V>(V::load(s + V::width));
            const auto n = tanh<V>(
                V::fma(reset, V::load(s + 2 * V::width), V::load(n_input.at + pass.cell(r, p))));
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
            V::store(pass.rows[r].n_input + (pass.first + p) * V::width, V::load(s + 2 * V::width));
        }
    two.multiply(gates, layer.h, &RowView::h, &RowView::int8_h, pass.wide_behind(layer.x));
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
                    V::load(pass.rows[r].n_input + pass.start_of(p) + c * V::width));
    pass.multiply(sums, layer.n, &RowView::reset, &RowView::int8_h, pass.wide);
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
    pass.multiply(sums, layer.h, &RowView::h, &RowView::int8_h, pass.wide_behind(layer.x));
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
    pass.multiply(sums, layer.h, &RowView::h, &RowView::int8_h, pass.wide_behind(layer.x));
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
        pass.multiply(sums, matrix, &RowView::x, &RowView::int8_x, pass.wide);
        for (int r = 0; r < pass.row_count; ++r)
            for (int p = 0; p < pass.groups; ++p)
                for (int c = 0; c < pass.vectors; ++c)
                    V::store(
                        pass.rows[r].out + pass.start_of(p) + c * V::width,
                        V::load(sums.at + pass.cell(r, p) + c * V::width));
    });
}
