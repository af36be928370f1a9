#include "codec/cabac.h"
#include "codec/cabac_stream.h"

namespace onnxcomp::codec::cabac {

Status decode(Bytes payload, Geometry geometry, int32_t* codes) {
  if (payload.size < 2) return Status::kTruncated;
  if (payload.data[1] >= kProfiles) return Status::kUnknownProfile;
  Model model;
  model.profile = static_cast<Profile>(payload.data[1]);
  BitReader reader({payload.data + 2, payload.size - 2});
  const Status status = read_model(&reader, geometry, &model);
  if (status != Status::kOk) return status;
  if (!reader.padding_is_zero()) return Status::kBadHeader;
  prepare(&model);
  const size_t begin = 2 + reader.position();
  Stream<Decoder> stream(Decoder({payload.data + begin, payload.size - begin}), model, geometry);
  code_all(&stream, model, geometry, codes);
  if (!stream.intact()) return Status::kBadEscape;
  return stream.coder.end();
}

}  // namespace onnxcomp::codec::cabac
