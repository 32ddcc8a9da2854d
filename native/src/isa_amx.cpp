// AVX-512 and AMX: Sapphire Rapids and later.
#include "kernels.h"
#if defined(__AMX_BF16__)
#define ISA_NAMESPACE amx
#define ISA_NAME "amx"
#include "isa.inl"

namespace tokenmill {
const Kernels* amx_kernels() { return &amx::table; }
}  // namespace tokenmill
#else
namespace tokenmill {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace tokenmill
#endif
