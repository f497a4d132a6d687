// The kernels for NEON with the dot-product instructions.

#include <arm_neon.h>

#include "kernels.h"

namespace gruve {
namespace dotprod {
namespace {

#include "kernels_neon_impl.h"

struct DotProduct : Neon {
    using Int8 = DotProduct;

    static Int add_products(Int weights, Int inputs, Int c) {
        return vdotq_s32(c, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(inputs));
    }
};

}  // namespace
}  // namespace dotprod

const Kernels dotprod_kernels = dotprod::kernels<dotprod::DotProduct>("dotprod");

}  // namespace gruve
