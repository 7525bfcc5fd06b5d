// How a compiled program is called: by Python, and in a loop over steps.

namespace {

thread_local char reason[1024];  // why the last program failed

int32_t run(void** tensors, void** memory, AtenTensorHandle* outputs) {
  const fundl::FlushDenormals flush;
  try {
    torch::aot_inductor::program(tensors, memory, outputs);
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(reason, sizeof reason, "%s", error.what());
  } catch (...) {
    std::snprintf(reason, sizeof reason, "no reason is given");
  }
  return 1;
}

}  // namespace

extern "C" {

const char* fundl_reason() { return reason; }

// --- By Python, as a function from a list of tensors to a list of new ones ---

// So much of Python's stable C interface: its headers are not on every machine.
typedef struct _object PyObject;
typedef ptrdiff_t Py_ssize_t;
typedef struct {
  const char* name;
  PyObject* (*function)(PyObject*, PyObject*);
  int flags;
  const char* text;
} PyMethodDef;
Py_ssize_t PyList_Size(PyObject*);
PyObject* PyList_GetItem(PyObject*, Py_ssize_t);
PyObject* PyList_New(Py_ssize_t);
int PyList_SetItem(PyObject*, Py_ssize_t, PyObject*);
PyObject* PyObject_GetAttr(PyObject*, PyObject*);
PyObject* PyObject_CallFunctionObjArgs(PyObject*, ...);
PyObject* PyUnicode_InternFromString(const char*);
void* PyLong_AsVoidPtr(PyObject*);
PyObject* PyCapsule_New(void*, const char*, void (*)(PyObject*));
PyObject* PyErr_Occurred(void);
void PyErr_SetString(PyObject*, const char*);
extern PyObject* PyExc_RuntimeError;
PyObject* PyCFunction_NewEx(PyMethodDef*, PyObject*, PyObject*);
PyObject* PyEval_SaveThread(void);
void PyEval_RestoreThread(PyObject*);
void Py_DecRef(PyObject*);

static PyObject* address_name;  // of the attribute that is the address of what a tensor of Python's points to

// Other threads of Python go on meanwhile, if it may take long: to wait for one of them again takes up to 5 ms.
static int32_t run_tensors(void** tensors, AtenTensorHandle* outputs) {
  constexpr int64_t long_ns = 100000;
  static std::atomic<int64_t> took_ns{long_ns};
  const bool alone = !calls_kernels && took_ns.load(std::memory_order_relaxed) < long_ns;
  PyObject* thread = alone ? nullptr : PyEval_SaveThread();
  const auto start = std::chrono::steady_clock::now();
  const int32_t failed = run(tensors, nullptr, outputs);
  const std::chrono::nanoseconds took = std::chrono::steady_clock::now() - start;
  took_ns.store(took.count(), std::memory_order_relaxed);
  if (!alone) PyEval_RestoreThread(thread);
  return failed;
}

// What is given is the function that makes tensors of capsules with handles, and takes them over.
static PyObject* call(PyObject* tensors_of, PyObject* list) {
  void* tensors[input_count + 1];
  AtenTensorHandle outputs[output_count + 1] = {};
  if (PyList_Size(list) != Py_ssize_t(input_count)) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "a compiled program takes another number of tensors");
    return nullptr;
  }
  for (size_t i = 0; i < input_count; i++) {
    PyObject* address = PyObject_GetAttr(PyList_GetItem(list, i), address_name);
    if (!address) return nullptr;
    tensors[i] = PyLong_AsVoidPtr(address);
    Py_DecRef(address);
  }
  if (run_tensors(tensors, outputs)) {
    for (AtenTensorHandle handle : outputs)
      if (handle) aoti_torch_delete_tensor_object(handle);
    PyErr_SetString(PyExc_RuntimeError, reason);
    return nullptr;
  }
  PyObject* handles = PyList_New(output_count);
  for (size_t i = 0; handles && i < output_count; i++) PyList_SetItem(handles, i, PyCapsule_New(outputs[i], nullptr, nullptr));
  if (!handles || !output_count) return handles;
  PyObject* result = PyObject_CallFunctionObjArgs(tensors_of, handles, nullptr);
  Py_DecRef(handles);
  return result;
}

PyObject* fundl_function(PyObject* tensors_of) {
  static PyMethodDef definition = {"run", call, 8 /* one argument */, nullptr};
  address_name = PyUnicode_InternFromString("_cdata");
  return address_name ? PyCFunction_NewEx(&definition, tensors_of, nullptr) : nullptr;
}

// --- In a loop over steps, with the state in place ---

typedef struct { int64_t group, offset, bytes; } leaf_t;  // of the state: where it is in the memory of its group
typedef struct {
  int64_t groups, leaves, inputs;
  const int64_t* bytes;  // of each group
  const leaf_t* leaf;
  const int64_t* step;  // for each input, how many bytes it is from one step's to the next one's
} loop_t;

int32_t fundl_loop(const loop_t* loop, int64_t steps, char** pointers) {
  const fundl::FlushDenormals flush;
  const int64_t groups = loop->groups, n = loop->inputs;
  char **before = pointers, **after = pointers + loop->leaves, **given = after + loop->leaves;
  char** memory = static_cast<char**>(std::calloc(groups + n + 1, sizeof(char*)));
  char** data = memory + groups;
  int32_t failed = memory ? 0 : 1;
  for (int64_t j = 0; j < groups && !failed; j++) {
    memory[j] = static_cast<char*>(std::malloc(loop->bytes[j] + 64));
    data[j] = memory[j] + (64 - reinterpret_cast<uintptr_t>(memory[j]) % 64);
    failed = memory[j] ? 0 : 1;
  }
  if (failed) std::snprintf(reason, sizeof reason, "there is no memory for the state");
  for (int64_t j = 0; j < loop->leaves && !failed; j++)
    std::memcpy(data[loop->leaf[j].group] + loop->leaf[j].offset, before[j], loop->leaf[j].bytes);
  for (int64_t j = groups; j < n && !failed; j++) data[j] = given[j - groups];
  for (int64_t i = 0; i < steps && !failed; i++) {
    failed = run(nullptr, reinterpret_cast<void**>(data), nullptr);
    for (int64_t j = groups; j < n; j++) data[j] += loop->step[j];
  }
  for (int64_t j = 0; j < loop->leaves && !failed; j++)
    std::memcpy(after[j], data[loop->leaf[j].group] + loop->leaf[j].offset, loop->leaf[j].bytes);
  for (int64_t j = 0; memory && j < groups; j++) std::free(memory[j]);
  std::free(memory);
  return failed;
}

}  // extern "C"
