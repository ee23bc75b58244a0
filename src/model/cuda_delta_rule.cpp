#include "model/cuda_delta_rule.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "base/result.h"
#include "kernels/cuda_delta_rule.h"

namespace lathe::model::cuda {
namespace {

namespace k = kernels::cuda;

// What the kernels read in whole 16 bytes, heads without gaps; a copy only where it is not so.
at::Tensor rows_of_heads(const at::Tensor& t) {
  const bool dense = t.stride(2) == 1 && t.stride(1) == t.size(2) && t.stride(0) % 8 == 0;
  return dense && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : t.contiguous();
}
float* data_or_null(const at::Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
}

// Inputs in the kernels' terms, and their owners.
struct Arguments {
  at::Tensor q, k, v, g, beta, start;
  k::DeltaShape shape;
  k::DeltaArguments raw;

  Arguments(const DeltaInputs& in, const at::Tensor& s)
      : q(rows_of_heads(in.q)),
        k(rows_of_heads(in.k)),
        v(rows_of_heads(in.v)),
        g(in.g.contiguous()),
        beta(in.beta.contiguous()),
        start(s.defined() ? s.contiguous() : s),
        shape{v.size(0), k.size(1), v.size(1)},
        raw{.q = {q.const_data_ptr(), q.stride(0)},
            .k = {k.const_data_ptr(), k.stride(0)},
            .v = {v.const_data_ptr(), v.stride(0)},
            .g = g.const_data_ptr<float>(),
            .beta = beta.const_data_ptr<float>(),
            .start = data_or_null(start)} {}
};

DeltaChunks make_chunks(const Arguments& in, bool keep) {
  const int64_t heads = in.shape.value_heads, n = in.shape.chunks();
  DeltaChunks chunks{.inverse = at::empty({heads, n, k::kDeltaChunk, k::kDeltaChunk}, in.v.options()),
                     .scores = at::empty({heads, n, k::kDeltaChunk, k::kDeltaChunk}, in.v.options()),
                     .decays = at::empty({heads, n, 4, k::kDeltaChunk}, in.g.options())};
  if (!keep) return chunks;
  chunks.states = at::empty({heads, n, k::kDeltaSize, k::kDeltaSize}, in.v.options());
  chunks.deltas = at::empty({heads, n, k::kDeltaSize, k::kDeltaChunk}, in.v.options());
  return chunks;
}

k::DeltaChunks raw(const DeltaChunks& chunks) {
  const auto data = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
  return {.inverse = data(chunks.inverse),
          .scores = data(chunks.scores),
          .decays = chunks.decays.mutable_data_ptr<float>(),
          .states = data(chunks.states),
          .deltas = data(chunks.deltas)};
}

template <class Launch>
void queue(const at::Tensor& x, Launch&& launch) {
  const c10::cuda::CUDAGuard guard(x.device());
  launch(c10::cuda::getCurrentCUDAStream(x.device().index()).stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor empty_state(const Arguments& in) {
  return at::empty({in.shape.value_heads, k::kDeltaSize, k::kDeltaSize}, in.g.options());
}

}  // namespace

bool can_run_delta_rule(const at::TensorOptions& options, int64_t key_size, int64_t value_size) {
  return options.device().is_cuda() && options.dtype() == at::kBFloat16 && key_size == k::kDeltaSize &&
         value_size == k::kDeltaSize;
}

DeltaChunks run_delta_rule(const DeltaInputs& in, const at::Tensor& start, bool keep, const at::Tensor& o,
                           const at::Tensor& state) {
  const Arguments arguments(in, start);
  DeltaChunks chunks = make_chunks(arguments, keep);
  queue(in.v, [&](CUstream_st* stream) {
    k::delta_rule(arguments.raw, arguments.shape, raw(chunks), o.mutable_data_ptr(), data_or_null(state), stream);
  });
  return chunks;
}

void run_delta_steps(const DeltaInputs& in, const at::Tensor& start, const at::Tensor& o, const at::Tensor& state) {
  static_assert(kDeltaSteps == k::kDeltaStepTokens);
  const Arguments arguments(in, start);
  LATHE_CHECK(arguments.shape.tokens <= kDeltaSteps);
  queue(in.v, [&](CUstream_st* stream) {
    k::delta_rule_steps(arguments.raw, arguments.shape, o.mutable_data_ptr(), state.mutable_data_ptr<float>(), stream);
  });
}

void run_delta_rule_gradient(const DeltaInputs& in, const at::Tensor& start, const DeltaChunks& chunks,
                             const at::Tensor& d_o, const at::Tensor& d_state, const DeltaInputs& d,
                             const at::Tensor& d_start) {
  const Arguments arguments(in, start);
  const at::Tensor d_states = at::empty_like(chunks.states), d_deltas = at::empty_like(chunks.deltas);
  const at::Tensor d_out = d_o.contiguous(), d_last = d_state.defined() ? d_state.contiguous() : d_state;
  queue(in.v, [&](CUstream_st* stream) {
    k::delta_rule_gradient(arguments.raw, arguments.shape, raw(chunks), d_out.const_data_ptr(), data_or_null(d_last),
                           {.d_states = d_states.mutable_data_ptr(),
                            .d_deltas = d_deltas.mutable_data_ptr(),
                            .q = d.q.mutable_data_ptr(),
                            .k = d.k.mutable_data_ptr(),
                            .v = d.v.mutable_data_ptr(),
                            .g = d.g.mutable_data_ptr<float>(),
                            .beta = d.beta.mutable_data_ptr<float>(),
                            .start = data_or_null(d_start)},
                           stream);
  });
}

DeltaOutput delta_rule(const DeltaInputs& in, const at::Tensor& start) {
  DeltaOutput out{.o = at::empty(in.v.sizes(), in.v.options()), .state = empty_state(Arguments(in, start))};
  run_delta_rule(in, start, /*keep=*/false, out.o, out.state);
  return out;
}

DeltaGradient delta_rule_gradient(const DeltaInputs& in, const at::Tensor& start, const at::Tensor& d_o,
                                  const at::Tensor& d_state) {
  const at::Tensor o = at::empty(in.v.sizes(), in.v.options());
  const DeltaChunks chunks = run_delta_rule(in, start, /*keep=*/true, o, at::Tensor());
  const auto like = [](const at::Tensor& t) { return at::empty(t.sizes(), t.options()); };
  DeltaGradient out{.in = {like(in.q), like(in.k), like(in.v), like(in.g), like(in.beta)},
                    .start = empty_state(Arguments(in, start))};
  run_delta_rule_gradient(in, start, chunks, d_o, d_state, out.in, out.start);
  return out;
}

}  // namespace lathe::model::cuda
