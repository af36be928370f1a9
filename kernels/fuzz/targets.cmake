# Fuzz targets of all that decodes, with AddressSanitizer and UndefinedBehaviorSanitizer: fuzz-codec, fuzz-zstd and
# fuzz-container. They are libFuzzer's where the compiler has it; elsewhere driver.cc changes inputs.

set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
set(drivers fuzz/driver.cc)
set(engine "")
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

include(decode/library.cmake)
target_compile_options(onnxcomp_decode PUBLIC ${sanitizers} -g1 -O1)
# gcc's own headers start vectors with themselves, and gcc warns of it where sanitizers look.
target_compile_options(onnxcomp_decode PRIVATE -Wno-uninitialized)
target_link_options(onnxcomp_decode PUBLIC ${sanitizers})
# The usual name: here checksums are computed and all hold (decode/checksum.h).
target_compile_definitions(onnxcomp_decode PRIVATE FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)

foreach(source fuzz/codec.cc fuzz/container.cc fuzz/zstd.cc)
  string(REGEX REPLACE "fuzz/(.*)\\.cc" "fuzz-\\1" target ${source})
  add_executable(${target} ${source} ${drivers})
  target_include_directories(${target} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion)
  target_link_libraries(${target} PRIVATE onnxcomp_decode)
  target_link_options(${target} PRIVATE ${engine})
endforeach()
