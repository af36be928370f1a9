target_sources(onnxcomp_host_free PRIVATE
               sparse_int8/conv.cc
               sparse_int8/dispatch.cc
               sparse_int8/layer.cc
               sparse_int8/matmul.cc
               sparse_int8/packed_weights.cc
               sparse_int8/portable.cc)

if(ONNXCOMP_TARGET_X86_64)
  target_sources(onnxcomp_host_free PRIVATE sparse_int8/avx2.cc sparse_int8/avx512.cc)
  if(MSVC)
    set_source_files_properties(sparse_int8/avx2.cc PROPERTIES COMPILE_OPTIONS /arch:AVX2)
    set_source_files_properties(sparse_int8/avx512.cc PROPERTIES COMPILE_OPTIONS /arch:AVX512)
  else()
    set_source_files_properties(sparse_int8/avx2.cc PROPERTIES COMPILE_OPTIONS -mavx2)
    set(ONNXCOMP_VNNI_OPTIONS -mavx512f -mavx512bw -mavx512vl -mavx512vnni)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # gcc 12's own headers start some results undefined on purpose, and gcc warns of it.
      list(APPEND ONNXCOMP_VNNI_OPTIONS -Wno-maybe-uninitialized -Wno-uninitialized)
    endif()
    set_source_files_properties(sparse_int8/avx512.cc PROPERTIES
                                COMPILE_OPTIONS "${ONNXCOMP_VNNI_OPTIONS}")
  endif()
endif()
