// Access to Python's tensors through DLPack's C exchange API (https://dmlc.github.io/dlpack, major version 1; in torch since
// 2.10): reads the fields of a tensor for the cost of a C call, with any version of torch. Only the used parts are declared.
#pragma once

#include <Python.h>

#include <cstdint>

#include "focal_loss.h"

namespace {

struct View {  // DLTensor
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;

  char* begin() const { return static_cast<char*>(data) + byte_offset; }
  bool holds(int dims, int kind, int width) const { return ndim == dims && code == kind && bits == width && lanes == 1; }
};
constexpr int32_t on_cpu = 1;                        // kDLCPU
constexpr int an_int = 0, a_uint = 1, a_float = 2, a_bfloat = 4;  // DLDataTypeCode

struct Exchange {  // DLPackExchangeAPI
  uint32_t major, minor;
  Exchange* previous;
  void *allocate, *from_object, *to_object;
  int (*view)(void* object, View* out);
  void* stream;
};

const Exchange* exchange = nullptr;

// Returns false, without a Python error, unless it is a CPU tensor with memory: efficient zeros, functional tensors and
// tensors of vmap report the CPU as device but have no address.
inline bool view_of(PyObject* object, View& out) {
  if (exchange != nullptr && exchange->view(object, &out) == 0) return out.device_type == on_cpu && out.data != nullptr;
  PyErr_Clear();
  return false;
}

inline bool type_of(const View& logits, zoo::Type& type) {
  if (logits.holds(2, a_float, 32)) type = zoo::Type::f32;
  else if (logits.holds(2, a_float, 64)) type = zoo::Type::f64;
  else if (logits.holds(2, a_bfloat, 16)) type = zoo::Type::bf16;
  else if (logits.holds(2, a_float, 16)) type = zoo::Type::f16;
  else return false;
  return logits.shape[1] > 0;
}

inline bool label_of(const View& target, zoo::Label& label) {
  if (target.holds(1, an_int, 64)) label = zoo::Label::i64;
  else if (target.holds(1, an_int, 32)) label = zoo::Label::i32;
  else if (target.holds(1, a_uint, 8)) label = zoo::Label::u8;
  else return false;
  return true;
}

inline bool number(PyObject* object, double least, double most, double& out) {
  if (PyFloat_CheckExact(object)) out = PyFloat_AsDouble(object);
  else if (PyLong_CheckExact(object)) out = PyLong_AsDouble(object);
  else return false;
  return !(PyErr_Occurred() != nullptr) && out >= least && out <= most;
}

}  // namespace
