#include "bindings/trellis.h"

#include <nanobind/ndarray.h>

#include "trellis/trellis.h"

namespace nb = nanobind;

namespace onnxcomp {
namespace {

using Codes = nb::ndarray<int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Targets = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OfCode = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void restore(const Codes& codes) {
  const auto size = [&](size_t axis) { return static_cast<int64_t>(codes.shape(axis)); };
  nb::gil_scoped_release unlocked;
  trellis::restore(codes.data(), size(0), size(1), size(2));
}

double choose(const Targets& targets, int64_t period, const OfCode& prices, const Integers& integers) {
  if (targets.shape(0) != integers.shape(0) || targets.shape(1) != integers.shape(1))
    throw nb::value_error("targets and integers differ in shape");
  if (period < 1 || prices.size() < 1) throw nb::value_error("the period and the number of prices are at least 1");
  const auto length = static_cast<int64_t>(targets.shape(1));
  nb::gil_scoped_release unlocked;
  double total = 0;
  for (size_t row = 0; row < targets.shape(0); ++row) {
    const auto first = static_cast<int64_t>(row) * length;
    total += trellis::choose(targets.data() + first, length, period,
                             {prices.data(), static_cast<int64_t>(prices.size())}, integers.data() + first);
  }
  return total;
}

}  // namespace

void bind_trellis(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("restore_trellis", &restore, "codes"_a);
  module.def("choose_trellis", &choose, "targets"_a, "period"_a, "prices"_a, "integers"_a);
}

}  // namespace onnxcomp
