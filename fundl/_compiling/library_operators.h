// Operators of torch's that have no function of their own in its stable C interface: they are called by their name.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>

namespace fundl {

struct Argument {
  enum Kind : int32_t { tensor, number, text } kind;
  void* of_tensor;
  int64_t of_number;
  const char* of_text;
  Argument(void* value) : kind(tensor), of_tensor(value), of_number(0), of_text(nullptr) {}
  Argument(int64_t value) : kind(number), of_tensor(nullptr), of_number(value), of_text(nullptr) {}
  Argument(const char* value) : kind(text), of_tensor(nullptr), of_number(0), of_text(value) {}
};

}  // namespace fundl

// The tensor that an operator gives, in the place of one that is there; whether it failed, with the reason.
extern "C" int32_t fundl_call_operator(
    const char* name, const char* overload, const fundl::Argument* arguments, size_t count, void* result, char* reason,
    size_t size);

namespace fundl {

template <size_t count>
void call_operator(const char* name, const char* overload, const Argument (&arguments)[count], void* result) {
  char reason[1024];
  if (fundl_call_operator(name, overload, arguments, count, result, reason, sizeof reason)) throw std::runtime_error(reason);
}

}  // namespace fundl
