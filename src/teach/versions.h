// Versions: which version the live weights are, which one is durable, and who may have the next number.
//
// One state machine for everything that happens to the weights. Only it assigns numbers; a number is assigned once, and
// one that was announced and not used stays unused.
//
//             begin            committed
//   whole ------------> writing ---------> whole       live = the number
//     |                    | unchanged --> whole       nothing was written
//     |                    | taken_back -> whole       live = durable: versions between are lost
//     |                    ' tore -------> torn        the live weights are of no version
//     | synced: durable = live
//     | begin_restore              moved
//     '----------------> restoring ------> behind      the directory has a version that the live weights have not
//                          | unchanged --> whole         | followed -> whole   live = durable
//                                                        | kept -----> whole   the live weights become a version of
//                                                        |                     their own, after the directory's
//                                                        ' tore -----> torn
//   torn -- repaired --> whole   live = durable: read again from the directory
//
// Threads: live(), durable(), torn() from any thread; all else on the teaching thread.
// Errors: a transition that the state does not have is a bug and ends the process (LATHE_CHECK).
#pragma once

#include <atomic>
#include <cstdint>

namespace lathe::teach {

class Versions {
 public:
  // `on_disk`: what the directory holds and the weights were loaded from. `last_given`: the highest number ever given.
  Versions(int64_t on_disk, int64_t last_given);

  int64_t live() const { return live_.load(); }
  int64_t durable() const { return durable_.load(); }
  bool torn() const { return state_.load() == State::kTorn; }
  // Whether the live weights are a version that a crash would take.
  bool pending() const { return live() != durable(); }

  // The live weights are not the directory's, and become a version of their own. Returns its number.
  int64_t adopt();

  // The number that the weights will have when the change that now begins is whole.
  int64_t begin();
  void committed();
  void unchanged();
  void taken_back();
  void tore();
  void repaired();

  void synced();

  // The number of the version that the directory is about to get from its past.
  int64_t begin_restore();
  void moved();
  void followed();
  int64_t kept();

 private:
  enum class State { kWhole, kWriting, kRestoring, kBehind, kTorn };
  void move(State from, State to);

  std::atomic<int64_t> live_, durable_;
  std::atomic<State> state_ = State::kWhole;
  int64_t last_given_;
};

}  // namespace lathe::teach
