// What the compiled module needs of Python, within the limited API of 3.10: one file then serves
// every later Python. No torch here.
//
// An `Object` owns a reference. A function that finds a Python error set throws ErrorIsSet; `entry`
// turns that and other exceptions into what Python expects of a C function.
#pragma once

#define PY_SSIZE_T_CLEAN
#if !defined(Py_LIMITED_API)
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>
#include <stdint.h>

#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace vqvae2_fast::python {

struct ErrorIsSet {};

struct Release {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Object = std::unique_ptr<PyObject, Release>;

// Takes over a new reference that a function of Python's returned.
inline Object owned(PyObject* object) {
  if (!object) throw ErrorIsSet{};
  return Object(object);
}

inline void check(bool succeeded) {
  if (!succeeded) throw ErrorIsSet{};
}

inline Object none() {
  Py_INCREF(Py_None);
  return Object(Py_None);
}

inline Object text(const char* value) { return owned(PyUnicode_FromString(value)); }
inline Object integer(int64_t value) { return owned(PyLong_FromLongLong(value)); }
inline Object number(double value) { return owned(PyFloat_FromDouble(value)); }
inline Object boolean(bool value) { return owned(PyBool_FromLong(value)); }

inline int64_t as_integer(PyObject* object) {
  const int64_t value = PyLong_AsLongLong(object);
  check(value != -1 || !PyErr_Occurred());
  return value;
}

inline uint64_t as_unsigned(PyObject* object) {
  const uint64_t value = PyLong_AsUnsignedLongLong(object);
  check(value != static_cast<uint64_t>(-1) || !PyErr_Occurred());
  return value;
}

inline double as_number(PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  check(value != -1 || !PyErr_Occurred());
  return value;
}

inline bool as_boolean(PyObject* object) {
  const int value = PyObject_IsTrue(object);
  check(value >= 0);
  return value == 1;
}

inline std::string as_text(PyObject* object) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(object, &size);
  check(data != nullptr);
  return {data, static_cast<size_t>(size)};
}

// Memory that the caller keeps until the call returns; 0 is null.
template <typename T>
T* as_pointer(PyObject* address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(as_unsigned(address)));
}

// Calls visit(item) for each item of a sequence.
template <typename Visit>
void for_each(PyObject* sequence, Visit visit) {
  const Py_ssize_t size = PySequence_Size(sequence);
  check(size >= 0);
  for (Py_ssize_t i = 0; i < size; ++i) visit(owned(PySequence_GetItem(sequence, i)).get());
}

// Calls visit(key, value) for each entry of a dict.
template <typename Visit>
void for_each_entry(PyObject* dict, Visit visit) {
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t place = 0;
  if (!PyDict_Check(dict)) {
    PyErr_SetString(PyExc_TypeError, "expected a dict");
    throw ErrorIsSet{};
  }
  while (PyDict_Next(dict, &place, &key, &value)) visit(as_text(key), value);
}

// The first and second item of a pair.
inline std::pair<Object, Object> as_pair(PyObject* pair) {
  return {owned(PySequence_GetItem(pair, 0)), owned(PySequence_GetItem(pair, 1))};
}

// A list of make(item) for each item of a C++ sequence.
template <typename Sequence, typename Make>
Object list_of(const Sequence& sequence, Make make) {
  Object list = owned(PyList_New(0));
  for (const auto& item : sequence) check(PyList_Append(list.get(), make(item).get()) == 0);
  return list;
}

inline void set(const Object& dict, const char* key, const Object& value) {
  check(PyDict_SetItemString(dict.get(), key, value.get()) == 0);
}

// The arguments of a call by their names, all of which must be given.
class Arguments {
 public:
  Arguments(PyObject* positional, PyObject* by_name, std::initializer_list<const char*> names) {
    auto name = names.begin();
    for_each(positional, [&](PyObject* value) {
      if (name == names.end()) fail("too many arguments");
      keep(*name++, value);
    });
    if (by_name) {
      for_each_entry(by_name, [&](const std::string& key, PyObject* value) { keep(key, value); });
    }
    for (const char* wanted : names) {
      if (!values_.count(wanted)) fail(std::string("missing argument ") + wanted);
    }
    if (values_.size() > names.size()) fail("an argument of an unknown name");
  }

  PyObject* operator[](const char* name) const { return values_.at(name).get(); }

 private:
  [[noreturn]] static void fail(const std::string& message) {
    PyErr_SetString(PyExc_TypeError, message.c_str());
    throw ErrorIsSet{};
  }

  void keep(const std::string& name, PyObject* value) {
    Py_INCREF(value);
    if (!values_.emplace(name, Object(value)).second) fail("two values of argument " + name);
  }

  std::map<std::string, Object> values_;
};

// Other threads of Python run while one of these lives.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* state_;
};

// Takes the lock back for a call of Python inside a WithoutLock.
class WithLock {
 public:
  WithLock() : state_(PyGILState_Ensure()) {}
  ~WithLock() { PyGILState_Release(state_); }
  WithLock(const WithLock&) = delete;
  WithLock& operator=(const WithLock&) = delete;

 private:
  PyGILState_STATE state_;
};

// What call() returns as a reference that the caller owns, or null with a Python error set.
template <typename Call>
PyObject* guarded(Call call) noexcept {
  try {
    return call().release();
  } catch (const ErrorIsSet&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

using Function = Object (*)(PyObject* self, PyObject* positional, PyObject* by_name);

template <Function function>
PyObject* entry(PyObject* self, PyObject* positional, PyObject* by_name) noexcept {
  return guarded([&] { return function(self, positional, by_name); });
}

template <Function function>
PyMethodDef method(const char* name) {
  // Through void (*)(): Python calls it by the flags with three arguments.
  const auto address = reinterpret_cast<void (*)()>(&entry<function>);
  return {name, reinterpret_cast<PyCFunction>(address), METH_VARARGS | METH_KEYWORDS, nullptr};
}

}  // namespace vqvae2_fast::python
