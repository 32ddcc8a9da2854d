// AVX-512 with VNNI and bfloat16: Zen 4, Cooper Lake and later.
#include "kernels.h"
#if defined(__AVX512VNNI__)
#define ISA_NAMESPACE avx512
#define ISA_NAME "avx512"
#include "isa.inl"

namespace tokenmill {
const Kernels* avx512_kernels() { return &avx512::table; }
}  // namespace tokenmill
#else
namespace tokenmill {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace tokenmill
#endif
