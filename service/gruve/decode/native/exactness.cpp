// Compares an instruction set's int8 products with plain integer products before the first use.

#include <random>
#include <vector>

#include "kernels.h"

namespace gruve {
namespace {

constexpr int32_t DEPTH = 44;
constexpr int32_t MOST_ROWS = 17;  // enough for several full passes

// A matrix of 5 full groups and a last group of one vector, so that passes take 4, 2 and 1 groups.
struct Product {
    Product(int32_t vectors, const Kernels& kernels, std::mt19937& random)
        : width(kernels.width), columns((5 * vectors + 1) * width), weights(columns * DEPTH), packed(columns * DEPTH + 64),
          offsets(columns), steps(columns, 1.0f), start(columns) {
        auto* data = packed.data() + 64 - reinterpret_cast<uintptr_t>(packed.data()) % 64;
        for (int8_t& weight : weights) weight = static_cast<int8_t>(any(random, WEIGHT_STEPS));
        for (int32_t column = 0; column < columns; ++column) {
            const int32_t group = column / (vectors * width), lane = column % (vectors * width);
            const int32_t lanes = group < 5 ? vectors * width : width;
            for (int32_t k = 0; k < DEPTH; ++k) {
                const int8_t weight = weights[column * DEPTH + k];
                data[group * vectors * width * DEPTH + (k / 4 * lanes + lane) * 4 + k % 4] = weight;
                offsets[column] -= kernels.input_offset * weight;
            }
            start[column] = static_cast<float>(column);
        }
        matrix = {data, DEPTH, vectors, 6, 1, Number::int8, steps.data(), offsets.data()};
    }

    // Half of the values are the largest ones.
    static int32_t any(std::mt19937& random, int32_t most) {
        const auto value = static_cast<int32_t>(random() % static_cast<uint32_t>(2 * most + 1)) - most;
        return random() % 2 ? value : value < 0 ? -most : most;
    }

    int32_t width, columns;
    std::vector<int8_t> weights, packed;
    std::vector<int32_t> offsets;
    std::vector<float> steps, start;
    Matrix matrix;
};

bool is_exact(const Kernels& kernels, const Product& product, int32_t rows, std::mt19937& random) {
    std::vector<uint8_t> inputs(static_cast<size_t>(rows) * DEPTH);
    std::vector<float> out(static_cast<size_t>(rows) * product.columns);
    std::vector<int32_t> steps(inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
        steps[i] = Product::any(random, INPUT_STEPS);
        inputs[i] = static_cast<uint8_t>(kernels.input_offset + steps[i]);
    }
    RowView views[MOST_ROWS] = {};
    for (int32_t r = 0; r < rows; ++r) {
        views[r].start = product.start.data();
        views[r].int8_x = inputs.data() + r * DEPTH;
        views[r].out = out.data() + r * product.columns;
    }
    kernels.head(product.matrix, 0, product.matrix.groups, views, rows, nullptr);
    for (int32_t r = 0; r < rows; ++r)
        for (int32_t column = 0; column < product.columns; ++column) {
            int32_t sum = column;
            for (int32_t k = 0; k < DEPTH; ++k)
                sum += product.weights[column * DEPTH + k] * steps[r * DEPTH + k];
            if (out[r * product.columns + column] != static_cast<float>(sum)) return false;
        }
    return true;
}

}  // namespace

bool multiplies_exactly(const Kernels& kernels) {
    std::mt19937 random(1);
    for (int32_t vectors = 1; vectors <= 4; ++vectors) {
        const Product product(vectors, kernels, random);
        for (int32_t rows = 1; rows <= MOST_ROWS; ++rows)
            if (!is_exact(kernels, product, rows, random)) return false;
    }
    return true;
}

}  // namespace gruve
