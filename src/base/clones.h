// LATHE_CLONES: the compiler emits one version of a function per instruction set and the loader picks the best the
// machine has. Loops in such functions must vectorise without reordering floating-point sums: keep sums per lane.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LATHE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LATHE_CLONES
#endif
