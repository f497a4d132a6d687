// The kernels for NEON, which every 64-bit ARM CPU has.

#include <arm_neon.h>

#include "kernels.h"

namespace gruve {
namespace neon {
namespace {

#include "kernels_neon_impl.h"

}  // namespace
}  // namespace neon

const Kernels neon_kernels = neon::kernels<neon::Neon>("neon");

}  // namespace gruve
