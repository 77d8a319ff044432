#include "kernels/ops/optimizer_checks.h"

#include "strata/error.h"
#include "strata/grain.h"

namespace strata::ops {
namespace {

bool is_float(DType dtype) { return dtype != DType::int32; }

bool is_plain(const StateSpan& span) {
  return span.codec == Codec::fp32 || span.codec == Codec::none;
}

bool is_moment_codec(const StateSpan& span, bool kept) {
  if (!kept) return true;
  return span.data != nullptr &&
         (span.codec == Codec::fp32 || span.codec == Codec::bf16 || span.codec == Codec::int8);
}

}  // namespace

bool is_plain(const EncodedSpans& spans) {
  return is_plain(spans.master) && is_plain(spans.exp_avg) && is_plain(spans.exp_avg_sq);
}

void check_update(const OptimizerScalars& scalars, const EncodedSpans& spans) {
  const OptimizerMoments moments = moments_of(scalars.kind);
  const bool master_fits =
      spans.master.codec == Codec::fp32 ||
      (spans.master.codec == Codec::split16 && spans.param_dtype == DType::bf16);
  require(is_float(spans.grad_dtype) && is_float(spans.param_dtype),
          "optimizer_update: gradient and parameter are fp32, bf16 or fp16");
  require(spans.master.data != nullptr && master_fits,
          "optimizer_update: the master is fp32, or split16 beside bf16 parameters");
  require(is_moment_codec(spans.exp_avg, moments.exp_avg) &&
              is_moment_codec(spans.exp_avg_sq, moments.exp_avg_sq),
          "optimizer_update: the optimizer's moments are fp32, bf16 or int8");
  require(!moments.exp_avg || !moments.exp_avg_sq || spans.exp_avg.codec == spans.exp_avg_sq.codec,
          "optimizer_update: both moments have one codec");
  if (is_plain(spans)) return;
  require(spans.begin % kCodecBlockNumel == 0 && spans.end % kCodecBlockNumel == 0 &&
              spans.first_index % kCodecBlockNumel == 0 && spans.begin <= spans.end,
          "optimizer_update: encoded state is updated in whole blocks");
}

void check_landing(const LandGradientSpans& spans) {
  require(is_float(spans.src_dtype) && spans.numel >= 0 && spans.numel % kGrainNumel == 0,
          "land_gradient: gradients are fp32, bf16 or fp16, in whole grains");
  require(spans.dst_dtype == DType::fp32 || (spans.dst_dtype == spans.src_dtype && !spans.add),
          "land_gradient: the destination is fp32, or the source's dtype when not adding");
}

}  // namespace strata::ops
