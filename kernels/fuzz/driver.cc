// Runs a target where there is no libFuzzer, with its options: `target -runs=N -seed=N FOLDER` changes the files of
// the folder at random, always in the same way; `-max_total_time=N` goes on for so many seconds instead. What a run
// dies of is left in crash.bin. `-results=FILE` keeps what becomes of the files as they are.

#include <algorithm>
#include <chrono>
#include <csignal>
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

// So that undefined behaviour ends in SIGABRT, too.
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1"; }

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

struct Options {
  long long runs = 0, seed = 1, seconds = 0;
  const char* results = nullptr;
  const char* folder = nullptr;

  Options(int count, char** arguments) {
    for (int i = 1; i < count; ++i) {
      const char* value = nullptr;
      const auto is = [&](const char* name) {
        const size_t length = std::strlen(name);
        value = arguments[i] + length;
        return std::strncmp(arguments[i], name, length) == 0;
      };
      if (is("-runs="))
        runs = std::atoll(value);
      else if (is("-seed="))
        seed = std::atoll(value);
      else if (is("-max_total_time="))
        seconds = std::atoll(value);
      else if (is("-results="))
        results = value;
      else if (arguments[i][0] != '-')  // libFuzzer has more options
        folder = arguments[i];
    }
  }
};

// The files as they are; what becomes of them goes to `results`, unless that is null.
void run_seeds(const std::vector<Input>& seeds, const char* results) {
  std::FILE* file = results == nullptr ? nullptr : std::fopen(results, "wb");
  onnxcomp::fuzz::expect(file != nullptr || results == nullptr, "results cannot be written");
  onnxcomp::fuzz::results = file;
  for (const Input& input : seeds) {
    run(input);
    onnxcomp::fuzz::record("", "", 0);
  }
  onnxcomp::fuzz::results = nullptr;
  if (file != nullptr) std::fclose(file);
}

// How many were run.
long long run_changed(const std::vector<Input>& seeds, const Options& options) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(options.seconds);
  Random random(static_cast<uint64_t>(options.seed));
  long long done = 0;
  for (; options.seconds > 0 ? Clock::now() < end : done < options.runs; ++done) {
    Input input = seeds[random(seeds.size())];
    for (size_t changes = 1 + random(4); changes > 0; --changes) change(&input, seeds, &random);
    run(input);
  }
  return done;
}

}  // namespace

int main(int count, char** arguments) {
  const Options options(count, arguments);
  const std::vector<Input> seeds = options.folder == nullptr ? std::vector<Input>() : read_files(options.folder);
  if (seeds.empty()) return 2;
  std::signal(SIGABRT, [](int) { leave_crash(); });
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(leave_crash);
#endif
  run_seeds(seeds, options.results);
  std::fprintf(stderr, "Done %lld runs\n", run_changed(seeds, options));
  return 0;
}
