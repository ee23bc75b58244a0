// One chunk of C tokens, rows i = 1..C, Γ the logarithm of its whole decay (Yang et al., section 3.3; signs and places
// of the decays as in transformers' modeling_qwen3_5.py):
//
//   G_i = Σ_{j<=i} g_j                       L_ij = e^{G_i - G_j} for i >= j, else 0
//   M = strict lower triangle of diag(β) L ∘ K Kᵀ
//   (I + M) [U W] = [diag(β) V, diag(β e^G) K]
//   D = U - W S_0                            row i is δ_i
//   A = L ∘ Q Kᵀ
//   O = diag(e^G) Q S_0 + A D                S_C = e^Γ S_0 + (diag(e^{Γ - G}) K)ᵀ D
//
// Backward, with X = (I + M)⁻ᵀ dD, so that dM = -X Dᵀ and no gradient of the inverse is needed:
//
//   dD = Aᵀ dO + diag(e^{Γ - G}) K dS_C      dS_0 = e^Γ dS_C + (diag(e^G) Q)ᵀ dO - Wᵀ dD
//
// and the rest in gradients_of_chunks(). Every exponent is <= 0: nothing overflows, whatever the decay.
#include "model/delta_rule.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

namespace lathe::model {
namespace {

constexpr int64_t kChunk = 64;

// [n, heads, ...] -> [repeat * heads, chunks, kChunk, ...], padded with zeros. Zeros are inert: they neither decay, nor
// write, nor read.
at::Tensor to_chunks(const at::Tensor& t, int64_t repeat) {
  const int64_t n = t.size(0), chunks = (n + kChunk - 1) / kChunk;
  std::vector<int64_t> padded = t.sizes().vec();
  padded[0] = chunks * kChunk - n;
  at::Tensor rows = padded[0] == 0 ? t : at::cat({t, at::zeros(padded, t.options())}, 0);
  rows = rows.transpose(0, 1);
  if (repeat > 1) rows = rows.repeat_interleave(repeat, 0);
  std::vector<int64_t> shape{rows.size(0), chunks, kChunk};
  if (t.dim() == 3) shape.push_back(t.size(2));
  return rows.reshape(shape);
}

// The reverse; heads that were repeated are summed.
at::Tensor from_chunks(const at::Tensor& t, int64_t n, int64_t repeat) {
  std::vector<int64_t> shape{t.size(0), t.size(1) * kChunk};
  if (t.dim() == 4) shape.push_back(t.size(3));
  at::Tensor rows = t.reshape(shape).narrow(1, 0, n);
  if (repeat > 1) rows = rows.unflatten(0, {rows.size(0) / repeat, repeat}).sum(1);
  return rows.transpose(0, 1);
}

at::Tensor transposed(const at::Tensor& t) {
  return t.transpose(-1, -2);
}

// Row sums of a product: Σ_x a b, [..., C].
at::Tensor row_dot(const at::Tensor& a, const at::Tensor& b) {
  return (a * b).sum(-1);
}

// The forward pass over all chunks of a sequence. H value heads, N chunks, C rows each.
struct Chunks {
  int64_t repeat;               // value heads per key head
  at::Tensor q, k, v, beta;     // [H, N, C, K or V]; beta [H, N, C]
  at::Tensor decay, tail, end;  // e^G and e^{Γ - G} [H, N, C]; e^Γ [H, N]
  at::Tensor l, kk, m, a;       // [H, N, C, C]
  at::Tensor w, d;              // [H, N, C, K], [H, N, C, V]
  at::Tensor states;            // [H, N, K, V]: S_0 of every chunk
  at::Tensor last;              // [H, K, V]

  Chunks(const DeltaInputs& in, const at::Tensor& start) : repeat(in.v.size(1) / in.k.size(1)) {
    q = to_chunks(in.q, repeat);
    k = to_chunks(in.k, repeat);
    v = to_chunks(in.v, 1);
    beta = to_chunks(in.beta, 1);
    decays(to_chunks(in.g, 1).cumsum(-1));
    kk = at::matmul(k, transposed(k));
    m = (beta.unsqueeze(-1) * l * kk).tril_(-1);
    a = at::matmul(q, transposed(k)).mul_(l);
    scan(start);
  }

  at::Tensor output() const { return at::matmul(q, states).mul_(decay.unsqueeze(-1)) + at::matmul(a, d); }

 private:
  void decays(const at::Tensor& g) {
    decay = g.exp();
    tail = (g.narrow(-1, kChunk - 1, 1) - g).exp_();
    end = decay.select(-1, kChunk - 1);
    const at::Tensor above = at::ones({kChunk, kChunk}, g.options().dtype(at::kBool)).triu_(1);
    // Masked before the exponential: above the diagonal exponents are positive and may overflow.
    l = (g.unsqueeze(-1) - g.unsqueeze(-2)).masked_fill_(above, -std::numeric_limits<double>::infinity()).exp_();
  }

  void scan(const at::Tensor& start) {
    const int64_t heads = k.size(0), chunks = k.size(1), kd = k.size(3), vd = v.size(3);
    const at::Tensor b = beta.unsqueeze(-1);
    const at::Tensor uw = at::linalg_solve_triangular(m, at::cat({b * v, b * decay.unsqueeze(-1) * k}, -1),
                                                      /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
    const at::Tensor u = uw.narrow(-1, 0, vd), k_tail = transposed(k * tail.unsqueeze(-1));
    w = uw.narrow(-1, vd, kd);
    d = at::empty(v.sizes(), v.options());
    states = at::empty({heads, chunks, kd, vd}, v.options());
    last = start.defined() ? start : at::zeros({heads, kd, vd}, v.options());
    for (int64_t c = 0; c < chunks; ++c) {
      states.select(1, c).copy_(last);
      const at::Tensor delta = at::baddbmm(u.select(1, c), w.select(1, c), last, 1, -1);
      d.select(1, c).copy_(delta);
      last = at::baddbmm(last * end.select(1, c).view({heads, 1, 1}), k_tail.select(1, c), delta);
    }
  }
};

// The sequential half of the backward pass.
struct ReverseScan {
  at::Tensor d_d;       // [H, N, C, V]: gradient of D
  at::Tensor d_states;  // [H, N, K, V]: gradient of the state after each chunk
  at::Tensor d_start;   // [H, K, V]

  ReverseScan(const Chunks& f, const at::Tensor& d_o, const at::Tensor& d_last) {
    const int64_t chunks = f.k.size(1), heads = f.k.size(0);
    const at::Tensor k_tail = f.k * f.tail.unsqueeze(-1), q_decay = transposed(f.q * f.decay.unsqueeze(-1));
    d_d = at::matmul(transposed(f.a), d_o);
    d_states = at::empty(f.states.sizes(), f.states.options());
    d_start = d_last.defined() ? d_last : at::zeros(f.last.sizes(), f.last.options());
    for (int64_t c = chunks - 1; c >= 0; --c) {
      d_states.select(1, c).copy_(d_start);
      const at::Tensor here = at::baddbmm(d_d.select(1, c), k_tail.select(1, c), d_start);
      d_d.select(1, c).copy_(here);
      d_start = at::baddbmm(d_start * f.end.select(1, c).view({heads, 1, 1}), q_decay.select(1, c), d_o.select(1, c));
      d_start = at::baddbmm(d_start, transposed(f.w.select(1, c)), here, 1, -1);
    }
  }
};

// Everything that is parallel over chunks, from the reverse scan's results.
DeltaGradient gradients_of_chunks(const Chunks& f, const ReverseScan& r, const at::Tensor& d_o, int64_t n) {
  const at::Tensor x = at::linalg_solve_triangular(transposed(f.m), r.d_d, /*upper=*/true, /*left=*/true,
                                                   /*unitriangular=*/true);
  const at::Tensor d_a = at::matmul(d_o, transposed(f.d)).tril_();
  const at::Tensor d_m = at::matmul(x, transposed(f.d)).neg_().tril_(-1);
  const at::Tensor p_a = d_a * f.l, p_m = d_m * f.l;
  const at::Tensor read = at::matmul(d_o, transposed(f.states));     // dO S_0ᵀ [.., C, K]
  const at::Tensor erase = at::matmul(x, transposed(f.states));      // X S_0ᵀ
  const at::Tensor write = at::matmul(f.d, transposed(r.d_states));  // D dS_Cᵀ
  const at::Tensor decay = f.decay.unsqueeze(-1), tail = f.tail.unsqueeze(-1), beta = f.beta.unsqueeze(-1);
  const at::Tensor bp_m = p_m * beta;

  DeltaGradient out{.start = r.d_start};
  const at::Tensor d_q = decay * read + at::matmul(p_a, f.k);
  const at::Tensor d_k =
      at::matmul(transposed(p_a), f.q) + tail * write - beta * decay * erase + at::matmul(bp_m + transposed(bp_m), f.k);
  const at::Tensor erased = f.decay * row_dot(erase, f.k);
  const at::Tensor d_beta = row_dot(x, f.v) - erased + row_dot(p_m, f.kk);

  // dg_i gathers every exponent that g_i is part of. Those of L and of the tail are differences G_j - G_l, which hold
  // g_i for l < i <= j only: summed over just these pairs, since the others cancel in exact arithmetic alone.
  const at::Tensor before = at::ones({kChunk, kChunk}, d_o.options()).triu_(1);  // [l, i]: l < i
  const at::Tensor d_decay = f.decay * row_dot(read, f.q) - f.beta * erased;
  const at::Tensor across = at::matmul(d_a * f.a + d_m * f.m, before).tril_().sum(-2);
  const at::Tensor written = at::matmul(f.tail * row_dot(f.k, write), before);
  const at::Tensor through = (f.end * (f.states * r.d_states).sum({-1, -2})).unsqueeze(-1);
  const at::Tensor d_g = d_decay.flip(-1).cumsum(-1).flip(-1) + across + written + through;

  out.in = {.q = from_chunks(d_q, n, f.repeat),
            .k = from_chunks(d_k, n, f.repeat),
            .v = from_chunks(beta * x, n, 1),
            .g = from_chunks(d_g, n, 1),
            .beta = from_chunks(d_beta, n, 1)};
  return out;
}

struct DeltaRule : torch::autograd::Function<DeltaRule> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& g, const at::Tensor& beta, const at::Tensor& start) {
    context->save_for_backward({q, k, v, g, beta, start});
    return delta_rule({q, k, v, g, beta}, start).o;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const DeltaInputs in{saved[0], saved[1], saved[2], saved[3], saved[4]};
    DeltaInputs d = delta_rule_gradient(in, saved[5], gradients[0], at::Tensor()).in;
    return {d.q, d.k, d.v, d.g, d.beta, at::Tensor()};
  }
};

}  // namespace

DeltaOutput delta_rule(const DeltaInputs& in, const at::Tensor& start) {
  const Chunks chunks(in, start);
  return {from_chunks(chunks.output(), in.v.size(0), 1), chunks.last};
}

DeltaOutput delta_rule_by_token(const DeltaInputs& in, const at::Tensor& start) {
  const int64_t n = in.v.size(0), heads = in.v.size(1), kd = in.k.size(2), vd = in.v.size(2);
  const int64_t repeat = heads / in.k.size(1);
  DeltaOutput out{.o = at::empty({n, heads, vd}, in.v.options()),
                  .state = start.defined() ? start : at::zeros({heads, kd, vd}, in.v.options())};
  const auto head_rows = [&](const at::Tensor& t, int64_t i) { return t[i].repeat_interleave(repeat, 0); };
  for (int64_t t = 0; t < n; ++t) {
    const at::Tensor k = head_rows(in.k, t), q = head_rows(in.q, t);  // [heads, K]
    const at::Tensor decayed = out.state * in.g[t].exp().view({heads, 1, 1});
    const at::Tensor read = at::matmul(k.unsqueeze(1), decayed).squeeze(1);
    const at::Tensor delta = in.beta[t].unsqueeze(1) * (in.v[t] - read);
    out.state = decayed + k.unsqueeze(2) * delta.unsqueeze(1);
    out.o[t].copy_(at::matmul(q.unsqueeze(1), out.state).squeeze(1));
  }
  return out;
}

DeltaGradient delta_rule_gradient(const DeltaInputs& in, const at::Tensor& start, const at::Tensor& d_o,
                                  const at::Tensor& d_state) {
  const at::NoGradGuard no_grad;
  const Chunks forward(in, start);
  const at::Tensor d_chunks = to_chunks(d_o, 1);
  return gradients_of_chunks(forward, ReverseScan(forward, d_chunks, d_state), d_chunks, d_o.size(0));
}

at::Tensor delta_rule_with_gradient(const DeltaInputs& in, const at::Tensor& start) {
  // autograd asks every input for its device, an undefined one too.
  const at::Tensor zeros = at::zeros({in.v.size(1), in.k.size(2), in.v.size(2)}, in.v.options());
  return DeltaRule::apply(in.q, in.k, in.v, in.g, in.beta, start.defined() ? start : zeros);
}

}  // namespace lathe::model
