// Calls of operators by their names, compiled once on a machine: torch's own headers take long.
//
// They go past rules for derivatives. Those of exchanges between processes are written in Python: their tensors would become
// objects of Python's, which gloo's threads then free, each waiting for Python.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

extern "C" int32_t fundl_call_operator(
    const char* name, const char* overload, const fundl::Argument* arguments, size_t count, void* result, char* reason,
    size_t size) {
  try {
    const at::AutoDispatchBelowAutograd below;
    const auto found = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
    torch::jit::Stack stack;
    for (size_t i = 0; i < count; i++) {
      const fundl::Argument& given = arguments[i];
      if (given.kind == fundl::Argument::tensor) stack.emplace_back(*static_cast<at::Tensor*>(given.of_tensor));
      else if (given.kind == fundl::Argument::number) stack.emplace_back(given.of_number);
      else stack.emplace_back(std::string(given.of_text));
    }
    found.callBoxed(stack);
    *static_cast<at::Tensor*>(result) = std::move(stack.back()).toTensor();
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(reason, size, "%s", error.what());
  } catch (...) {
    std::snprintf(reason, size, "no reason is given");
  }
  return 1;
}
