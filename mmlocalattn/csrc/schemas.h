// The operators by their schemas. The only source of these are the strings in ops/*.py: setup.py
// reads them, and writes the table into build/schemas.cpp.
#pragma once

#include <cstddef>

namespace mmlocalattn {

struct Schema {
  const char* name;
  const char* forward;
  const char* backward;  // of the operator _NAME_backward
};

extern const Schema schemas[];
extern const size_t number_of_schemas;

}  // namespace mmlocalattn
