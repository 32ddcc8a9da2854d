// AVX2, FMA, F16C: x86 since 2013.
#include "kernels.h"
#if defined(__AVX2__)
#define ISA_NAMESPACE avx2
#define ISA_NAME "avx2"
#include "isa.inl"

namespace tokenmill {
const Kernels* avx2_kernels() { return &avx2::table; }
}  // namespace tokenmill
#else
namespace tokenmill {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace tokenmill
#endif
