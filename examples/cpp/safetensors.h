// Files of fundl.save: the length of a header in 8 bytes, the header in JSON, and the numbers of all tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

using Tensors = std::map<std::string, at::Tensor>;

// What a header says of a tensor: the entry itself, its name, and where its numbers are.
struct Entry {
  std::string text, name, dtype;
  std::vector<int64_t> shape;
  size_t first;
};

struct File {
  std::vector<Entry> entries;
  std::string numbers;

  explicit File(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    uint64_t length = 0;
    if (!file.read(reinterpret_cast<char*>(&length), sizeof length)) throw std::runtime_error("cannot read " + path);
    std::string header(length, ' ');
    file.read(header.data(), static_cast<std::streamsize>(length));
    numbers.assign(std::istreambuf_iterator<char>(file), {});
    static const std::regex entry(R"re("([^"]+)":\{"dtype":"(\w+)","shape":\[([\d,]*)\],"data_offsets":\[(\d+),\d+\]\})re");
    static const std::regex number(R"(\d+)"), opening(R"(\['?)"), closing(R"('?\])");
    for (std::sregex_iterator found(header.begin(), header.end(), entry), end; found != end; ++found) {
      const auto& match = *found;
      const auto name = std::regex_replace(match[1].str(), opening, ".");  // .model[0] is called .model.0
      Entry one{match[0], std::regex_replace(name, closing, ""), match[2], {}, std::stoull(match[4])};
      const std::string sizes = match[3];
      for (std::sregex_iterator size(sizes.begin(), sizes.end(), number); size != end; ++size)
        one.shape.push_back(std::stoll(size->str()));
      entries.push_back(one);
    }
  }
};

// The tensors of a file, each called by a prefix and its name.
inline Tensors read(const std::string& path, const std::string& prefix) {
  static const std::map<std::string, at::ScalarType> dtypes{{"BOOL", at::kBool}, {"I32", at::kInt}, {"I64", at::kLong},
                                                            {"BF16", at::kBFloat16}, {"F32", at::kFloat}, {"F64", at::kDouble}};
  File file(path);
  Tensors tensors;
  for (const auto& one : file.entries)
    tensors[prefix + one.name] = at::from_blob(file.numbers.data() + one.first, one.shape, dtypes.at(one.dtype)).clone();
  return tensors;
}

// Writes a file of tensors like those of another one, for fundl.load.
inline void write(const std::string& path, const std::string& like, const std::string& prefix, const Tensors& tensors) {
  File file(like);
  std::string header;
  for (const auto& one : file.entries) {
    const at::Tensor tensor = tensors.at(prefix + one.name).contiguous();
    std::memcpy(file.numbers.data() + one.first, tensor.data_ptr(), tensor.nbytes());
    header += (header.empty() ? "{" : ",") + one.text;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(&length), sizeof length) << header << file.numbers;
}
