// Holder: whoever the weights must be taken from before they may change: the Gate of this process, or the session of a
// server that serves them from another.
//
// Threads: the teaching thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "base/result.h"
#include "vllm/session.h"
#include "weights/gate.h"

namespace lathe::teach {

class Holder {
 public:
  virtual ~Holder() = default;

  // Returns once the weights may be changed. An error means that they may not, and that nothing is open.
  virtual Status begin() = 0;
  // The weights are complete again, as this version. After an error they are still open: call abandon().
  virtual Status end(int64_t version) = 0;
  // Instead of end(): makes the weights those of the model directory. After an error they are of no version, and no
  // longer open.
  virtual Status abandon() = 0;
  // Says that the model directory now holds the live weights.
  virtual Status durable() = 0;
};

// This process serves: the Gate is held exclusively from begin() to the end.
class GateHolder final : public Holder {
 public:
  // `reload` reads the weights again from the model directory; it is called with the Gate held.
  GateHolder(weights::Gate& gate, std::function<Status()> reload) : gate_(gate), reload_(std::move(reload)) {}

  Status begin() override;
  Status end(int64_t version) override;
  Status abandon() override;
  Status durable() override { return {}; }

 private:
  weights::Gate& gate_;
  const std::function<Status()> reload_;
  std::optional<weights::Gate::Exclusive> alone_;
};

// vLLM serves: between begin() and the end it is paused (or, `live`, keeps running). When the lease is over it assumes
// that this process hangs.
class SessionHolder final : public Holder {
 public:
  SessionHolder(vllm::Session& session, bool live) : session_(session), live_(live) {}

  Status begin() override;
  Status end(int64_t version) override { return session_.end(version); }
  Status abandon() override { return session_.abort(); }
  Status durable() override { return session_.durable(); }

 private:
  vllm::Session& session_;
  const bool live_;
};

}  // namespace lathe::teach
