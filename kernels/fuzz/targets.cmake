# Fuzz targets of all that decodes and of all that computes from packed weights, with AddressSanitizer and
# UndefinedBehaviorSanitizer. They are libFuzzer's where the compiler has it; elsewhere driver.cc changes inputs.

option(ONNXCOMP_SANITIZERS "OFF where another processor is emulated, which they would ask too much of" ON)

set(drivers fuzz/driver.cc)
set(engine "")
if(ONNXCOMP_SANITIZERS)
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
  set(CMAKE_REQUIRED_FLAGS -fsanitize=fuzzer)
  check_cxx_source_compiles("
    #include <cstddef>
    #include <cstdint>
    extern \"C\" int LLVMFuzzerTestOneInput(const uint8_t *, size_t) { return 0; }" ONNXCOMP_HAVE_LIBFUZZER)
  unset(CMAKE_REQUIRED_FLAGS)
  if(ONNXCOMP_HAVE_LIBFUZZER)
    set(drivers "")
    set(engine -fsanitize=fuzzer)
    # Tracing comparisons would take most of the time, and inputs start from files that are right.
    list(APPEND sanitizers -fsanitize=fuzzer-no-link -fno-sanitize-coverage=trace-cmp)
  endif()
  # gcc's own headers start vectors with themselves, and gcc warns of it where sanitizers look.
  set(instrumented ${sanitizers} -g1 -O1 -Wno-uninitialized)
endif()

include(decode/library.cmake)
# The usual name: here checksums are computed and all hold (decode/checksum.h).
target_compile_definitions(onnxcomp_decode PRIVATE FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)

# What operators compute with; the decoder's library has what both need.
get_target_property(sources onnxcomp_host_free SOURCES)
list(FILTER sources INCLUDE REGEX "^(binary|convolution|entries|sparse|sparse_int8)/")
add_library(onnxcomp_operators STATIC ${sources})
target_include_directories(onnxcomp_operators PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_compile_definitions(onnxcomp_operators PRIVATE ${definitions})
target_compile_options(onnxcomp_operators PRIVATE -Wall -Wextra -Wconversion)
target_link_libraries(onnxcomp_operators PRIVATE onnxcomp_decode)
foreach(library onnxcomp_decode onnxcomp_operators)
  target_compile_options(${library} PRIVATE ${instrumented})
endforeach()

foreach(source fuzz/binary.cc fuzz/codec.cc fuzz/container.cc fuzz/sparse.cc fuzz/sparse_int8.cc fuzz/zstd.cc)
  string(REGEX REPLACE "fuzz/(.*)\\.cc" "fuzz-\\1" target ${source})
  add_executable(${target} ${source} ${drivers})
  target_include_directories(${target} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion ${instrumented})
  target_link_libraries(${target} PRIVATE onnxcomp_operators onnxcomp_decode)
  target_link_options(${target} PRIVATE ${sanitizers} ${engine})
endforeach()

# The operators themselves, for an onnxruntime in whose process the sanitizers' libraries are loaded first.
file(GLOB doors CONFIGURE_DEPENDS onnxruntime/*.cc)
add_library(onnxcomp_ops SHARED EXCLUDE_FROM_ALL ${doors})
target_compile_options(onnxcomp_ops PRIVATE -Wall -Wextra -Wconversion ${instrumented})
target_include_directories(onnxcomp_ops PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_link_libraries(onnxcomp_ops PRIVATE onnxcomp_operators onnxcomp_decode)
target_link_options(onnxcomp_ops PRIVATE ${sanitizers})
