// Adds the sampler's Python side to the compiled module (sampler.cpp).
#pragma once

#include "python.h"

void define_sampler(PyObject* module);
