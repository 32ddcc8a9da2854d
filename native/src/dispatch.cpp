// Which kernels this machine can run.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tokenmill {
namespace {

#if defined(__x86_64__)
/// Linux hands out AMX's tile registers only to processes that ask for them.
bool may_use_tiles() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  unsigned a, b, c, d;
  const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  return bf16 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
bool may_use_tiles() { return false; }
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

}  // namespace

const Kernels& kernels(const char* name) {
  const bool any = name == nullptr || !*name;
  const auto wanted = [&](const char* isa) { return any || !std::strcmp(name, isa); };
  if (const Kernels* k = amx_kernels(); k && wanted("amx") && has_avx512() && may_use_tiles()) return *k;
  if (const Kernels* k = avx512_kernels(); k && wanted("avx512") && has_avx512()) return *k;
  if (const Kernels* k = avx2_kernels(); k && wanted("avx2") && has_avx2()) return *k;
  if (const Kernels* k = neon_kernels(); k && wanted("neon")) return *k;
  throw std::invalid_argument(any ? std::string("these kernels need AVX2 or NEON with dot product")
                                  : std::string("this machine or build has no kernels for ") + name +
                                        "; known: amx, avx512, avx2, neon");
}

}  // namespace tokenmill
