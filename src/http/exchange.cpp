#include "http/exchange.h"

#include <httplib.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "base/thread_border.h"
#include "http/address.h"

namespace lathe::http {
namespace {

constexpr size_t kMaxQueued = 256 << 10;
constexpr auto kAskWanted = std::chrono::milliseconds(100);
constexpr auto kConnectTimeout = std::chrono::seconds(10);
// A server may think about an answer for as long as somebody wants it.
constexpr auto kSilence = std::chrono::hours(24);

}  // namespace

struct Exchange::State {
  explicit State(const Address& address) : url(address.url()), client(address.host, address.port) {}

  const std::string url;
  httplib::Client client;
  std::mutex mutex;  // guards all below
  std::condition_variable changed;
  std::optional<Head> head;
  std::string queued;
  std::optional<Error> failure;
  bool finished = false;
  bool abandoned = false;
  std::jthread reader;

  void run(httplib::Request request);
  bool take_head(const httplib::Response& response);
  bool take_piece(const char* data, size_t size);

  // Waits until `ready`, the end or a failure; an error if there is no more to come of what was waited for.
  template <class Ready>
  Status wait(std::unique_lock<std::mutex>& hold, const Wanted& wanted, Ready ready) {
    while (!ready() && !finished) {
      if (changed.wait_for(hold, kAskWanted, [&] { return ready() || finished; })) break;
      hold.unlock();
      const bool go_on = wanted();
      hold.lock();
      if (!go_on) return Error{Code::kCancelled, "nobody waits for the answer any more"};
    }
    return ready() || !failure ? Status() : Status(*failure);
  }
};

bool Exchange::State::take_head(const httplib::Response& response) {
  const std::lock_guard hold(mutex);
  head = Head{response.status, {response.headers.begin(), response.headers.end()}};
  changed.notify_all();
  return !abandoned;
}

bool Exchange::State::take_piece(const char* data, size_t size) {
  std::unique_lock hold(mutex);
  changed.wait(hold, [&] { return queued.size() < kMaxQueued || abandoned; });
  queued.append(data, size);
  changed.notify_all();
  return !abandoned;
}

void Exchange::State::run(httplib::Request request) {
  request.response_handler = [this](const httplib::Response& response) { return take_head(response); };
  request.content_receiver = [this](const char* data, size_t size, uint64_t, uint64_t) {
    return take_piece(data, size);
  };
  std::optional<httplib::Result> sent;
  within_border("the request to " + url, [&] { sent = client.send(request); });
  const std::lock_guard hold(mutex);
  if (!sent) {
    failure = Error{Code::kInternal, "the request to " + url + " failed"};
  } else if (const httplib::Result& result = *sent; !result) {
    failure =
        Error{Code::kUnavailable, (head ? "the answer of " + url + " broke off (" : "no answer from " + url + " (") +
                                      httplib::to_string(result.error()) + ")"};
  }
  finished = true;
  changed.notify_all();
}

Result<std::unique_ptr<Exchange>> Exchange::start(Call call) {
  auto state = std::make_unique<State>(LATHE_TRY(parse_address(call.url)));
  state->client.set_connection_timeout(kConnectTimeout);
  state->client.set_read_timeout(kSilence);
  state->client.set_decompress(false);
  state->client.set_tcp_nodelay(true);
  httplib::Request request;
  request.method = std::move(call.method);
  request.path = std::move(call.path);
  request.body = std::move(call.body);
  for (auto& [name, value] : call.headers) request.headers.emplace(name, value);
  state->reader =
      std::jthread([raw = state.get(), request = std::move(request)]() mutable { raw->run(std::move(request)); });
  return std::unique_ptr<Exchange>(new Exchange(std::move(state)));
}

Exchange::Exchange(std::unique_ptr<State> state) : state_(std::move(state)) {}

Exchange::~Exchange() {
  std::unique_lock hold(state_->mutex);
  state_->abandoned = true;
  state_->changed.notify_all();
  while (!state_->finished) {
    hold.unlock();
    state_->client.stop();  // without effect before there is a connection, so it is said until it is heard
    hold.lock();
    state_->changed.wait_for(hold, std::chrono::milliseconds(10), [&] { return state_->finished; });
  }
}

Result<Exchange::Head> Exchange::head(const Wanted& wanted) {
  std::unique_lock hold(state_->mutex);
  LATHE_TRY(state_->wait(hold, wanted, [&] { return state_->head.has_value(); }));
  return *state_->head;
}

Result<std::string> Exchange::next(const Wanted& wanted) {
  std::unique_lock hold(state_->mutex);
  LATHE_TRY(state_->wait(hold, wanted, [&] { return !state_->queued.empty(); }));
  state_->changed.notify_all();
  return std::exchange(state_->queued, {});
}

}  // namespace lathe::http
