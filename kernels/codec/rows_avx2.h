#pragma once

// The profile `rows` with AVX2; lanes.h says what the functions do.

#include "codec/lanes.h"

namespace onnxcomp::codec {

void decode_rows_avx2(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows);
void classify_rows_avx2(const RowTable& table, const RowGroup& group, RowLanes* rows, uint8_t* classes);
void spread_rows_avx2(const RowGroup& group, int32_t lowest, int32_t* rows);

}  // namespace onnxcomp::codec
