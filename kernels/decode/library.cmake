# libonnxcomp_decode.a: the host-free code that decodes, and the door for C.

get_target_property(sources onnxcomp_host_free SOURCES)
list(FILTER sources INCLUDE REGEX "^(codec|cpu|trellis|zstd)/")
list(REMOVE_ITEM sources
     codec/alphabet.cc codec/cabac_encode.cc codec/cabac_fit.cc codec/lane_encoder.cc codec/payload_encode.cc
     codec/rans_encode.cc codec/row_encoder.cc codec/row_fit.cc trellis/choose.cc)
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
  # So that a program's linker can leave out what it does not call (--gc-sections, -dead_strip).
  target_compile_options(onnxcomp_decode PRIVATE
                         -Wall -Wextra -Wconversion -ffunction-sections -fdata-sections)
endif()
set_target_properties(onnxcomp_decode PROPERTIES
                      COMPILE_WARNING_AS_ERROR ${ONNXCOMP_WARNINGS_ARE_ERRORS})

install(TARGETS onnxcomp_decode ARCHIVE DESTINATION lib)
install(FILES decode/onnxcomp_decode.h DESTINATION include)
