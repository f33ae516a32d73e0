// The empty Python module `mmlocalattn._ext`: loading it runs the TORCH_LIBRARY_IMPL initializers
// linked into it.
#include <Python.h>

PyMODINIT_FUNC PyInit__ext() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
