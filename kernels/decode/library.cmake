# libonnxcomp_decode.a: the host-free code but for kernels of operators, and the door for C.

get_target_property(sources onnxcomp_host_free SOURCES)
list(FILTER sources EXCLUDE REGEX "^sparse")
get_target_property(definitions onnxcomp_host_free COMPILE_DEFINITIONS)
set_target_properties(onnxcomp_host_free PROPERTIES EXCLUDE_FROM_ALL ON)

add_library(onnxcomp_decode STATIC
            ${sources}
            decode/container.cc
            decode/data_types.cc
            decode/directory.cc
            decode/failure.cc
            decode/floats.cc
            decode/numbers.cc
            decode/onnxcomp_decode.cc
            decode/source.cc
            decode/tensors.cc)
target_include_directories(onnxcomp_decode PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
if(definitions)
  target_compile_definitions(onnxcomp_decode PRIVATE ${definitions})
endif()
if(MSVC)
  target_compile_options(onnxcomp_decode PRIVATE /W4 /permissive- /Gy)
else()
  # So that a program's linker can leave the encoder out (--gc-sections, -dead_strip).
  target_compile_options(onnxcomp_decode PRIVATE
                         -Wall -Wextra -Wconversion -ffunction-sections -fdata-sections)
endif()
set_target_properties(onnxcomp_decode PROPERTIES
                      COMPILE_WARNING_AS_ERROR ${ONNXCOMP_WARNINGS_ARE_ERRORS})

install(TARGETS onnxcomp_decode ARCHIVE DESTINATION lib)
install(FILES decode/onnxcomp_decode.h DESTINATION include)
