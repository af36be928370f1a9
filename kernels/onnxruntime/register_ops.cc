#include <cstdio>
#include <string>

#include "onnxruntime/abi.h"
#include "onnxruntime/binary_ops.h"
#include "onnxruntime/errors.h"
#include "onnxruntime/sparse_conv_op.h"
#include "onnxruntime/sparse_int8_ops.h"
#include "onnxruntime/sparse_matmul_op.h"

namespace onnxcomp::ort {
namespace {

// A domain of onnxruntime's, released with its owner.
struct DomainHandle {
  DomainHandle(FunctionTable table, const char* name) : api(table) {
    check(api, CreateCustomOpDomain::call(api, name, &domain));
  }
  ~DomainHandle() { ReleaseDomain::call(api, domain); }
  DomainHandle(const DomainHandle&) = delete;
  DomainHandle& operator=(const DomainHandle&) = delete;

  FunctionTable api;
  CustomOpDomain* domain = nullptr;
};

// The domain "onnxcomp" with every operator of this library: a new operator is one member and one
// line. Sessions keep pointers to both, and the library loaded; onnxruntime unloads it with the last
// of them, and loads it again for the next one, so what is not freed then would be lost each time.
struct Domain {
  explicit Domain(FunctionTable table) : api(table) {
    CustomOpDomain* const domain = handle.domain;
    check(api, AddOpToDomain::call(api, domain, &sparse_matmul));
    check(api, AddOpToDomain::call(api, domain, &sparse_conv));
    check(api, AddOpToDomain::call(api, domain, &sparse_qlinear_matmul));
    check(api, AddOpToDomain::call(api, domain, &sparse_matmul_integer_to_float));
    check(api, AddOpToDomain::call(api, domain, &sparse_qlinear_conv));
    check(api, AddOpToDomain::call(api, domain, &sparse_conv_integer_to_float));
    check(api, AddOpToDomain::call(api, domain, &pack_signs));
    check(api, AddOpToDomain::call(api, domain, &binary_max_pool));
    check(api, AddOpToDomain::call(api, domain, &binary_conv));
    check(api, AddOpToDomain::call(api, domain, &binary_conv_signs));
    check(api, AddOpToDomain::call(api, domain, &binary_gemm));
    check(api, AddOpToDomain::call(api, domain, &binary_gemm_signs));
  }

  FunctionTable api;
  Operator<SparseMatMul> sparse_matmul{api};
  Operator<SparseConv> sparse_conv{api};
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
  DomainHandle handle{api, "onnxcomp"};
};

// onnxruntime refuses a domain that is there twice, and does not say which ones are: so a note in the
// options themselves says that they have it, to other copies of this library, too. A clone of options
// has their notes but not their domains; the address tells them apart.
void add_domain(FunctionTable api, SessionOptions* options, CustomOpDomain* domain) {
  char note[64];
  std::snprintf(note, sizeof note, "onnxcomp.is_registered.%p", static_cast<void*>(options));
  int is_noted = 0;
  check(api, HasConfigEntry::call(api, options, note, &is_noted));
  if (is_noted != 0) return;
  check(api, AddDomainToOptions::call(api, options, domain));
  check(api, AddConfigEntry::call(api, options, note, "1"));
}

Status* register_ops(SessionOptions* options, const ApiBase* base) noexcept {
  const FunctionTable api = base->get_api(kApiVersion);
  if (api == nullptr) {
    // Any runtime has the first version, and with it a way to say what is wrong.
    return returning_status(base->get_api(1), "onnxcomp", std::string(), [&] {
      throw InvalidArgument(std::string("its operators need onnxruntime 1.17 or newer, this is ") +
                            base->get_version_string());
    });
  }
  return returning_status(api, "onnxcomp", std::string(), [&] {
    static const Domain domain(api);
    if (domain.api != api)
      throw InvalidArgument("its operators are in use by another onnxruntime in this process");
    add_domain(api, options, domain.handle.domain);
  });
}

}  // namespace
}  // namespace onnxcomp::ort

ONNXCOMP_EXPORT onnxcomp::ort::Status* RegisterCustomOps(onnxcomp::ort::SessionOptions* options,
                                                         const onnxcomp::ort::ApiBase* base) {
  return onnxcomp::ort::register_ops(options, base);
}
