// AVX-512 for the loops of the codec that no compiler vectorises: they compress, expand, gather and make bit masks.
//
// A function marked LATHE_WIDE may use it; who calls one asks has_wide() first. The subset is what every CPU with
// AVX-512 for servers has (x86-64-v4). Lambdas do not inherit the mark, so such functions have none.
// Threads: pure functions.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define LATHE_HAS_WIDE 1
#define LATHE_WIDE [[gnu::target("avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi,bmi2,popcnt,lzcnt,fma")]]
#endif

namespace lathe::codec {

inline bool wide_is_off = false;  // for tests, which compare with what other CPUs do

inline bool has_wide() {
#ifdef LATHE_HAS_WIDE
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
  return has && !wide_is_off;
#else
  return false;
#endif
}

}  // namespace lathe::codec
