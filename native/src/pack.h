// From GGUF's blocks, or floats, to panels (formats.h).
#pragma once

#include "formats.h"

namespace tokenmill {

/// The kind for a GGUF type name ("Q4_K", "BF16"), or Kind::Count if it cannot be packed.
Kind kind_of(const char* name);

/// Bytes of one row of `k` weights in a GGUF file.
int64_t gguf_row_bytes(Kind kind, int64_t k);

/// Packs panel `p` of a matrix [n, k] whose rows are GGUF blocks (or plain floats) one after the other.
void pack_panel(const Weight& shape, int64_t p, const uint8_t* rows, uint8_t* out);

/// Packs panel `p` from codes [n, k] (one a byte, unsigned) and half-precision scales and minima [n, groups]: GPTQ, AWQ,
/// INT8 and what else has a scale for each group. `minima` may be null for kinds without.
void pack_codes(const Weight& shape, int64_t p, const uint8_t* codes, const uint16_t* scales, const uint16_t* minima,
                uint8_t* out);

}  // namespace tokenmill
