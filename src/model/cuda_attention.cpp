#include "model/cuda_attention.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace lathe::model::cuda {
namespace {

// cuDNN's plans are made per shape, in tenths of a second: worth it for whole chunks of rows, which recur.
constexpr int64_t kCudnnRows = 1024, kCudnnMultiple = 512;
constexpr int64_t kLargestHead = 256;

at::Tensor flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const int64_t n = q.size(0), m = k.size(1);
  const at::Tensor out = std::get<0>(at::_flash_attention_forward(
      q.unsqueeze(0), k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0), /*cum_seq_q=*/std::nullopt,
      /*cum_seq_k=*/std::nullopt, n, m, /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, scale));
  return out.reshape({n, -1});
}

struct Mixed {
  at::Tensor out;      // [n, H, K]
  at::Tensor log_sum;  // [n, H, 1] fp32, if asked for
};

Mixed cudnn_part(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale, bool causal,
                 bool log_sum) {
  const auto result = at::_scaled_dot_product_cudnn_attention(
      q.transpose(0, 1).unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), /*attn_bias=*/std::nullopt,
      /*compute_log_sumexp=*/log_sum, /*dropout_p=*/0.0, causal, /*return_debug_mask=*/false, scale);
  Mixed mixed{.out = std::get<0>(result).squeeze(0).transpose(0, 1), .log_sum = {}};
  if (log_sum) mixed.log_sum = std::get<1>(result).reshape({q.size(1), q.size(0), 1}).transpose(0, 1);
  return mixed;
}

at::Tensor cudnn(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const int64_t n = q.size(0), past = k.size(1) - n;
  if (past == 0) return cudnn_part(q, k, v, scale, /*causal=*/true, at::GradMode::is_enabled()).out.reshape({n, -1});
  TORCH_CHECK(!at::GradMode::is_enabled(), "cuDNN's attention over a past is not differentiable here");
  const Mixed before =
      cudnn_part(q, k.narrow(1, 0, past), v.narrow(1, 0, past), scale, /*causal=*/false, /*log_sum=*/true);
  const Mixed own = cudnn_part(q, k.narrow(1, past, n), v.narrow(1, past, n), scale, /*causal=*/true, /*log_sum=*/true);
  // Of all the weight e^(q k) that a query gives, the share of its own part.
  const at::Tensor share = at::sigmoid(own.log_sum - before.log_sum);
  return at::lerp(before.out.to(at::kFloat), own.out.to(at::kFloat), share).to(q.scalar_type()).reshape({n, -1});
}

at::Tensor plain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const int64_t n = q.size(0), m = k.size(1);
  const at::Tensor mask = at::ones({n, m}, q.options().dtype(at::kBool)).tril_(m - n);
  const at::Tensor out = at::scaled_dot_product_attention(
      q.transpose(0, 1).unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), mask, /*dropout_p=*/0.0,
      /*is_causal=*/false, scale, /*enable_gqa=*/q.size(1) != k.size(0));
  return out.squeeze(0).transpose(0, 1).reshape({n, -1});
}

}  // namespace

AttentionKernel choose_attention(const at::Tensor& q, int64_t keys) {
  const int64_t n = q.size(0), head = q.size(2);
  if (q.scalar_type() != at::kBFloat16 || head > kLargestHead || head % 8 != 0) return AttentionKernel::kPlain;
  const bool recurs = n >= kCudnnRows && n % kCudnnMultiple == 0 && keys % kCudnnMultiple == 0;
  if (recurs && (n == keys || !at::GradMode::is_enabled())) return AttentionKernel::kCudnn;
  return AttentionKernel::kFlash;
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                     AttentionKernel kernel) {
  switch (kernel) {
    case AttentionKernel::kFlash:
      return flash(q, k, v, scale);
    case AttentionKernel::kCudnn:
      return cudnn(q, k, v, scale);
    case AttentionKernel::kPlain:
      break;
  }
  return plain(q, k, v, scale);
}

}  // namespace lathe::model::cuda
