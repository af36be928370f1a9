target_sources(onnxcomp_host_free PRIVATE
               sparse_int8/conv.cc
               sparse_int8/dispatch.cc
               sparse_int8/layer.cc
               sparse_int8/matmul.cc
               sparse_int8/packed_weights.cc
               sparse_int8/portable.cc)

if(NOT MSVC)
  # Every instruction set gives the same bits: none may fuse a multiplication with an addition.
  set_source_files_properties(sparse_int8/portable.cc PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
endif()

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
elseif(ONNXCOMP_TARGET_ARM64)
  target_sources(onnxcomp_host_free PRIVATE sparse_int8/neon.cc)
  if(NOT MSVC)
    target_sources(onnxcomp_host_free PRIVATE sparse_int8/neon_dotprod.cc sparse_int8/neon_i8mm.cc)
    target_compile_definitions(onnxcomp_host_free PRIVATE
                               ONNXCOMP_HAVE_NEON_DOTPROD ONNXCOMP_HAVE_NEON_I8MM)
    set_source_files_properties(sparse_int8/neon_dotprod.cc PROPERTIES
                                COMPILE_OPTIONS -march=armv8.2-a+dotprod)
    set_source_files_properties(sparse_int8/neon_i8mm.cc PROPERTIES
                                COMPILE_OPTIONS -march=armv8.2-a+dotprod+i8mm)
  endif()
endif()
