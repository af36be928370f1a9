// Runs a target where there is no libFuzzer, with its options: `target -runs=N -seed=N FOLDER` changes the files of
// the folder at random, always in the same way. What a run dies of is left in crash.bin.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

#include "fuzz/target.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__  // as gcc has it
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

using Input = std::vector<uint8_t>;

const Input* running = nullptr;

void leave_crash() {
  std::ofstream("crash.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(running->data()), static_cast<std::streamsize>(running->size()));
}

// xorshift64* (S. Vigna, arXiv:1402.6246).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}

  // 0 to below - 1.
  size_t operator()(size_t below) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<size_t>((state_ * 0x2545f4914f6cdd1dULL) >> 33) % below;
  }

 private:
  uint64_t state_;
};

void change(Input* input, const std::vector<Input>& seeds, Random* random) {
  if (input->empty()) return input->push_back(0);
  const size_t at = (*random)(input->size());
  const auto place = input->begin() + static_cast<std::ptrdiff_t>(at);
  const size_t length = 1 + (*random)(std::min<size_t>(input->size() - at, 16));
  constexpr uint8_t kEdges[] = {0, 1, 127, 128, 254, 255};
  switch ((*random)(8)) {
    case 0: *place = static_cast<uint8_t>((*random)(256)); break;
    case 1: *place = static_cast<uint8_t>(*place ^ 1 << (*random)(8)); break;
    case 2: *place = static_cast<uint8_t>(*place + (*random)(2) * 2 - 1); break;
    case 3: *place = kEdges[(*random)(sizeof kEdges)]; break;
    case 4: input->erase(place, place + static_cast<std::ptrdiff_t>(length)); break;
    case 5: input->insert(place, length, *place); break;
    case 6: input->resize(at); break;
    default: {  // from here on as another one
      const Input& other = seeds[(*random)(seeds.size())];
      const size_t from = std::min((*random)(2) == 0 ? at : (*random)(other.size() + 1), other.size());
      input->resize(at);
      input->insert(input->end(), other.begin() + static_cast<std::ptrdiff_t>(from), other.end());
    }
  }
}

// The target gets memory of exactly the size of the input, behind which nothing may be read.
void run(const Input& input) {
  running = &input;
  const std::unique_ptr<uint8_t[]> exact(new uint8_t[input.size()]);
  if (!input.empty()) std::memcpy(exact.get(), input.data(), input.size());
  LLVMFuzzerTestOneInput(exact.get(), input.size());
}

// The files of a folder, in the order of their names.
std::vector<Input> read_files(const char* folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Input> inputs;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

}  // namespace

int main(int count, char** arguments) {
  long long runs = 0, seed = 1;
  std::vector<Input> seeds;
  for (int i = 1; i < count; ++i) {
    if (std::strncmp(arguments[i], "-runs=", 6) == 0)
      runs = std::atoll(arguments[i] + 6);
    else if (std::strncmp(arguments[i], "-seed=", 6) == 0)
      seed = std::atoll(arguments[i] + 6);
    else if (arguments[i][0] != '-')  // libFuzzer has more options
      seeds = read_files(arguments[i]);
  }
  if (seeds.empty()) return 2;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(leave_crash);
#endif
  for (const Input& input : seeds) run(input);
  Random random(static_cast<uint64_t>(seed));
  for (long long i = 0; i < runs; ++i) {
    Input input = seeds[random(seeds.size())];
    for (size_t changes = 1 + random(4); changes > 0; --changes) change(&input, seeds, &random);
    run(input);
  }
  std::fprintf(stderr, "Done %lld runs\n", runs);
  return 0;
}
