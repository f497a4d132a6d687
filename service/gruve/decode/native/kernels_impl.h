// The kernels, written once over a vector type `V` and compiled once per instruction set. This file says what they
// promise and what they need of V; the files that it includes are its parts.
//
// Results do not depend on tiling: every output is one chain of fused multiply-adds in the order of k, and everything
// else is a fixed sequence of fp32 operations on one element. With int8 weights, the chain of one matrix is an exact
// sum of integers instead. It does not matter which outputs share a vector, a tile or a thread. The
// compiler gets -ffp-contract=off, so only the operations written as fma are fused.
//
// Each instruction set has a source file that includes this one, inside an anonymous namespace within a namespace
// named after it. So the linker can never use a function compiled for AVX-512 on a CPU that has AVX2 only. For the same
// reason the parts use no standard containers or algorithms.
//
// V provides: Float, `width`, `accumulators` (sums kept in registers), `half` (whether it has load_half), `widens` (see
// Kernels), load, load_half, store, set, add, sub, mul, div, fma, min, max (b unless a < b or a > b, so NaN gives b)
// and power (2**n from the bits of n + 1.5 * 2**23).
// For int8: Int, `input_offset`, load_int, load_quads (four weights of K per lane, signed), set_quad (four inputs,
// signed if `input_offset` is 0), add_products (c plus the exact sum of the four products, if no weight exceeds
// WEIGHT_STEPS) and to_float.
// Three variants of V may replace it: V::Few in products of fp16 weights with so few rows that all sums fit in its
// registers, V::Int8 in products of int8 weights, V::Others in all other products.

#include "kernels_activations.h"
#include "kernels_product.h"
#include "kernels_cells.h"
#include "kernels_vectors.h"
