#pragma once

#include "codec/plan.h"
#include "codec/row_model.h"

namespace onnxcomp::codec::rans {

// Weights, by least squares, that predict a code and how far off the prediction will be. The same for
// the whole chunk, or for each position of the kernel its own.
RowModel fit_row_model(const Source& source, const Header& header, bool by_position);

}  // namespace onnxcomp::codec::rans
