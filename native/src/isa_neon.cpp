// NEON with dot product: ARMv8.2 and Apple's.
#include "kernels.h"
#if defined(__ARM_FEATURE_DOTPROD)
#define ISA_NAMESPACE neon
#define ISA_NAME "neon"
#include "isa.inl"

namespace tokenmill {
const Kernels* neon_kernels() { return &neon::table; }
}  // namespace tokenmill
#else
namespace tokenmill {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace tokenmill
#endif
