#include "teach/versions.h"

#include <algorithm>

#include "base/result.h"

namespace lathe::teach {

Versions::Versions(int64_t on_disk, int64_t last_given)
    : live_(on_disk), durable_(on_disk), last_given_(std::max(on_disk, last_given)) {}

void Versions::move(State from, State to) {
  LATHE_CHECK(state_ == from);
  state_ = to;
}

int64_t Versions::adopt() {
  move(State::kWhole, State::kWhole);
  live_ = ++last_given_;
  return live_;
}

int64_t Versions::begin() {
  move(State::kWhole, State::kWriting);
  return ++last_given_;
}

void Versions::committed() {
  move(State::kWriting, State::kWhole);
  live_ = last_given_;
}

void Versions::unchanged() {
  LATHE_CHECK(state_ == State::kWriting || state_ == State::kRestoring);
  state_ = State::kWhole;
}

void Versions::taken_back() {
  move(State::kWriting, State::kWhole);
  live_ = durable_.load();
}

void Versions::tore() {
  LATHE_CHECK(state_ == State::kWriting || state_ == State::kBehind);
  state_ = State::kTorn;
}

void Versions::repaired() {
  move(State::kTorn, State::kWhole);
  live_ = durable_.load();
}

void Versions::synced() {
  move(State::kWhole, State::kWhole);
  durable_ = live_.load();
}

int64_t Versions::begin_restore() {
  move(State::kWhole, State::kRestoring);
  return ++last_given_;
}

void Versions::moved() {
  move(State::kRestoring, State::kBehind);
  durable_ = last_given_;
}

void Versions::followed() {
  move(State::kBehind, State::kWhole);
  live_ = durable_.load();
}

int64_t Versions::kept() {
  move(State::kBehind, State::kWhole);
  live_ = ++last_given_;
  return live_;
}

}  // namespace lathe::teach
