// The extension as a library. Loading it runs the registrations linked into it: from Python, as
// the empty module `mmlocalattn._ext`, after ops/ has defined the operators; from a program
// without Python, as any library, and then the operators are defined here.
#include <ATen/core/dispatch/Dispatcher.h>
#include <Python.h>
#include <torch/library.h>

#include <string>

#include "schemas.h"

// The only function of Python that the library calls: a program without Python has none.
#pragma weak PyModule_Create2

PyMODINIT_FUNC PyInit__ext() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}

namespace mmlocalattn {
namespace {

void define(torch::Library& library, const std::string& name, const char* schema) {
  if (!c10::Dispatcher::singleton().findSchema({"mmlocalattn::" + name, ""})) library.def(schema);
}

}  // namespace
}  // namespace mmlocalattn

TORCH_LIBRARY_FRAGMENT(mmlocalattn, m) {
  for (size_t i = 0; i < mmlocalattn::number_of_schemas; ++i) {
    const auto& schema = mmlocalattn::schemas[i];
    mmlocalattn::define(m, schema.name, schema.forward);
    mmlocalattn::define(m, std::string("_") + schema.name + "_backward", schema.backward);
  }
}
