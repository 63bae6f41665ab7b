// How loops are shared over torch's threads: a parallel region for each loop (Pool), or one region
// for many loops, whose threads meet after each of them (Member). Waking a thread takes longer than
// most loops of a decoding step do.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if AT_PARALLEL_OPENMP
#include <omp.h>
#endif

namespace agentrt {

// Rows that one thread should take at least, where a row holds `values` values.
inline long least_rows(long values) {
  return std::max<long>(1, (1 << 15) / std::max<long>(values, 1));
}

struct Pool {
  long threads() const { return at::get_num_threads(); }

  // Run f(0) .. f(count - 1); whoever is free takes the next.
  template <class F>
  void share(long count, const F& f) const {
    const long some = std::min<long>(count, threads());
    if (some <= 1 || at::in_parallel_region()) {
      for (long i = 0; i < count; ++i) f(i);
      return;
    }
    std::atomic<long> next{0};
    at::parallel_for(0, some, 1, [&](int64_t, int64_t) {
      for (long i = next++; i < count; i = next++) f(i);
    });
  }

  // Run f(low, high) over rows; alone where they hold too few values to be worth waking anybody.
  template <class F>
  void share_rows(long rows, long values, const F& f) const {
    at::parallel_for(0, rows, least_rows(values), f);
  }
};

struct Abandoned {};

// Where threads wait for each other. They look again for a while, then sleep: a thread that is not
// running is not waited for at full speed. After abandon() nobody waits any more, and all throw.
class Meeting {
 public:
  void wait(int size) {
    const int32_t now = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.fetch_add(1);
      if (asleep_.load() > 0) wake();
    } else {
      for (long i = 0; i < LOOKS && round_.load(std::memory_order_acquire) == now; ++i) pause();
      while (round_.load(std::memory_order_acquire) == now) sleep(now);
    }
    if (abandoned_.load(std::memory_order_acquire)) throw Abandoned{};
  }

  void abandon() {
    abandoned_.store(true);
    round_.fetch_add(1);
    wake();
  }

 private:
  static constexpr long LOOKS = 2000;  // some tens of microseconds

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
  }

  void sleep(int32_t now) {
    asleep_.fetch_add(1);
#if defined(__linux__)
    if (round_.load() == now)
      syscall(SYS_futex, reinterpret_cast<int32_t*>(&round_), FUTEX_WAIT_PRIVATE, now, nullptr,
              nullptr, 0);
#else
    if (round_.load() == now) std::this_thread::yield();
#endif
    asleep_.fetch_sub(1);
  }

  void wake() {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<int32_t*>(&round_), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr,
            nullptr, 0);
#endif
  }

  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<int32_t> round_{0};
  std::atomic<int32_t> asleep_{0};
  std::atomic<bool> abandoned_{false};
};

// What the members of a team have in common. Of three counters one is in use, one was in use until
// the last meeting, and one is made ready.
struct Team {
  Meeting meeting;
  std::atomic<long> next[3] = {};
};

class Member {
 public:
  Member(Team& team, int id, int size) : team_(team), id_(id), size_(size) {}

  long threads() const { return size_; }

  template <class F>
  void share(long count, const F& f) {
    std::atomic<long>& next = team_.next[loop_ % 3];
    if (id_ == 0) team_.next[(loop_ + 1) % 3].store(0, std::memory_order_relaxed);
    ++loop_;
    for (long i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed))
      f(i);
    if (size_ > 1) team_.meeting.wait(size_);
  }

  template <class F>
  void share_rows(long rows, long values, const F& f) {
    const long least = least_rows(values) / 8;  // nobody has to be woken here
    const long each = std::max<long>(std::max<long>(1, least), (rows + size_ - 1) / size_);
    share((rows + each - 1) / each, [&](long i) { f(i * each, std::min(rows, (i + 1) * each)); });
  }

 private:
  Team& team_;
  const int id_, size_;
  long loop_ = 0;
};

// Run f(member) on all of torch's threads at once; what one of them throws ends all and is thrown.
template <class F>
void together(const F& f) {
  Team team;
#if AT_PARALLEL_OPENMP
  if (at::get_num_threads() > 1 && !at::in_parallel_region()) {
    std::exception_ptr wrong;
    std::atomic_flag first = ATOMIC_FLAG_INIT;
#pragma omp parallel num_threads(at::get_num_threads())
    {
      Member member(team, omp_get_thread_num(), omp_get_num_threads());
      try {
        f(member);
      } catch (const Abandoned&) {
      } catch (...) {
        if (!first.test_and_set()) wrong = std::current_exception();
        team.meeting.abandon();
      }
    }
    if (wrong) std::rethrow_exception(wrong);
    return;
  }
#endif
  Member alone(team, 0, 1);
  f(alone);
}

}  // namespace agentrt
