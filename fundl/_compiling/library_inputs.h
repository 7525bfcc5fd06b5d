// The inputs of a compiled program: tensors of Python's, or, in a loop over steps, memory.
//
// Of torch's headers it needs no more than those of its stable C interface.

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <torch/csrc/inductor/aoti_runtime/arrayref_tensor.h>
#include <torch/csrc/inductor/aoti_runtime/thread_local.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

namespace fundl {

struct Form {  // of a tensor
  int32_t (*dtype)();
  int64_t axes;
  const int64_t *sizes, *strides;
};

class Input {
 public:
  Input() = default;
  Input(void** tensor, void* memory, const Form* form, AtenTensorHandle* made)
      : tensor_(tensor), memory_(memory), form_(form), made_(made) {
    if (tensor_) AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(get(), &memory_));
  }

  // A tensor is made of memory when a kernel of torch's wants one.
  AtenTensorHandle get() const {
    if (tensor_) return reinterpret_cast<AtenTensorHandle>(tensor_);  // a handle is the address of a pointer to a tensor
    if (!*made_) {
      AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
          memory_, form_->axes, form_->sizes, form_->strides, 0, form_->dtype(), aoti_torch_device_type_cpu(), 0, made_));
    }
    return *made_;
  }

  operator AtenTensorHandle() const { return get(); }
  void* data_ptr() const { return memory_; }

  AtenTensorHandle release() const {  // for an output
    AtenTensorHandle handle = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(get(), &handle));
    return handle;
  }

  void reset() {}  // the caller holds it

 private:
  void** tensor_ = nullptr;
  void* memory_ = nullptr;
  const Form* form_ = nullptr;
  AtenTensorHandle* made_ = nullptr;
};

template <size_t count>
class Inputs {
 public:
  Inputs(void** tensors, void** memory, const Form* forms) {
    for (size_t i = 0; i < count; i++)
      inputs_[i] = Input(tensors ? tensors + i : nullptr, memory ? memory[i] : nullptr, forms + i, &made_[i]);
  }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;
  ~Inputs() {
    for (AtenTensorHandle handle : made_)
      if (handle) aoti_torch_delete_tensor_object(handle);
  }

  const Input& operator[](size_t i) const { return inputs_[i]; }
  void clear() {}

 private:
  std::array<Input, count> inputs_;
  std::array<AtenTensorHandle, count> made_{};
};

}  // namespace fundl

namespace torch::aot_inductor {  // the code that inductor writes asks this of every tensor

inline void* get_data_ptr_wrapper(const fundl::Input& input) { return input.data_ptr(); }
inline AtenTensorHandle unwrap_raii_handle_if_needed(const fundl::Input& input) { return input.get(); }
inline const fundl::Input& wrap_with_raii_handle_if_needed(const fundl::Input& input) { return input; }

}  // namespace torch::aot_inductor
