#include "config/settings.h"

#include <CLI/CLI.hpp>

namespace lathe::config {

void add_serving_options(CLI::App& app, Settings& s) {
  const std::string group = "Serving";
  app.add_option("--host", s.host, "Address to listen on; any but loopback needs --api-key")
      ->envname("LATHE_HOST")
      ->capture_default_str()
      ->group(group);
  app.add_option("--port", s.port, "Port to listen on; 0 picks a free one")
      ->envname("LATHE_PORT")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group(group);
  app.add_option("--api-key", s.api_key, "Key that clients send as 'Authorization: Bearer KEY'")
      ->envname("LATHE_API_KEY")
      ->group(group);
  app.add_option("--served-model-name", s.served_name, "Name of the model in the API (default: the directory's)")
      ->group(group);
  app.add_option("--max-running", s.max_running, "Answers generated at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-waiting", s.max_waiting, "Requests queued before 429")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-context", s.max_context, "Tokens of prompt and answer; 0: the model's limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-body-bytes", s.max_body_bytes, "Largest request body")
      ->check(CLI::Range(int64_t{1024}, int64_t{1} << 30))
      ->capture_default_str()
      ->group(group);
  app.add_option("--http-threads", s.http_threads, "Connections handled at once")
      ->check(CLI::Range(2, 1024))
      ->capture_default_str()
      ->group(group);
  app.add_option("--threads", s.compute_threads, "Compute threads; 0: one per core")
      ->envname("LATHE_THREADS")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str()
      ->group(group);
  app.add_option("--device", s.device, "auto (a GPU if there is one), cpu, cuda or cuda:N")
      ->envname("LATHE_DEVICE")
      ->capture_default_str()
      ->group(group);
}

void add_learning_options(CLI::App& app, Settings& s) {
  const std::string group = "Learning";
  app.add_option("--optimizer", s.optimizer, "apollo_mini, apollo, adamw or sgd")
      ->check(CLI::IsMember({"apollo_mini", "apollo", "adamw", "sgd"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--lr", s.learning_rate, "Learning rate, as for AdamW")
      ->check(CLI::Range(1e-9, 1.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--steps", s.steps, "Steps per correction, at most")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--until-loss", s.until_loss, "A correction stops when its loss is below this")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--train-embeddings", s.train_embeddings, "Whether embedding and head learn too")
      ->capture_default_str()
      ->group(group);
  app.add_option("--keep-completions", s.keep_completions,
                 "Latest chat completions kept in MODEL_DIR/.lathe, so that they can be corrected by id; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  app.add_option("--max-learning", s.max_learning, "Learning jobs queued before 429")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str()
      ->group(group);
  app.add_option("--sync-seconds", s.sync_seconds,
                 "How often changed weights become durable; 0: on demand and at shutdown only")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  app.add_flag("--materialize", s.materialize,
               "Replace shards that are symbolic links (a Hugging Face cache) by copies at the first sync")
      ->group(group);
}

}  // namespace lathe::config
