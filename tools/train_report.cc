#include "tools/train_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "strata/clock.h"

namespace strata::tools {
namespace {

constexpr int64_t kLineEveryNs = 5'000'000'000;
constexpr int64_t kRedrawEveryNs = 200'000'000;

double mib(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

nlohmann::ordered_json by_link(const LinkBytes& bytes) {
  nlohmann::ordered_json json;
  for (size_t link = 0; link < kLinkCount; ++link) {
    json[std::string(name(static_cast<Activity>(link)))] = bytes[link];
  }
  return json;
}

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(seconds);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path)
    : path_(path), file_(path.empty() ? nullptr : std::fopen(path.c_str(), "w"), &std::fclose) {
  if (!path.empty() && file_ == nullptr) {
    throw ConfigError(fmt::format("--metrics '{}' cannot be written ({}): name another file", path,
                                  std::strerror(errno)));
  }
}

void MetricsFile::write(const StepResult& r) {
  if (file_ == nullptr) return;
  nlohmann::ordered_json json;
  json["step"] = r.step;
  json["loss"] = r.loss;
  json["grad_norm"] = r.grad_norm;
  json["lr"] = r.lr;
  json["loss_scale"] = r.loss_scale;
  json["skipped"] = r.skipped;
  json["tokens"] = r.tokens;
  json["seconds"] = r.seconds;
  json["phases"] = {
      {"forward", r.phases.forward}, {"backward", r.phases.backward}, {"step", r.phases.step}};
  json["exposed"] = {{"gather", r.exposed.gather},
                     {"grad_buffer", r.exposed.grad_buffer},
                     {"landing", r.exposed.landing},
                     {"ranks", r.exposed.ranks},
                     {"nvme", r.exposed.nvme},
                     {"update", r.exposed.update},
                     {"activation", r.exposed.activation},
                     {"checkpoint", r.exposed.checkpoint}};
  json["speculation"] = {{"sub_groups", r.speculation.sub_groups},
                         {"redone", r.speculation.redone},
                         {"redone_bytes", by_link(r.speculation.redone_bytes)}};
  json["moved"] = by_link(r.moved);
  for (Tier tier : kTiers) {
    json["peak"][std::string(name(tier))] = r.peak[static_cast<size_t>(tier)];
  }
  write_line(json.dump());
}

void MetricsFile::write_validation(int64_t step, double loss) {
  if (file_ == nullptr) return;
  write_line(nlohmann::ordered_json{{"step", step}, {"validation_loss", loss}}.dump());
}

void MetricsFile::write_line(const std::string& line) {
  const std::string text = line + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size() ||
      std::fflush(file_.get()) != 0) {
    throw IoError(fmt::format("cannot write the metrics '{}': {}", path_, std::strerror(errno)),
                  path_, 0, errno);
  }
}

Progress::Progress(const Options& options)
    : options_(options), begin_ns_(now_ns()), last_shown_ns_(begin_ns_ - kLineEveryNs) {}

void Progress::show(const StepResult& r) {
  tokens_ += r.tokens;
  if (r.skipped) return show_skipped(r);
  const int64_t now = now_ns();
  const auto [steps, max_seconds, in_place] = options_;
  const bool last = r.step == steps;
  if (!last && now - last_shown_ns_ < (in_place ? kRedrawEveryNs : kLineEveryNs)) return;
  last_shown_ns_ = now;
  const double elapsed = static_cast<double>(now - begin_ns_) * 1e-9;
  const double by_steps =
      elapsed / static_cast<double>(r.step) * static_cast<double>(steps - r.step);
  const double left = std::min(by_steps, max_seconds - elapsed);
  std::string line =
      fmt::format("step {}/{}  loss {:.4f}  norm {:.2f}  {:.0f} tokens/s  ", r.step, steps, r.loss,
                  r.grad_norm, static_cast<double>(tokens_) / elapsed);
  if (r.loss_scale != 1) line += fmt::format("loss scale {}  ", r.loss_scale);
  for (Tier tier : kTiers) {
    const uint64_t bytes = r.peak[static_cast<size_t>(tier)];
    if (bytes > 0) line += fmt::format("{} {:.0f} MiB  ", name(tier), mib(bytes));
  }
  line += fmt::format("{} left", duration(std::max(left, 0.0)));
  fmt::print("{}{}{}", in_place ? "\r\033[K" : "", line, in_place ? "" : "\n");
  std::fflush(stdout);
  open_ = in_place;
}

void Progress::show_skipped(const StepResult& r) {
  finish();
  const std::string scale = r.loss_scale == 1 ? "" : fmt::format(" at loss scale {}", r.loss_scale);
  fmt::print("step {}/{}  skipped: a gradient is not finite{}\n", r.step, options_.steps, scale);
  std::fflush(stdout);
}

void Progress::finish() {
  if (open_) fmt::print("\n");
  open_ = false;
}

void RunTotals::add(const StepResult& r) {
  ++steps_;
  skipped_ += r.skipped ? 1 : 0;
  tokens_ += r.tokens;
  seconds_ += r.seconds;
  phases_.forward += r.phases.forward;
  phases_.backward += r.phases.backward;
  phases_.step += r.phases.step;
  exposed_.gather += r.exposed.gather;
  exposed_.grad_buffer += r.exposed.grad_buffer;
  exposed_.landing += r.exposed.landing;
  exposed_.ranks += r.exposed.ranks;
  exposed_.nvme += r.exposed.nvme;
  exposed_.update += r.exposed.update;
  exposed_.activation += r.exposed.activation;
  exposed_.checkpoint += r.exposed.checkpoint;
  speculated_ += r.speculation.sub_groups;
  redone_ += r.speculation.redone;
  for (size_t link = 0; link < kLinkCount; ++link) moved_[link] += r.moved[link];
  peak_ = r.peak;
}

std::string RunTotals::table(const PlanSummary& plan) const {
  std::string out = plan.ranks == 1 ? "" : fmt::format("rank {} of {}:\n", plan.rank, plan.ranks);
  out += fmt::format("{:<8} {:>12} {:>12} {:>12}\n", "tier", "peak MiB", "plan MiB", "budget MiB");
  for (Tier tier : kTiers) {
    const auto i = static_cast<size_t>(tier);
    if (plan.needed_bytes[i] == 0) continue;
    out += fmt::format("{:<8} {:>12.1f} {:>12.1f} {:>12.1f}\n", name(tier), mib(peak_[i]),
                       mib(plan.needed_bytes[i]), mib(plan.budget_bytes[i]));
  }
  out += fmt::format("optimizer state: {}\n", optimizer_state_text(plan));
  const double steps = static_cast<double>(std::max<int64_t>(steps_, 1));
  out += fmt::format("\n{:<12} {:>14} {:>14} {:>14}\n", "link", "MiB a step", "planned",
                     "GB/s of step");
  for (size_t link = 0; link < kLinkCount; ++link) {
    if (moved_[link] == 0 && plan.step_traffic[link] == 0) continue;
    out += fmt::format("{:<12} {:>14.2f} {:>14.2f} {:>14.2f}\n", name(static_cast<Activity>(link)),
                       mib(moved_[link]) / steps, mib(plan.step_traffic[link]),
                       seconds_ > 0 ? static_cast<double>(moved_[link]) / seconds_ * 1e-9 : 0.0);
  }
  out += fmt::format(
      "\nmean step {:.1f} ms: forward {:.1f}, backward {:.1f}, step {:.1f}\n"
      "waited in it: compute {:.1f} ms for parameters, {:.1f} for the last update's, {:.1f} for "
      "activations and {:.1f} for gradient buffers, the step "
      "{:.1f} for landing gradients and {:.1f} for other ranks, updates {:.1f} for nvme "
      "and {:.1f} for a checkpoint's slot\n"
      "{} steps, {} skipped, {} tokens, {:.0f} tokens/s\n",
      seconds_ / steps * 1e3, phases_.forward / steps * 1e3, phases_.backward / steps * 1e3,
      phases_.step / steps * 1e3, exposed_.gather / steps * 1e3, exposed_.update / steps * 1e3,
      exposed_.activation / steps * 1e3, exposed_.grad_buffer / steps * 1e3,
      exposed_.landing / steps * 1e3, exposed_.ranks / steps * 1e3, exposed_.nvme / steps * 1e3,
      exposed_.checkpoint / steps * 1e3, steps_, skipped_, tokens_,
      seconds_ > 0 ? static_cast<double>(tokens_) / seconds_ : 0.0);
  return out;
}

}  // namespace strata::tools
