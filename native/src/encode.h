// The GGUF block types that floats are encoded into (encode.inl).
#pragma once

#include <cstdint>
#include <cstring>

namespace tokenmill {

enum class BlockType : int { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Count };

constexpr const char* block_type_names[] = {"Q4_0",   "Q4_1",   "Q5_0", "Q5_1", "Q8_0", "IQ4_NL",
                                            "IQ4_XS", "Q2_K",   "Q3_K", "Q4_K", "Q5_K", "Q6_K"};

/// BlockType::Count where no type is called so.
inline BlockType block_type(const char* name) {
  int i = 0;
  while (i < static_cast<int>(BlockType::Count) && std::strcmp(name, block_type_names[i])) i++;
  return static_cast<BlockType>(i);
}

}  // namespace tokenmill
