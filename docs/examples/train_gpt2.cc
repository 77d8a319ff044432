#include <cstdio>
#include <vector>

#include "strata/engine.h"
#include "strata/text_corpus.h"

int main() {
  const auto gpt2 = strata::models::Gpt2Config::from_file("docs/examples/gpt2-10m.json");
  const auto world = strata::World::from_environment();
  const auto config = strata::Config::from_file("docs/examples/nvme.json", world.size);
  const auto corpus = strata::TextCorpus::from_path("/usr/share/common-licenses", gpt2.n_positions);

  strata::Engine::Options options;
  options.micro_batch = {config.micro_batch, gpt2.n_positions};
  strata::Engine engine(strata::models::gpt2(gpt2), config, world, options);

  strata::TextSampler sampler(corpus, gpt2.n_positions, config.seed, world);
  std::vector<strata::OwnedBatch> batches(config.accumulation_steps);
  for (auto& batch : batches) batch.shape = options.micro_batch;
  while (engine.steps_done() < 500) {
    std::vector<strata::Batch> step;
    for (auto& batch : batches) {
      sampler.next(batch);
      step.push_back(batch.view());
    }
    const strata::StepResult result = engine.train_step(step);
    if (world.rank == 0) std::printf("%d %.4f\n", static_cast<int>(result.step), result.loss);
  }
}
