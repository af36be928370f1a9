target_sources(onnxcomp_host_free PRIVATE
               sparse/conv.cc
               sparse/dispatch.cc
               sparse/matmul.cc
               sparse/packed_weights.cc
               sparse/portable.cc)

if(ONNXCOMP_TARGET_X86_64)
  target_sources(onnxcomp_host_free PRIVATE sparse/avx2.cc sparse/avx512.cc)
  if(MSVC)
    set_source_files_properties(sparse/avx2.cc PROPERTIES COMPILE_OPTIONS /arch:AVX2)
    set_source_files_properties(sparse/avx512.cc PROPERTIES COMPILE_OPTIONS /arch:AVX512)
  else()
    set(ONNXCOMP_SPARSE_AVX2_OPTIONS -mavx2 -mfma)
    set(ONNXCOMP_SPARSE_AVX512_OPTIONS -mavx512f)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # Everything that gains is written as vectors already; gcc's gathers slow the row kernel by half.
      list(APPEND ONNXCOMP_SPARSE_AVX2_OPTIONS -fno-tree-loop-vectorize)
      # gcc 12's own headers start some results undefined on purpose, and gcc warns of it.
      list(APPEND ONNXCOMP_SPARSE_AVX512_OPTIONS -fno-tree-loop-vectorize -Wno-maybe-uninitialized
                  -Wno-uninitialized)
    endif()
    set_source_files_properties(sparse/avx2.cc PROPERTIES
                                COMPILE_OPTIONS "${ONNXCOMP_SPARSE_AVX2_OPTIONS}")
    set_source_files_properties(sparse/avx512.cc PROPERTIES
                                COMPILE_OPTIONS "${ONNXCOMP_SPARSE_AVX512_OPTIONS}")
  endif()
elseif(ONNXCOMP_TARGET_ARM64)
  target_sources(onnxcomp_host_free PRIVATE sparse/neon.cc)
endif()
