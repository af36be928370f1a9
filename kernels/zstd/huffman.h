#pragma once

// Huffman codes of literals (RFC 8878, 4.2).

#include "zstd/fse.h"

namespace onnxcomp::zstd {

inline constexpr int kLongestCode = 11;

struct HuffmanTable {
  struct Entry {
    uint8_t symbol;
    uint8_t bits;
  };
  Entry entries[1 << kLongestCode];
  int log;  // bits that choose an entry; 0: there is no table
};

// Reads a tree's description off the front of `bytes`. `scratch` may be any table.
Status read_huffman(Bytes* bytes, FseTable* scratch, HuffmanTable* table) noexcept;

// `count` symbols from a stream that holds no more.
Status decode_huffman(const HuffmanTable& table, Bytes stream, uint8_t* out, size_t count) noexcept;

}  // namespace onnxcomp::zstd
