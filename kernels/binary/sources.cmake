# Every instruction set gives the same bits, so none may fuse a multiplication with an addition.
set(ONNXCOMP_BINARY_SIMD)
set(ONNXCOMP_BINARY_OPTIONS)
if(NOT MSVC)
  set(ONNXCOMP_BINARY_OPTIONS -ffp-contract=off)
endif()
if(ONNXCOMP_TARGET_X86_64)
  set(ONNXCOMP_BINARY_SIMD binary/avx2.cc binary/avx512.cc)
  if(MSVC)
    set(ONNXCOMP_BINARY_AVX2_OPTIONS /arch:AVX2)
    set(ONNXCOMP_BINARY_AVX512_OPTIONS /arch:AVX512)
  else()
    set(ONNXCOMP_BINARY_AVX2_OPTIONS -mavx2)
    set(ONNXCOMP_BINARY_AVX512_OPTIONS
        -mavx512f -mavx512bw -mavx512vl -mavx512vpopcntdq -mavx2)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # gcc 12's own headers start some results undefined on purpose, and gcc warns of it.
    list(APPEND ONNXCOMP_BINARY_AVX512_OPTIONS -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  set_source_files_properties(binary/avx2.cc PROPERTIES COMPILE_OPTIONS
                              "${ONNXCOMP_BINARY_OPTIONS};${ONNXCOMP_BINARY_AVX2_OPTIONS}")
  set_source_files_properties(binary/avx512.cc PROPERTIES COMPILE_OPTIONS
                              "${ONNXCOMP_BINARY_OPTIONS};${ONNXCOMP_BINARY_AVX512_OPTIONS}")
elseif(ONNXCOMP_TARGET_ARM64)
  set(ONNXCOMP_BINARY_SIMD binary/neon.cc)
  set_source_files_properties(binary/neon.cc PROPERTIES COMPILE_OPTIONS "${ONNXCOMP_BINARY_OPTIONS}")
endif()
set_source_files_properties(binary/portable.cc PROPERTIES
                            COMPILE_OPTIONS "${ONNXCOMP_BINARY_OPTIONS}")
target_sources(onnxcomp_host_free PRIVATE
               binary/borders.cc
               binary/conv.cc
               binary/dispatch.cc
               binary/gemm.cc
               binary/packed_weights.cc
               binary/planes.cc
               binary/portable.cc
               ${ONNXCOMP_BINARY_SIMD})
