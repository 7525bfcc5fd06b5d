// Trains the network that export.py wrote into a folder, without Python: train FOLDER STEPS
#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <sstream>

#include "safetensors.h"

static std::vector<std::string> lines(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string line; std::getline(stream, line);) found.push_back(line);
  return found;
}

int main(int count, char** arguments) {
  if (count != 3) return std::fprintf(stderr, "usage: train FOLDER STEPS\n"), 2;
  const std::string folder = arguments[1];
  const int steps = std::stoi(arguments[2]), rows = 50;
  at::set_num_threads(1);
  torch::inductor::AOTIModelPackageLoader step(folder + "/disk.pt2");
  const auto inputs = lines(step.get_metadata().at("fundl.inputs")), outputs = lines(step.get_metadata().at("fundl.outputs"));
  Tensors state = read(folder + "/disk.safetensors", "state"), data = read(folder + "/data.safetensors", "");

  const auto run = [&](const at::Tensor& points, const at::Tensor& targets) {
    std::vector<at::Tensor> given;
    for (const auto& name : inputs) given.push_back(name == "batch.0" ? points : name == "batch.1" ? targets : state.at(name));
    const auto results = step.run(given);
    Tensors named;
    for (size_t place = 0; place < outputs.size(); ++place) named[outputs[place]] = results[place];
    return named;
  };

  for (int number = 0; number < steps; ++number) {
    const int64_t first = number * rows % data.at(".train.points").size(0);
    const auto results = run(data.at(".train.points").narrow(0, first, rows), data.at(".train.targets").narrow(0, first, rows));
    for (const auto& [name, tensor] : results)
      if (name.rfind("next.", 0) == 0) state[name.substr(5)] = tensor;  // of next.state.model.0.weight
    std::printf("%.9g\n", results.at("report.loss").item<double>());
  }
  write(folder + "/trained.safetensors", folder + "/disk.safetensors", "state", state);
  const auto answers = run(data.at(".test.points"), data.at(".test.targets")).at("report.prediction");
  const auto right = answers.argmax(1).eq(data.at(".test.targets").argmax(1));
  std::fprintf(stderr, "test accuracy %.2f%%\n", 100 * right.to(at::kDouble).mean().item<double>());
}
