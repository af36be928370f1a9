#include <string>

#include "onnxruntime/abi.h"
#include "onnxruntime/binary_ops.h"
#include "onnxruntime/errors.h"
#include "onnxruntime/sparse_int8_ops.h"
#include "onnxruntime/sparse_matmul_op.h"

namespace onnxcomp::ort {
namespace {

// The domain "onnxcomp" with every operator of this library: a new operator is one member and one
// line. onnxruntime keeps pointers to both as long as any session lives, so they are never freed.
struct Domain {
  explicit Domain(FunctionTable table) : api(table) {
    check(api, CreateCustomOpDomain::call(api, "onnxcomp", &handle));
    check(api, AddOpToDomain::call(api, handle, &sparse_matmul));
    check(api, AddOpToDomain::call(api, handle, &sparse_qlinear_matmul));
    check(api, AddOpToDomain::call(api, handle, &sparse_matmul_integer_to_float));
    check(api, AddOpToDomain::call(api, handle, &sparse_qlinear_conv));
    check(api, AddOpToDomain::call(api, handle, &sparse_conv_integer_to_float));
    check(api, AddOpToDomain::call(api, handle, &pack_signs));
    check(api, AddOpToDomain::call(api, handle, &binary_max_pool));
    check(api, AddOpToDomain::call(api, handle, &binary_conv));
    check(api, AddOpToDomain::call(api, handle, &binary_conv_signs));
    check(api, AddOpToDomain::call(api, handle, &binary_gemm));
    check(api, AddOpToDomain::call(api, handle, &binary_gemm_signs));
  }

  FunctionTable api;
  Operator<SparseMatMul> sparse_matmul{api};
  Operator<SparseQLinearMatMul> sparse_qlinear_matmul{api};
  Operator<SparseMatMulIntegerToFloat> sparse_matmul_integer_to_float{api};
  Operator<SparseQLinearConv> sparse_qlinear_conv{api};
  Operator<SparseConvIntegerToFloat> sparse_conv_integer_to_float{api};
  Operator<PackSigns> pack_signs{api};
  Operator<BinaryMaxPool> binary_max_pool{api};
  Operator<BinaryConv> binary_conv{api};
  Operator<BinaryConvSigns> binary_conv_signs{api};
  Operator<BinaryGemm> binary_gemm{api};
  Operator<BinaryGemmSigns> binary_gemm_signs{api};
  CustomOpDomain* handle = nullptr;
};

Status* register_ops(SessionOptions* options, const ApiBase* base) noexcept {
  const FunctionTable api = base->get_api(kApiVersion);
  if (api == nullptr) {
    // Any runtime has the first version, and with it a way to say what is wrong.
    return returning_status(base->get_api(1), "onnxcomp", [&] {
      throw InvalidArgument(std::string("its operators need onnxruntime 1.17 or newer, this is ") +
                            base->get_version_string());
    });
  }
  return returning_status(api, "onnxcomp", [&] {
    static const Domain domain(api);
    if (domain.api != api)
      throw InvalidArgument("its operators are in use by another onnxruntime in this process");
    check(api, AddDomainToOptions::call(api, options, domain.handle));
  });
}

}  // namespace
}  // namespace onnxcomp::ort

ONNXCOMP_EXPORT onnxcomp::ort::Status* RegisterCustomOps(onnxcomp::ort::SessionOptions* options,
                                                         const onnxcomp::ort::ApiBase* base) {
  return onnxcomp::ort::register_ops(options, base);
}
