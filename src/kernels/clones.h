// LATHE_CLONES now lives in base, where modules above the kernels can use it too.
#pragma once

#include "base/clones.h"
