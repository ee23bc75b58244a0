#include "model/cpu_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "kernels/serving.h"
#include "kernels/soft_max.h"
#include "model/cpu_ops.h"

namespace lathe::model::cpu {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Of one block of queries. Smaller ones waste fewer products on keys that they do not see.
constexpr int64_t kScores = int64_t{8} << 20, kFewest = 16, kMost = 256;

// [n, H, K] -> [G, (H/G) n, K], the queries of heads that share keys together; and back.
at::Tensor grouped(const at::Tensor& rows, int64_t groups) {
  return rows.transpose(0, 1).contiguous().view({groups, -1, rows.size(2)});
}
at::Tensor ungrouped(const at::Tensor& groups, int64_t n) {
  return groups.view({-1, n, groups.size(2)}).transpose(0, 1);
}

struct Block {
  int64_t begin, count;  // of the queries
  int64_t keys;          // that the last of them sees
};

std::vector<Block> blocks_of(const at::Tensor& q, const at::Tensor& k) {
  const int64_t n = q.size(0), m = k.size(1);
  const int64_t rows = std::clamp(kScores / (q.size(1) * m), kFewest, kMost);
  std::vector<Block> blocks;
  for (int64_t begin = 0; begin < n; begin += rows) {
    const int64_t count = std::min(rows, n - begin);
    blocks.push_back({begin, count, m - n + begin + count});
  }
  return blocks;
}

uint16_t* data(const at::Tensor& t) {
  return reinterpret_cast<uint16_t*>(t.mutable_data_ptr<at::BFloat16>());
}

// row(i, visible keys) for each row of [heads, count] queries.
template <class Row>
void for_rows(int64_t heads, const Block& block, Row&& row) {
  const int64_t grain = 1 + 16 * 1024 / block.keys;
  at::parallel_for(0, heads * block.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row(i, block.keys - block.count + 1 + i % block.count);
  });
}

at::Tensor scores_of(const Block& block, const at::Tensor& q, const at::Tensor& k) {
  return at::bmm(q, k.narrow(1, 0, block.keys).transpose(1, 2));
}

struct Attended {
  at::Tensor out;      // [n, H, K]
  at::Tensor log_sum;  // [n H] fp32: block by block, each [H, count]
};

Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, float scale) {
  Attended result{.out = at::empty({q.size(0), q.size(1), q.size(2)}, q.options()),
                  .log_sum = at::empty({q.size(0) * q.size(1)}, at::kFloat)};
  auto* sums = result.log_sum.mutable_data_ptr<float>();
  for (const Block& block : blocks_of(q, k)) {
    const at::Tensor scores = scores_of(block, grouped(q.narrow(0, block.begin, block.count), k.size(0)), k);
    for_rows(q.size(1), block, [&, all = data(scores)](int64_t i, int64_t visible) {
      sums[i] = kernels::attention_row(all + i * block.keys, block.keys, visible, scale);
    });
    sums += q.size(1) * block.count;
    const at::Tensor out = at::bmm(scores, v.narrow(1, 0, block.keys));
    result.out.narrow(0, block.begin, block.count).copy_(ungrouped(out, block.count));
  }
  return result;
}

struct Gradients {
  at::Tensor dq, dk, dv;  // [n, H, K], [G, m, K]
};

// dP = dY Vᵀ, dS = P (dP - Σ P dP) * scale; dV = Pᵀ dY, dQ = dS K, dK = dSᵀ Q. Sums over blocks in fp32.
Gradients differentiate(const at::Tensor& dy, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& log_sum, float scale) {
  Gradients result{.dq = at::empty({q.size(0), q.size(1), q.size(2)}, q.options()),
                   .dk = at::zeros(k.sizes(), q.options().dtype(at::kFloat)),
                   .dv = at::zeros(v.sizes(), q.options().dtype(at::kFloat))};
  const auto* sums = log_sum.const_data_ptr<float>();
  for (const Block& block : blocks_of(q, k)) {
    const at::Tensor own_q = grouped(q.narrow(0, block.begin, block.count), k.size(0)),
                     own_dy = grouped(dy.narrow(0, block.begin, block.count), k.size(0)),
                     p = scores_of(block, own_q, k), ds = scores_of(block, own_dy, v);
    for_rows(q.size(1), block, [&, s = data(p), d = data(ds)](int64_t i, int64_t visible) {
      const int64_t at = i * block.keys;
      kernels::attention_backward_row(s + at, d + at, block.keys, visible, scale, sums[i]);
    });
    sums += q.size(1) * block.count;
    result.dv.narrow(1, 0, block.keys).add_(at::bmm(p.transpose(1, 2), own_dy));
    result.dk.narrow(1, 0, block.keys).add_(at::bmm(ds.transpose(1, 2), own_q));
    result.dq.narrow(0, block.begin, block.count)
        .copy_(ungrouped(at::bmm(ds, k.narrow(1, 0, block.keys)), block.count));
  }
  return result;
}

struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale) {
    const Attended result = attend(q, k, v, static_cast<float>(scale));
    context->saved_data["scale"] = scale;
    context->save_for_backward({q, k, v, result.log_sum});
    return result.out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto scale = static_cast<float>(context->saved_data.at("scale").toDouble());
    const Gradients result = differentiate(gradients[0], saved[0], saved[1], saved[2], saved[3], scale);
    return {result.dq, result.dk.to(saved[1].scalar_type()), result.dv.to(saved[2].scalar_type()), at::Tensor()};
  }
};

}  // namespace

bool can_attend(const at::Tensor& q) {
  return can_run(q) && q.size(0) > kernels::kFewRows;
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const bool differentiates =
      at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad());
  const at::Tensor out =
      differentiates ? Attention::apply(q, k, v, scale) : attend(q, k, v, static_cast<float>(scale)).out;
  return out.view({q.size(0), -1});
}

}  // namespace lathe::model::cpu
