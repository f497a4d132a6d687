#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "bounds.h"
#include "fp16.h"

namespace gruve {
namespace {

// A table of input projections with more entries than this (64 MiB) is not made; the projection is computed instead.
constexpr int64_t MAX_TABLE_ENTRIES = int64_t{1} << 24;
constexpr int32_t PLAIN_VECTORS = 3;  // in a group of a matrix without gates: with 8 rows they fill the registers

class Packer {
public:
    Packer(const gruve_weights& weights, const Kernels& kernels, Model& model, const Pages* pages)
        : in_(weights), kernels_(kernels), model_(model), layout_(pages) {}

    // Lays out all arrays, and writes them if there are pages.
    size_t run() {
        const bool table = model_.folded = needs_table();
        model_.table_stride = static_cast<size_t>(groups()) * layer_vectors() * kernels_.width;
        for (int32_t l = 0; l < model_.num_layers; ++l) layer(l, l == 0 && table);
        if (table) fold_table();
        pointers();
        head();
        return layout_.used();
    }

private:
    bool gated() const { return model_.cell != Cell::elman; }
    int32_t vectors_of(int32_t columns) const { return (columns + kernels_.width - 1) / kernels_.width; }
    int32_t groups() const {
        const int32_t vectors = vectors_of(model_.hidden_size);
        return gated() ? vectors : (vectors + PLAIN_VECTORS - 1) / PLAIN_VECTORS;
    }
    int32_t layer_vectors() const { return gated() ? model_.gates : PLAIN_VECTORS; }
    bool needs_table() const {
        const PointerSpec& spec = model_.pointers;
        const int64_t V = model_.vocabulary_size;
        const int64_t rows = V + spec.size * (V + 1 + spec.matches) + spec.places + spec.counts;
        return rows * model_.gates * model_.hidden_size <= MAX_TABLE_ENTRIES;
    }

    // The row of a (G*H, K) matrix that is stored in lane `lane` of vector `vector` of group `group`; -1 for padding.
    int32_t gated_row(int32_t first_gate, int32_t group, int32_t vector, int32_t lane) const {
        const int32_t unit = group * kernels_.width + lane;
        return unit < model_.hidden_size ? (first_gate + vector) * model_.hidden_size + unit : -1;
    }

    // The number of consecutive k that are stored side by side.
    template <class W>
    static constexpr int32_t k_per_lane = std::is_same_v<W, int8_t> ? 4 : 1;

    // Packs rows of `weights` (rows, depth). `row(group, vector, lane)` returns the row, or -1 for zeros. `steps` and
    // `offsets` are for int8.
    template <class W, class Row>
    void fill(W* out, float* steps, int32_t* offsets, const Matrix& matrix, const float* weights, Row row) {
        constexpr int32_t T = k_per_lane<W>;
        for (int32_t g = 0; g < matrix.groups; ++g) {
            const int32_t vectors = g == matrix.groups - 1 ? matrix.last_vectors : matrix.vectors;
            for (int32_t v = 0; v < vectors; ++v)
                for (int32_t lane = 0; lane < kernels_.width; ++lane) {
                    const int32_t r = row(g, v, lane);
                    if (r < 0) continue;  // pages begin as zeros
                    const float* from = weights + static_cast<size_t>(r) * matrix.depth;
                    const size_t column = static_cast<size_t>(v) * kernels_.width + lane;
                    const double scale = T == 1 ? 1.0 : int8_scale(from, matrix.depth);
                    W* to = out + column * T;
                    for (int32_t k = 0; k < matrix.depth; ++k) {
                        W& weight = to[k / T * (vectors * kernels_.width * T) + k % T];
                        put(weight, from[k], scale);
                        if (T > 1) offsets[column] -= kernels_.input_offset * static_cast<int32_t>(weight);
                    }
                    if (T > 1) steps[column] = static_cast<float>(1.0 / (scale * INPUT_STEPS));
                }
            out += round_up(matrix.depth, T) * vectors * kernels_.width;
            if (T == 1) continue;
            steps += vectors * kernels_.width;
            offsets += vectors * kernels_.width;
        }
    }

    // The number of steps in 1.0 for a row of weights: its largest weight is WEIGHT_STEPS steps.
    static double int8_scale(const float* row, int32_t depth) {
        double most = 0.0;
        for (int32_t k = 0; k < depth; ++k) {
            const double size = std::fabs(static_cast<double>(row[k]));
            if (!std::isfinite(size))
                throw std::invalid_argument("a weight is " + quoted(row[k]) + "; int8 takes finite ones only");
            most = size > most ? size : most;
        }
        return most == 0.0 ? 1.0 : WEIGHT_STEPS / most;
    }

    static void put(float& to, float value, double) { to = value; }
    static void put(int8_t& to, float value, double scale) { to = static_cast<int8_t>(std::nearbyint(value * scale)); }
    static void put(uint16_t& to, float value, double) {
        if (!to_half(value, to))
            throw std::invalid_argument(
                "the weights are said to be float16 and hold " + quoted(value) + ", which is none");
    }

    template <class Row>
    Matrix matrix(const float* weights, int32_t depth, int32_t vectors, int32_t all_vectors, Number number, Row row) {
        Matrix result;
        result.depth = depth;
        result.vectors = vectors;
        result.groups = (all_vectors + vectors - 1) / vectors;
        result.last_vectors = all_vectors - (result.groups - 1) * vectors;
        result.number = number == Number::fp16 && !kernels_.half ? Number::fp32 : number;
        const size_t columns = static_cast<size_t>(all_vectors) * kernels_.width;
        switch (result.number) {
            case Number::fp32: place<float>(result, columns, weights, row); break;
            case Number::fp16: place<uint16_t>(result, columns, weights, row); break;
            case Number::int8: place<int8_t>(result, columns, weights, row); break;
        }
        return result;
    }

    template <class W, class Row>
    void place(Matrix& matrix, size_t columns, const float* weights, Row row) {
        W* out = layout_.take<W>(round_up(matrix.depth, k_per_lane<W>) * columns);
        float* steps = k_per_lane<W> == 1 ? nullptr : layout_.take<float>(columns);
        int32_t* offsets = k_per_lane<W> == 1 ? nullptr : layout_.take<int32_t>(columns);
        matrix.data = out;
        matrix.steps = steps;
        matrix.offsets = offsets;
        if (!layout_.counting()) fill(out, steps, offsets, matrix, weights, row);
    }

    // How weights are stored: those kept in the model's precision, and those that multiply states of the layers.
    Number stored() const { return in_.half ? Number::fp16 : Number::fp32; }
    Number recurrent() const { return model_.int8 ? Number::int8 : stored(); }

    Matrix gated_matrix(const float* weights, int32_t depth, int32_t first_gate, int32_t gates, Number number) {
        return matrix(
            weights, depth, gates, gates * groups(), number,
            [&](int32_t g, int32_t v, int32_t lane) { return gated_row(first_gate, g, v, lane); });
    }

    Matrix plain_matrix(const float* weights, int32_t rows, int32_t depth, Number number) {
        return matrix(
            weights, depth, PLAIN_VECTORS, vectors_of(rows), number, [&](int32_t g, int32_t v, int32_t lane) {
                const int32_t row = (g * PLAIN_VECTORS + v) * kernels_.width + lane;
                return row < rows ? row : -1;
            });
    }

    Matrix layer_matrix(const float* weights, int32_t depth, Number number) {
        return gated() ? gated_matrix(weights, depth, 0, model_.gates, number)
                       : plain_matrix(weights, model_.hidden_size, depth, number);
    }

    // The index of row r of (G*H,) in a packed row of `table_stride`.
    size_t packed_at(int32_t row) const {
        if (!gated()) return static_cast<size_t>(row);
        const int32_t gate = row / model_.hidden_size, unit = row % model_.hidden_size;
        const size_t vector = static_cast<size_t>(unit / kernels_.width) * model_.gates + gate;
        return vector * kernels_.width + unit % kernels_.width;
    }

    const float* packed_bias(const float* bias) {
        auto* out = layout_.take<float>(model_.table_stride);
        if (!layout_.counting())
            for (int32_t row = 0; row < model_.gates * model_.hidden_size; ++row) out[packed_at(row)] = bias[row];
        return out;
    }

    const float* padded(const float* values, int32_t count, size_t padded_count) {
        auto* out = layout_.take<float>(padded_count);
        if (!layout_.counting()) std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
        return out;
    }

    void layer(int32_t l, bool has_table) {
        Layer& layer = model_.layers[l];
        const int32_t H = model_.hidden_size;
        layer.cell = model_.cell;
        // A layer that starts from a table has no product with x. Its depth is 0, and the matrix still defines the
        // tiles. Embeddings may exceed 1 and are not quantised.
        layer.x = layer_matrix(
            in_.weight_ih[l], has_table ? 0 : l == 0 ? model_.embedding_size : H, l == 0 ? stored() : recurrent());
        if (!has_table) model_.bias[l] = packed_bias(in_.bias[l]);
        if (model_.cell == Cell::gru_before) {
            layer.h = gated_matrix(in_.weight_hh[l], H, 0, 2, recurrent());
            layer.n = plain_matrix(in_.weight_hh[l] + size_t{2} * H * H, H, H, recurrent());
        } else {
            layer.h = layer_matrix(in_.weight_hh[l], H, recurrent());
        }
        if (model_.cell == Cell::gru_after) layer.bias_hn = padded(in_.bias_hn[l], H, model_.padded_size);
    }

    void fold_table() {
        const int32_t V = model_.vocabulary_size, E = model_.embedding_size;
        std::vector<double> none(model_.gates * model_.hidden_size);
        if (!layout_.counting()) {
            folded_input_ = transposed(in_.weight_ih[0], model_.gates * model_.hidden_size, E);
            for (int32_t i = 0; i < static_cast<int32_t>(none.size()); ++i) none[i] = in_.bias[0][i];
            for (int32_t k = 0; k < model_.pointers.size; ++k) {
                add_product(in_.pointers->weight + row_of(k, V + 1, V) * E, none);
                if (const int32_t matches = model_.pointers.matches; matches > 0)
                    add_product(in_.pointers->match + row_of(k, matches, 0) * E, none);
            }
        }
        model_.table = folded_rows(in_.embedding, V, [&](int32_t) { return none; });
    }

    // Row `row` of pointer k in tables (K, rows, E).
    static size_t row_of(int32_t k, int32_t rows, int32_t row) { return static_cast<size_t>(k) * rows + row; }

    // sums += x (E,) times W of layer 0, in float64. `rounded_` gets the sums as fp32.
    void add_product(const float* x, std::vector<double>& sums) {
        const auto n = static_cast<int32_t>(sums.size());
        rounded_.resize(sums.size());
        kernels_.fold(x, model_.embedding_size, folded_input_.data(), n, sums.data(), rounded_.data());
    }

    // Rows (count, E) times W of layer 0, each added to `init(row)` in float64, rounded once and packed.
    template <class Init>
    const float* folded_rows(const float* rows, int32_t count, Init init) {
        auto* out = layout_.take<float>(model_.table_stride * count);
        if (layout_.counting()) return out;
        for (int32_t row = 0; row < count; ++row) {
            std::vector<double> sums = init(row);
            add_product(rows + static_cast<size_t>(row) * model_.embedding_size, sums);
            for (size_t i = 0; i < sums.size(); ++i)
                out[row * model_.table_stride + packed_at(static_cast<int32_t>(i))] = rounded_[i];
        }
        return out;
    }

    void pointers() {
        const PointerSpec& spec = model_.pointers;
        if (spec.size == 0) return;
        const gruve_pointers& in = *in_.pointers;
        const int32_t V = model_.vocabulary_size;
        if (!needs_table()) {
            model_.pointer_rows = in.weight;
            model_.match_rows = in.match;
            model_.place_rows = in.place;
            model_.count_rows = in.count;
        } else {
            model_.pointer_rows = differences(in.weight, V + 1, V);
            if (spec.matches > 0) model_.match_rows = differences(in.match, spec.matches, 0);
            const auto zeros = [&](int32_t) { return std::vector<double>(model_.gates * model_.hidden_size); };
            if (spec.places > 0) model_.place_rows = folded_rows(in.place, spec.places, zeros);
            if (spec.counts > 0) model_.count_rows = folded_rows(in.count, spec.counts, zeros);
        }
        const int32_t biases = spec.size * std::max(spec.matches, 1);
        model_.gate_bias = padded(in.gate_bias, biases, biases);
    }

    // Folds a table (K, count, E) into packed rows, with each pointer's row `base` subtracted from its rows.
    const float* differences(const float* rows, int32_t count, int32_t base) {
        std::vector<double> negative;
        return folded_rows(rows, model_.pointers.size * count, [&](int32_t row) {
            if (row % count == 0) {
                negative.assign(model_.gates * model_.hidden_size, 0.0);
                add_product(rows + row_of(row / count, count, base) * model_.embedding_size, negative);
                for (double& value : negative) value = -value;
            }
            return negative;
        });
    }

    static std::vector<float> transposed(const float* matrix, int32_t rows, int32_t columns) {
        std::vector<float> result(static_cast<size_t>(rows) * columns);
        for (int32_t r = 0; r < rows; ++r)
            for (int32_t c = 0; c < columns; ++c)
                result[static_cast<size_t>(c) * rows + r] = matrix[static_cast<size_t>(r) * columns + c];
        return result;
    }

    void head() {
        const int32_t V = model_.vocabulary_size, E = model_.embedding_size, H = model_.hidden_size;
        const int32_t K = model_.pointers.size;
        std::vector<float> folded;
        const float* weights = in_.head_weight;
        if (weights == nullptr) weights = in_.embedding;
        const bool projected = in_.head_weight == nullptr && in_.head_projection != nullptr;
        if (projected && !layout_.counting()) {
            folded.resize(static_cast<size_t>(V) * H);
            std::vector<double> sums;
            for (int32_t token = 0; token < V; ++token) {
                sums.assign(H, 0.0);
                kernels_.fold(
                    in_.embedding + static_cast<size_t>(token) * E, E, in_.head_projection, H, sums.data(),
                    folded.data() + static_cast<size_t>(token) * H);
            }
            weights = folded.data();
        }
        if (K > 0 && !layout_.counting()) {
            std::vector<float> rows(weights, weights + static_cast<size_t>(V) * H);
            folded.swap(rows);
            folded.insert(folded.end(), in_.pointers->gate, in_.pointers->gate + static_cast<size_t>(K) * H);
            weights = folded.data();
        }
        const Number number = projected ? Number::fp32 : stored();
        model_.head = plain_matrix(weights, V + K, H, model_.int8 ? Number::int8 : number);
        model_.logits_stride = round_up(static_cast<size_t>(vectors_of(V + K)) * kernels_.width, LANES);
        model_.head_bias = padded(in_.head_bias, V, model_.logits_stride);
    }

    const gruve_weights& in_;
    const Kernels& kernels_;
    Model& model_;
    Layout layout_;
    std::vector<float> folded_input_;  // W of layer 0, (E, G*H)
    std::vector<float> rounded_;       // the last result of `add_product`
};

void check_weights(const gruve_weights& w) {
    check("cell", w.cell, GRUVE_GRU_AFTER, GRUVE_ELMAN);
    check("vocabulary_size", w.vocabulary_size, 1, GRUVE_MAX_VOCABULARY);
    check("embedding_size", w.embedding_size, 1, GRUVE_MAX_SIZE);
    check("hidden_size", w.hidden_size, GRUVE_MIN_HIDDEN, GRUVE_MAX_SIZE);
    check("num_layers", w.num_layers, 1, GRUVE_MAX_LAYERS);
    for (int32_t l = 0; l < w.num_layers; ++l) {
        const std::string of_layer = " of layer " + std::to_string(l);
        check_present(("weight_ih" + of_layer).c_str(), w.weight_ih[l]);
        check_present(("weight_hh" + of_layer).c_str(), w.weight_hh[l]);
        check_present(("bias" + of_layer).c_str(), w.bias[l]);
        if (w.cell == GRUVE_GRU_AFTER) check_present(("bias_hn" + of_layer).c_str(), w.bias_hn[l]);
    }
    check_present("embedding", w.embedding);
    check_present("head_bias", w.head_bias);
    if (w.head_weight == nullptr && w.embedding_size != w.hidden_size)
        check_present("head_projection, which a tied head needs where E differs from H,", w.head_projection);
}

}  // namespace

int32_t Model::input_rows(int32_t token, const Pointed& pointed, const float** rows) const {
    const size_t stride = folded ? table_stride : embedding_size;
    int32_t count = 0;
    rows[count++] = (folded ? table : embedding) + stride * token;
    for (int32_t k = 0; k < pointers.size; ++k) {
        const int32_t named = pointed.tokens[k], matched = pointed.matches[k];
        // A folded table holds differences to these rows, so there is nothing to add.
        if (!folded || named != vocabulary_size)
            rows[count++] = pointer_rows + stride * (static_cast<size_t>(k) * (vocabulary_size + 1) + named);
        if (pointers.matches > 0 && (!folded || matched != 0))
            rows[count++] = match_rows + stride * (static_cast<size_t>(k) * pointers.matches + matched);
    }
    if (pointers.places > 0) rows[count++] = place_rows + stride * pointed.place_row;
    if (pointers.counts > 0) rows[count++] = count_rows + stride * pointed.count_row;
    return count;
}

size_t Model::wide_floats() const {
    if (!kernels->widens) return 0;
    const auto group = [&](const Matrix& matrix) {
        return static_cast<size_t>(matrix.depth) * matrix.vectors * kernels->width;
    };
    size_t most = group(head);
    for (int32_t l = 0; l < num_layers; ++l)
        most = std::max(most, std::max(group(layers[l].x) + group(layers[l].h), group(layers[l].n)));
    return most;
}

size_t lay_out(const gruve_weights& weights, const Kernels& kernels, Model& model) {
    check_weights(weights);
    model.cell = static_cast<Cell>(weights.cell);
    model.vocabulary_size = weights.vocabulary_size;
    model.embedding_size = weights.embedding_size;
    model.hidden_size = weights.hidden_size;
    model.padded_size = static_cast<int32_t>(round_up(weights.hidden_size, LANES));
    model.num_layers = weights.num_layers;
    model.gates = model.cell == Cell::lstm ? 4 : model.cell == Cell::elman ? 1 : 3;
    model.int8 = weights.int8 != 0;
    model.kernels = &kernels;
    model.pointers = checked(weights.pointers, weights.vocabulary_size);
    return Packer(weights, kernels, model, nullptr).run();
}

void pack(const gruve_weights& weights, const Kernels& kernels, Model& model) {
    model.pages = Pages(lay_out(weights, kernels, model));
    Packer(weights, kernels, model, &model.pages).run();
    if (!model.folded) model.embedding = weights.embedding;
}

}  // namespace gruve
