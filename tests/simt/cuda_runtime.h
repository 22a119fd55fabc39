#pragma once

// A CUDA for tests, on the CPU: with this header in place of CUDA's, g++ builds csrc/cuda/*.cu, and every CUDA thread
// is a fibre of the calling thread. What a GPU decides by chance is here an order that a test chooses, and what a GPU
// forgives in silence is an exception with kernel, block, thread and line.
//
//   launch -> one block after the other, in the chosen order
//                 -> of the threads that can go on, the first in the chosen order runs until it waits:
//                    at __syncthreads for the block, at a warp function for the lanes of the mask
//
// Orders are those of a strict priority. Ascending and descending keep theirs; a random order draws warps and lanes
// anew every few hundred steps. In between it drives some warps far ahead of the others, which is what finds a missing
// barrier: threads that advance in equal steps, though in random turns, hardly ever do.
//
// What kernels have to keep to, beyond what nvcc asks for:
// - Headers of torch and of the standard library come before this one, which defines __noinline__, as CUDA's does.
// - Launches go by cudaLaunchKernelEx, not <<<>>>, and shared<T>() takes the place of __shared__: one T per block for
//   each type T, at most 48 KiB together. No dynamic shared memory, clusters, bulk copies, tensor cores, CUB or PTX.
// - Every lane that a mask names exists, has not returned, and calls the same function in the same place with the same
//   mask; so blocks of kernels that use warp functions are whole warps. __syncthreads likewise, for the whole block.
// - No block waits for another: each runs alone, from its first step to its last. A loop that waits for a thread of its
//   own block calls __nanosleep.
// - Threads hand data to each other across blocks by an atomic behind a __threadfence, and take it by a __threadfence
//   behind an atomic. The thread sanitizer knows of no other way, nor of any order between blocks.
// - Not offered: __activemask, which means little on a GPU either.

#ifndef __x86_64__
#error "the interpreter switches stacks in x86-64 assembly"
#endif

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <math.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

// --- CUDA's types ---

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define SIMT_VECTOR_2(Name, T)         \
  struct alignas(2 * sizeof(T)) Name { \
    T x, y;                            \
  };                                   \
  inline Name make_##Name(T x, T y) { return {x, y}; }
#define SIMT_VECTOR_4(Name, T)         \
  struct alignas(4 * sizeof(T)) Name { \
    T x, y, z, w;                      \
  };                                   \
  inline Name make_##Name(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMT_VECTOR_2(int2, int)
SIMT_VECTOR_2(uint2, unsigned)
SIMT_VECTOR_2(float2, float)
SIMT_VECTOR_2(double2, double)
SIMT_VECTOR_2(longlong2, long long)
SIMT_VECTOR_2(ulonglong2, unsigned long long)
SIMT_VECTOR_4(int4, int)
SIMT_VECTOR_4(uint4, unsigned)
SIMT_VECTOR_4(ushort4, unsigned short)
SIMT_VECTOR_4(uchar4, unsigned char)
SIMT_VECTOR_4(float4, float)

#undef SIMT_VECTOR_2
#undef SIMT_VECTOR_4

using cudaStream_t = struct CUstream_st*;

// Those of the running thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// --- The interpreter ---

// Threads of a kernel touch the interpreter's own state only in functions marked so, which the thread sanitizer does
// not see: to it, they would be races.
#define SIMT_UNSEEN __attribute__((noinline, no_sanitize("thread")))
#define SIMT_EXPORT extern "C" __attribute__((used, visibility("default"))) inline

namespace simt {

using Site = std::source_location;

constexpr unsigned kLanes = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxWarps = kMaxThreads / kLanes;
constexpr std::size_t kSharedSize = 48 << 10;
constexpr std::size_t kArenaSize = 2 * kSharedSize;  // with gaps, in which AddressSanitizer notices who comes by
constexpr std::size_t kGap = 64;
// Seven cache lines more than a power of two: otherwise all stacks would contend for the same sets of the caches.
constexpr std::size_t kStackSize = (128 << 10) + 7 * 64;
constexpr std::uint64_t kStackEnd = 0x5ac8e0fbe110d1e5;

// What the sanitizers have to be told; nothing in a plain build.
#ifdef __SANITIZE_THREAD__
constexpr bool kThreadSanitizer = true;
inline void* tsan_self() { return __tsan_get_current_fiber(); }
inline void* tsan_create() { return __tsan_create_fiber(0); }
inline void tsan_destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
SIMT_UNSEEN inline void tsan_switch(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
SIMT_UNSEEN inline void tsan_acquire(void* from) { __tsan_acquire(from); }
SIMT_UNSEEN inline void tsan_release(void* to) { __tsan_release(to); }
#else
constexpr bool kThreadSanitizer = false;
inline void* tsan_self() { return nullptr; }
inline void* tsan_create() { return nullptr; }
inline void tsan_destroy(void*) {}
inline void tsan_switch(void*) {}
inline void tsan_acquire(void*) {}
inline void tsan_release(void*) {}
#endif
#ifdef __SANITIZE_ADDRESS__
inline void asan_forbid(void* p, std::size_t n) { __asan_poison_memory_region(p, n); }
inline void asan_allow(void* p, std::size_t n) { __asan_unpoison_memory_region(p, n); }
inline void asan_leave(void** fake, const void* to, std::size_t n) { __sanitizer_start_switch_fiber(fake, to, n); }
inline void asan_enter(void* fake, const void** from, std::size_t* n) {
  __sanitizer_finish_switch_fiber(fake, from, n);
}
#else
inline void asan_forbid(void*, std::size_t) {}
inline void asan_allow(void*, std::size_t) {}
inline void asan_leave(void**, const void*, std::size_t) {}
inline void asan_enter(void*, const void**, std::size_t*) {}
#endif

// Why a thread gave up its turn.
enum class Why { start, turn, barrier, meeting, failure, exit };

struct Thread {
  Why why;
  uint3 index;
  unsigned lane;
  // What it waits for, brings and gets.
  const char* what;
  Site site;
  unsigned mask;
  std::uint64_t value;
  unsigned source;  // of a shuffle
  void (*settle)(Thread* warp, unsigned mask);
  std::uint64_t result;
  // What it did last, as far as order in memory goes.
  bool fenced;
  void* last_atomic;
  // Its fibre.
  char* stack;
  void* stack_pointer;
  void* fake_stack;
  void* fiber;
};

// Which of the threads that can go on does, and in which order blocks run.
class Order {
 public:
  enum Kind { ascending, descending, random };

  void set(Kind kind, std::uint64_t seed) {
    kind_ = kind;
    random_.seed(seed);
  }

  std::vector<std::uint64_t> blocks(std::uint64_t n) {
    std::vector<std::uint64_t> order(n);
    arrange(order.data(), n);
    return order;
  }

  // No thread can go on yet.
  void begin(unsigned warps) {
    num_warps_ = warps;
    std::fill_n(ready_, warps, 0u);
    ready_warps_ = 0;
    draw();
  }

  void put(unsigned thread) {
    ready_[thread / kLanes] |= 1u << lanes_[thread / kLanes].rank[thread % kLanes];
    ready_warps_ |= 1u << warps_.rank[thread / kLanes];
  }

  // The first thread of those that can go on, which no longer is one of them; -1 without any.
  int take() {
    if (steps_-- == 0) redraw();
    if (ready_warps_ == 0) return -1;
    const unsigned warp = warps_.at[std::countr_zero(ready_warps_)];
    unsigned& ready = ready_[warp];
    const unsigned lane = lanes_[warp].at[std::countr_zero(ready)];
    ready &= ready - 1;
    if (ready == 0) ready_warps_ &= ready_warps_ - 1;
    return static_cast<int>(warp * kLanes + lane);
  }

  // Puts a thread behind the others.
  void put_last(unsigned thread) {
    put(thread);
    keep_ready([&] {
      warps_.move_last(thread / kLanes, num_warps_);
      lanes_[thread / kLanes].move_last(thread % kLanes, kLanes);
    });
  }

  // After how many atomics a thread loses its turn.
  unsigned atomics() { return kind_ == random ? 1 + random_() % 16 : ~0u; }

 private:
  // Who is at which place, and the place of each.
  struct Places {
    unsigned at[kLanes], rank[kLanes];

    void set_ranks(unsigned n) {
      for (unsigned i = 0; i < n; ++i) rank[at[i]] = i;
    }
    void move_last(unsigned x, unsigned n) {
      std::rotate(at + rank[x], at + rank[x] + 1, at + n);
      set_ranks(n);
    }
  };
  static_assert(kMaxWarps == kLanes);

  template <typename T>
  void arrange(T* order, std::size_t n) {
    std::iota(order, order + n, T{0});
    if (kind_ == descending) std::reverse(order, order + n);
    if (kind_ == random) std::shuffle(order, order + n, random_);
  }

  void draw() {
    arrange(warps_.at, num_warps_);
    warps_.set_ranks(num_warps_);
    for (unsigned w = 0; w < num_warps_; ++w) {
      arrange(lanes_[w].at, kLanes);
      lanes_[w].set_ranks(kLanes);
    }
    steps_ = kind_ == random ? 50 + random_() % 500 : ~std::uint64_t{0};
  }

  // The bits of who can go on lie at ranks, and have to follow them.
  template <typename Change>
  void keep_ready(Change change) {
    std::vector<unsigned> threads;
    for (unsigned w = 0; w < num_warps_; ++w)
      for (unsigned bits = std::exchange(ready_[w], 0u); bits != 0; bits &= bits - 1)
        threads.push_back(w * kLanes + lanes_[w].at[std::countr_zero(bits)]);
    ready_warps_ = 0;
    change();
    for (unsigned thread : threads) put(thread);
  }

  void redraw() {
    keep_ready([&] { draw(); });
  }

  Kind kind_ = ascending;
  std::mt19937_64 random_;
  std::uint64_t steps_ = 0;
  unsigned num_warps_ = 0;
  Places warps_ = {};
  Places lanes_[kMaxWarps] = {};
  unsigned ready_[kMaxWarps] = {};  // a bit for each lane, at its rank
  unsigned ready_warps_ = 0;        // and for each warp that has any
};

// One type's shared memory in the running block.
struct Shared {
  const void* type;
  void* data;
};

struct State {
  std::mutex running;
  Order order;
  std::uint64_t threads_run = 0, atomics_run = 0;
  std::set<const void*> kernels;

  // the launch
  const void* kernel = nullptr;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;

  // the block
  unsigned num_threads = 0;
  unsigned meeting[kMaxWarps] = {};  // lanes that wait for others
  unsigned away[kMaxWarps] = {};     // lanes that do not exist, wait at the barrier, or have returned
  unsigned waiting = 0;              // at the barrier
  Thread* first_waiting = nullptr;
  unsigned exited = 0;
  Thread threads[kMaxThreads] = {};
  char* stacks = nullptr;
  bool abandoned = false;  // the last block failed: its fibres did not come to their end
  char* arena = nullptr;
  std::size_t arena_used = 0, shared_used = 0;
  Shared shared[16] = {};
  unsigned num_shared = 0;

  // the thread
  Thread* current = nullptr;
  unsigned atomics_left = 0;

  // whoever called launch
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;
  const void* stack = nullptr;
  std::size_t stack_size = 0;
  void* fiber = nullptr;

  // for the thread sanitizer
  std::vector<void*> fibers;
  std::size_t next_fiber = 0;
  char block_begin = 0, kernel_end = 0;  // whose addresses it knows these events by
};

inline State state;

// --- Fibres ---

// Leaves a stack, noting where it was, for one that was left before.
__attribute__((naked, noinline, no_sanitize("thread", "address", "undefined"))) inline void swap_stacks(void** leave,
                                                                                                        void* enter) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
  )");
}

// Gives up the turn.
SIMT_UNSEEN inline void leave(Thread& self, Why why) {
  self.why = why;
  tsan_switch(state.fiber);
  asan_leave(why == Why::exit ? nullptr : &self.fake_stack, state.stack, state.stack_size);
  swap_stacks(&self.stack_pointer, state.stack_pointer);
  asan_enter(self.fake_stack, &state.stack, &state.stack_size);
}

SIMT_UNSEEN inline void thread_main() {
  asan_enter(nullptr, &state.stack, &state.stack_size);
  state.body(state.arguments);
  tsan_release(&state.kernel_end);
  leave(*state.current, Why::exit);
  __builtin_unreachable();
}

// Gives a thread its turn.
SIMT_UNSEEN inline void enter(Thread& thread) {
  state.current = &thread;
  state.atomics_left = state.order.atomics();
  threadIdx = thread.index;
  tsan_switch(thread.fiber);
  asan_leave(&state.fake_stack, thread.stack, kStackSize);
  swap_stacks(&state.stack_pointer, thread.stack_pointer);
  asan_enter(state.fake_stack, nullptr, nullptr);
}

// As if thread_main had been left before its first instruction.
inline void prepare(Thread& thread) {
  std::memcpy(thread.stack, &kStackEnd, sizeof kStackEnd);
  auto* top = reinterpret_cast<void**>((reinterpret_cast<std::uintptr_t>(thread.stack) + kStackSize) & ~15ull);
  *--top = nullptr;  // where thread_main would return to: the end of every backtrace
  top[-1] = reinterpret_cast<void*>(&thread_main);
  std::fill(top - 7, top - 1, nullptr);  // six registers
  thread.stack_pointer = top - 7;
  thread.fake_stack = nullptr;
}

// --- Failures ---

// Functions of this library by their addresses, those with internal linkage included.
inline std::string name_of(const void* function) {
  Dl_info info;
  if (dladdr(function, &info) == 0) return "?";
  const auto address =
      static_cast<std::uint64_t>(static_cast<const char*>(function) - static_cast<const char*>(info.dli_fbase));
  std::ifstream file(info.dli_fname, std::ios::binary);
  const std::string elf{std::istreambuf_iterator<char>(file), {}};
  auto at = [&]<typename T>(std::uint64_t offset, T value) {
    if (offset + sizeof(T) <= elf.size()) std::memcpy(&value, elf.data() + offset, sizeof(T));
    return value;
  };
  const auto header = at(0, Elf64_Ehdr{});
  auto section = [&](unsigned i) { return at(header.e_shoff + i * sizeof(Elf64_Shdr), Elf64_Shdr{}); };
  for (unsigned i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr table = section(i);
    if (table.sh_type != SHT_SYMTAB) continue;
    for (std::uint64_t offset = 0; offset < table.sh_size; offset += sizeof(Elf64_Sym)) {
      const auto symbol = at(table.sh_offset + offset, Elf64_Sym{});
      if (symbol.st_value != address || ELF64_ST_TYPE(symbol.st_info) != STT_FUNC) continue;
      const char* mangled = elf.data() + section(table.sh_link).sh_offset + symbol.st_name;
      int status = 0;
      const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(mangled, nullptr, nullptr, &status), free);
      return status == 0 ? name.get() : mangled;
    }
  }
  return "?";
}

inline std::string text(auto index) {
  std::ostringstream s;
  s << '(' << index.x << ", " << index.y << ", " << index.z << ')';
  return s.str();
}

inline std::string text(const Site& site) { return std::string(site.file_name()) + ':' + std::to_string(site.line()); }

[[noreturn]] inline void fail(const std::string& message) {
  throw std::runtime_error("simt: " + name_of(state.kernel) + ": " + message);
}

[[noreturn]] inline void fail(const Thread& thread, const std::string& message) {
  fail("block " + text(blockIdx) + ", thread " + text(thread.index) + ", " + text(thread.site) + ": " + thread.what +
       ": " + message);
}

// For the other thread that a failure is about.
inline std::string describe(const Thread& thread) {
  const std::string who = "thread " + text(thread.index);
  if (thread.why == Why::exit) return who + " has returned";
  if (thread.why == Why::barrier || thread.why == Why::meeting)
    return who + " waits in " + thread.what + " at " + text(thread.site);
  return who + " has not come yet";
}

// --- Waiting ---

inline bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

inline unsigned number_of(const Thread& thread) { return static_cast<unsigned>(&thread - state.threads); }
inline unsigned warp_of(const Thread& thread) { return number_of(thread) / kLanes; }

inline void make_ready(Thread& thread) {
  thread.why = Why::turn;
  state.order.put(number_of(thread));
}

// Calls act on the lanes of a mask.
template <typename Act>
void each(Thread* warp, unsigned mask, Act act) {
  for (; mask != 0; mask &= mask - 1) act(warp[std::countr_zero(mask)]);
}

// Calls act on all threads of the block.
template <typename Act>
void each(Act act) {
  std::for_each_n(state.threads, state.num_threads, act);
}

// In the name of a thread, before it goes on.
SIMT_UNSEEN inline void release_as(Thread& thread) {
  tsan_switch(thread.fiber);
  tsan_release(&thread);
  tsan_switch(state.fiber);
}

SIMT_UNSEEN inline void acquire_as(Thread& thread, void* from) {
  tsan_switch(thread.fiber);
  tsan_acquire(from);
  tsan_switch(state.fiber);
}

// Tells the thread sanitizer that all that any of these threads did comes before what each of them does next; `all`
// calls what it is given on each. A thread leaves word in a place of its own: word that others had left in the same
// place before would order more than there is order.
template <typename All>
void put_in_order(Thread& leader, All all) {
  if constexpr (!kThreadSanitizer) return;
  all([](Thread& t) { release_as(t); });
  all([&](Thread& t) { acquire_as(leader, &t); });
  release_as(leader);
  all([&](Thread& t) { acquire_as(t, &leader); });
}

// A thread that waits at the barrier or has returned is awaited by no lane of its warp.
inline void go_away(Thread& thread) {
  state.away[warp_of(thread)] |= 1u << thread.lane;
  each(&thread - thread.lane, state.meeting[warp_of(thread)], [&](const Thread& t) {
    if (t.mask >> thread.lane & 1)
      fail(t, "lane " + std::to_string(thread.lane) + " is in the mask, but " + describe(thread));
  });
}

inline void arrive_at_barrier(Thread& thread) {
  go_away(thread);
  // That all who wait already agree has been seen when they came.
  if (state.waiting > 0 && !same(state.first_waiting->site, thread.site))
    fail(thread, "the block diverges: " + describe(*state.first_waiting));
  if (state.exited > 0)
    each([&](const Thread& t) {
      if (t.why == Why::exit) fail(thread, "the block diverges: " + describe(t));
    });
  if (state.waiting++ == 0) state.first_waiting = &thread;
  if (state.waiting < state.num_threads) return;
  state.waiting = 0;
  std::uint64_t count = 0;
  each([&](const Thread& t) { count += t.value; });
  put_in_order(thread, [](auto act) { each(act); });
  each([&](Thread& t) {
    t.result = count;
    state.away[warp_of(t)] &= ~(1u << t.lane);
    make_ready(t);
  });
}

inline void check_agreement(const Thread& thread, const Thread& other) {
  const bool awaited = thread.mask >> other.lane & 1;
  const bool awaits = other.mask >> thread.lane & 1;
  const bool here = same(thread.site, other.site);
  if (awaited && awaits && !here) fail(thread, "the warp diverges: " + describe(other));
  if ((awaited && awaits && thread.mask != other.mask) || (awaited != awaits && here))
    fail(thread, "its mask differs from that of lane " + std::to_string(other.lane));
}

inline void arrive_at_meeting(Thread& thread) {
  if (!(thread.mask >> thread.lane & 1)) fail(thread, "the mask lacks the calling lane");
  Thread* const warp = &thread - thread.lane;
  if (const unsigned missing = thread.mask & state.away[warp_of(thread)]; missing != 0) {
    const Thread& other = warp[std::countr_zero(missing)];
    fail(thread, "lane " + std::to_string(other.lane) + " is in the mask, but " +
                     (number_of(other) < state.num_threads ? describe(other) : "the block has no such thread"));
  }
  unsigned& meeting = state.meeting[warp_of(thread)];
  const unsigned others = meeting & thread.mask;
  meeting |= 1u << thread.lane;
  if ((meeting & thread.mask) != thread.mask) {
    if (others != 0) check_agreement(thread, warp[std::countr_zero(others)]);  // and with the rest at the end
    return;
  }
  each(warp, others, [&](const Thread& other) { check_agreement(thread, other); });
  if (std::any_of(warp, warp + kLanes,
                  [&](const Thread& t) { return thread.mask >> t.lane & 1 && t.mask != thread.mask; }))
    return;  // somebody has yet to come back from a meeting of fewer
  if (thread.settle != nullptr) thread.settle(warp, thread.mask);
  put_in_order(thread, [&](auto act) { each(warp, thread.mask, act); });
  meeting &= ~thread.mask;
  each(warp, thread.mask, make_ready);
}

// --- What a thread does ---

SIMT_UNSEEN inline std::uint64_t barrier(const char* what, bool value, const Site& site) {
  Thread& self = *state.current;
  self.what = what;
  self.site = site;
  self.value = value;
  leave(self, Why::barrier);
  return self.result;
}

SIMT_UNSEEN inline std::uint64_t meet(const char* what, unsigned mask, std::uint64_t value, unsigned source,
                                      void (*settle)(Thread*, unsigned), const Site& site) {
  Thread& self = *state.current;
  self.what = what;
  self.site = site;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.settle = settle;
  leave(self, Why::meeting);
  return self.result;
}

SIMT_UNSEEN inline void misuse(const char* what, const char* message, const Site& site) {
  Thread& self = *state.current;
  self.what = what;
  self.site = site;
  self.result = reinterpret_cast<std::uint64_t>(message);
  leave(self, Why::failure);
}

SIMT_UNSEEN inline unsigned lane() { return state.current->lane; }
SIMT_UNSEEN inline void pass() { leave(*state.current, Why::turn); }

// A release by the first atomic behind it, an acquire from the last atomic before it.
SIMT_UNSEEN inline void fence() {
  Thread& self = *state.current;
  self.fenced = true;
  if (self.last_atomic != nullptr) tsan_acquire(self.last_atomic);
}

SIMT_UNSEEN inline void before_atomic(void* p) {
  Thread& self = *state.current;
  ++state.atomics_run;
  if (--state.atomics_left == 0) pass();
  if (self.fenced) tsan_release(p);
  self.fenced = false;
  self.last_atomic = p;
}

// Nothing comes between the two halves: only one thread runs at a time. They are atomics for the thread sanitizer.
template <typename T, typename Next>
T update(T* p, Next next) {
  before_atomic(p);
  T old, then;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  then = next(old);
  __atomic_store(p, &then, __ATOMIC_RELAXED);
  return old;
}

template <typename T>
concept Word = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <Word T>
std::uint64_t to_bits(T x) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}

template <Word T>
T from_bits(std::uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <Word T>
T shuffle(const char* what, unsigned mask, T value, unsigned source, int width, const Site& site) {
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width)))
    misuse(what, "the width is not a power of two up to 32", site);
  auto settle = [](Thread* warp, unsigned mask) {
    each(warp, mask, [&](Thread& t) {
      if (!(mask >> t.source & 1)) fail(t, "reads lane " + std::to_string(t.source) + ", which is not in the mask");
      t.result = warp[t.source].value;
    });
  };
  return from_bits<T>(meet(what, mask, to_bits(value), source, settle, site));
}

inline unsigned ballot(const char* what, unsigned mask, bool predicate, const Site& site) {
  auto settle = [](Thread* warp, unsigned mask) {
    unsigned bits = 0;
    each(warp, mask, [&](Thread& t) { bits |= static_cast<unsigned>(t.value != 0) << t.lane; });
    each(warp, mask, [&](Thread& t) { t.result = bits; });
  };
  return static_cast<unsigned>(meet(what, mask, predicate, 0, settle, site));
}

template <typename T, typename Operation>
T reduce(const char* what, unsigned mask, T value, Operation, const Site& site) {
  auto settle = [](Thread* warp, unsigned mask) {
    T total = from_bits<T>(warp[std::countr_zero(mask)].value);
    each(warp, mask & (mask - 1), [&](Thread& t) { total = Operation{}(total, from_bits<T>(t.value)); });
    each(warp, mask, [&](Thread& t) { t.result = to_bits(total); });
  };
  return from_bits<T>(meet(what, mask, to_bits(value), 0, settle, site));
}

template <typename T>
inline constexpr char kType = 0;

// The block's T, aligned as T asks for and no further, so that UndefinedBehaviorSanitizer sees who expects more.
SIMT_UNSEEN inline void* find_shared(const void* type, std::size_t size, std::size_t alignment, const Site& site) {
  for (unsigned i = 0; i < state.num_shared; ++i)
    if (state.shared[i].type == type) return state.shared[i].data;
  constexpr std::size_t coarse = 128;
  state.shared_used += (size + alignment - 1) / alignment * alignment;
  if (state.shared_used > kSharedSize) misuse("shared", "the block's shared memory exceeds 48 KiB", site);
  if (state.num_shared == std::size(state.shared)) misuse("shared", "a block has sixteen types at most", site);
  const std::size_t begin = (state.arena_used + kGap + coarse - 1) / coarse * coarse + alignment % coarse;
  state.arena_used = begin + size;
  void* const data = state.arena + begin;
  asan_allow(data, size);
  state.shared[state.num_shared++] = {type, data};
  return data;
}

template <typename T>
T& shared(const Site site = Site::current()) {
  static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 128);
  return *static_cast<T*>(find_shared(&kType<T>, sizeof(T), alignof(T), site));
}

// --- Blocks ---

inline void map(char*& where, std::size_t size) {
  const int fixed = where == nullptr ? 0 : MAP_FIXED;
  void* p = mmap(where, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("simt: no memory for stacks");
  where = static_cast<char*>(p);
}

// Kernels read these without having been told of the block before theirs.
SIMT_UNSEEN inline void set_indices(dim3 grid, dim3 block, std::uint64_t number) {
  gridDim = grid;
  blockDim = block;
  blockIdx.x = static_cast<unsigned>(number % grid.x);
  blockIdx.y = static_cast<unsigned>(number / grid.x % grid.y);
  blockIdx.z = static_cast<unsigned>(number / grid.x / grid.y);
}

// The threads of the next block, as the thread sanitizer knows them: what the caller did so far comes before them, and
// nothing that the blocks before did. A thread takes near a megabyte and half a millisecond to make, so there is an end
// to new ones, and every eighth block of 256 threads seems to be the same one.
inline void take_fibers() {
  if constexpr (!kThreadSanitizer) return;
  constexpr std::size_t kMost = 2048;
  if (state.abandoned) {
    for (void* fiber : state.fibers) tsan_destroy(fiber);
    state.fibers.clear();
    state.next_fiber = 0;
  }
  state.fiber = tsan_self();
  tsan_release(&state.block_begin);
  each([](Thread& t) {
    if (state.fibers.size() < kMost) state.fibers.push_back(tsan_create());
    t.fiber = state.fibers[state.next_fiber++ % state.fibers.size()];
    acquire_as(t, &state.block_begin);
  });
}

inline void begin_block(dim3 block, std::uint64_t number) {
  if (state.stacks == nullptr) {
    map(state.stacks, kMaxThreads * kStackSize);
    map(state.arena, kArenaSize);
  } else if (kThreadSanitizer) {
    // Fresh memory: otherwise blocks would seem to share their stacks.
    map(state.stacks, state.num_threads * kStackSize);
    map(state.arena, kArenaSize);
  }
  if (state.abandoned) asan_allow(state.stacks, kMaxThreads * kStackSize);
  asan_allow(state.arena, kArenaSize);
  // Never 0, which kernels might mistake for a start.
  std::memset(state.arena, static_cast<int>(1 + (0xa4 + 41 * number) % 255), kArenaSize);
  asan_forbid(state.arena, kArenaSize);
  state.arena_used = state.shared_used = state.num_shared = 0;
  state.waiting = state.exited = 0;
  const unsigned warps = (state.num_threads + kLanes - 1) / kLanes;
  std::fill_n(state.meeting, warps, 0u);
  std::fill_n(state.away, warps, 0u);
  state.order.begin(warps);
  for (unsigned i = 0; i < warps * kLanes; ++i) {
    Thread& thread = state.threads[i];
    thread = {};
    thread.lane = i % kLanes;
    if (i >= state.num_threads) {
      state.away[i / kLanes] |= 1u << thread.lane;
      continue;
    }
    thread.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    thread.stack = state.stacks + i * kStackSize;
    prepare(thread);
    state.order.put(i);
  }
  take_fibers();
  state.abandoned = true;
}

inline void run_block() {
  while (state.exited < state.num_threads) {
    const int i = state.order.take();
    if (i < 0) {
      // Everybody waits. Who disagrees with whom?
      each([](const Thread& t) {
        if (t.why != Why::meeting) return;
        each(state.threads + number_of(t) - t.lane, state.meeting[warp_of(t)],
             [&](const Thread& other) { check_agreement(t, other); });
      });
      each([](const Thread& t) {
        if (t.why == Why::meeting) fail(t, "deadlock: waits for lanes that wait for others");
      });
      fail("deadlock");
    }
    Thread& thread = state.threads[i];
    enter(thread);
    if (std::memcmp(thread.stack, &kStackEnd, sizeof kStackEnd) != 0)
      fail("block " + text(blockIdx) + ", thread " + text(thread.index) + ": the stack overflowed");
    switch (thread.why) {
      case Why::start:
      case Why::turn:
        state.order.put_last(static_cast<unsigned>(i));
        break;
      case Why::barrier:
        arrive_at_barrier(thread);
        break;
      case Why::meeting:
        arrive_at_meeting(thread);
        break;
      case Why::failure:
        fail(thread, reinterpret_cast<const char*>(thread.result));
      case Why::exit:
        go_away(thread);
        if (state.waiting > 0) fail(*state.first_waiting, "the block diverges: " + describe(thread));
        ++state.exited;
    }
  }
  state.abandoned = false;
  state.threads_run += state.num_threads;
}

// Some blocks of a launch.
inline void run(const void* kernel, dim3 grid, dim3 block, void (*body)(void*), void* arguments,
                const std::vector<std::uint64_t>& blocks) {
  const std::lock_guard lock(state.running);
  state.kernel = kernel;
  state.body = body;
  state.arguments = arguments;
  state.num_threads = block.x * block.y * block.z;
  for (std::uint64_t number : blocks) {
    set_indices(grid, block, number);
    begin_block(block, number);
    run_block();
  }
  tsan_acquire(&state.kernel_end);
}

// All blocks of a launch, in order.
inline std::vector<std::uint64_t> begin_launch(const void* kernel, dim3 grid, dim3 block) {
  const std::lock_guard lock(state.running);
  state.kernel = kernel;
  if (kernel == nullptr) throw std::runtime_error("simt: launch of a null pointer");
  const std::uint64_t num_threads = std::uint64_t{block.x} * block.y * block.z;
  if (num_threads == 0 || num_threads > kMaxThreads) fail("launch with a block of " + text(block) + " threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
    fail("launch with a grid of " + text(grid) + " blocks");
  state.kernels.insert(kernel);
  return state.order.blocks(std::uint64_t{grid.x} * grid.y * grid.z);
}

}  // namespace simt

// --- What Python calls ---

// Of everything that is launched from now on: 0 ascending, 1 descending, 2 random.
SIMT_EXPORT void simt_order(int kind, std::uint64_t seed) {
  simt::state.order.set(static_cast<simt::Order::Kind>(kind), seed);
}

// CUDA threads that have run so far.
SIMT_EXPORT std::uint64_t simt_threads_run() { return simt::state.threads_run; }

// Atomics that they have run so far.
SIMT_EXPORT std::uint64_t simt_atomics_run() { return simt::state.atomics_run; }

// Forgets which kernels were launched.
SIMT_EXPORT void simt_forget_kernels() { simt::state.kernels.clear(); }

// Names of the kernels launched so far, one per line.
SIMT_EXPORT const char* simt_kernels() {
  static std::map<const void*, std::string> names;
  static std::string all;
  all.clear();
  for (const void* kernel : simt::state.kernels) {
    if (!names.contains(kernel)) names[kernel] = simt::name_of(kernel);
    all += names[kernel] + '\n';
  }
  return all.c_str();
}

// --- CUDA's functions ---

inline void __syncthreads(const simt::Site site = simt::Site::current()) {
  simt::barrier("__syncthreads", false, site);
}
inline int __syncthreads_count(int predicate, const simt::Site site = simt::Site::current()) {
  return static_cast<int>(simt::barrier("__syncthreads_count", predicate != 0, site));
}
inline int __syncthreads_or(int predicate, const simt::Site site = simt::Site::current()) {
  return simt::barrier("__syncthreads_or", predicate != 0, site) > 0;
}
inline int __syncthreads_and(int predicate, const simt::Site site = simt::Site::current()) {
  return simt::barrier("__syncthreads_and", predicate == 0, site) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const simt::Site site = simt::Site::current()) {
  simt::meet("__syncwarp", mask, 0, 0, nullptr, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, const simt::Site site = simt::Site::current()) {
  return simt::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, const simt::Site site = simt::Site::current()) {
  return simt::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, const simt::Site site = simt::Site::current()) {
  return simt::ballot("__all_sync", mask, predicate != 0, site) == mask;
}

// Lanes of the segment begin at `lane & -width`.
template <simt::Word T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, const simt::Site site = simt::Site::current()) {
  const unsigned from = (simt::lane() & -width) | (source & (width - 1));
  return simt::shuffle("__shfl_sync", mask, value, from, width, site);
}
template <simt::Word T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const simt::Site site = simt::Site::current()) {
  const unsigned lane = simt::lane();
  const unsigned from = delta > (lane & (width - 1)) ? lane : lane - delta;
  return simt::shuffle("__shfl_up_sync", mask, value, from, width, site);
}
template <simt::Word T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const simt::Site site = simt::Site::current()) {
  const unsigned lane = simt::lane();
  const unsigned from = delta >= width - (lane & (width - 1)) ? lane : lane + delta;
  return simt::shuffle("__shfl_down_sync", mask, value, from, width, site);
}
template <simt::Word T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  const simt::Site site = simt::Site::current()) {
  const unsigned lane = simt::lane();
  const unsigned other = lane ^ static_cast<unsigned>(lane_mask);
  return simt::shuffle("__shfl_xor_sync", mask, value, other > (lane | (width - 1)) ? lane : other, width, site);
}

template <simt::Word T>
unsigned __match_any_sync(unsigned mask, T value, const simt::Site site = simt::Site::current()) {
  auto settle = [](simt::Thread* warp, unsigned mask) {
    simt::each(warp, mask, [&](simt::Thread& t) {
      t.result = 0;
      simt::each(warp, mask, [&](simt::Thread& u) { t.result |= std::uint64_t{t.value == u.value} << u.lane; });
    });
  };
  return static_cast<unsigned>(simt::meet("__match_any_sync", mask, simt::to_bits(value), 0, settle, site));
}

#define SIMT_REDUCE(name, T, operation)                                                                \
  inline T name(unsigned mask, T value, const simt::Site site = simt::Site::current()) {               \
    return simt::reduce(#name, mask, value, [](T a, T b) { return static_cast<T>(operation); }, site); \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, a + b)
SIMT_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
SIMT_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
SIMT_REDUCE(__reduce_and_sync, unsigned, a& b)
SIMT_REDUCE(__reduce_or_sync, unsigned, a | b)
SIMT_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
SIMT_REDUCE(__reduce_min_sync, int, a < b ? a : b)
SIMT_REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef SIMT_REDUCE

inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }
inline void __threadfence_system() { simt::fence(); }
inline void __nanosleep(unsigned) { simt::pass(); }

namespace simt {
template <typename T, typename... Us>
concept OneOf = (std::same_as<T, Us> || ...);
template <typename T>
concept Atomic = OneOf<T, int, unsigned, unsigned long long>;
template <typename T>
concept Ordered = Atomic<T> || OneOf<T, long long>;
template <typename T>
concept Summable = Atomic<T> || OneOf<T, float, double>;

template <Summable T>
T sum(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b));  // wraps
  else
    return a + b;
}
}  // namespace simt

#define SIMT_ATOMIC(name, Types, next)                   \
  template <simt::Types T>                               \
  T name(T* p, std::type_identity_t<T> value) {          \
    return simt::update(p, [&](T old) { return next; }); \
  }                                                      \
  template <simt::Types T>                               \
  T name##_block(T* p, std::type_identity_t<T> value) {  \
    return name(p, value);                               \
  }
SIMT_ATOMIC(atomicAdd, Summable, simt::sum(old, value))
SIMT_ATOMIC(atomicExch, Atomic, (static_cast<void>(old), value))
SIMT_ATOMIC(atomicMin, Ordered, old < value ? old : value)
SIMT_ATOMIC(atomicMax, Ordered, old > value ? old : value)
SIMT_ATOMIC(atomicAnd, Atomic, old& value)
SIMT_ATOMIC(atomicOr, Atomic, old | value)
SIMT_ATOMIC(atomicXor, Atomic, old ^ value)
#undef SIMT_ATOMIC

template <simt::Atomic T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  return simt::update(p, [&](T old) { return old == expected ? desired : old; });
}
template <simt::Atomic T>
T atomicCAS_system(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  return atomicCAS(p, expected, desired);
}
template <simt::Atomic T>
T atomicCAS_block(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  return atomicCAS(p, expected, desired);
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long y = 0;
  for (int i = 0; i < 64; ++i) y |= (x >> i & 1) << (63 - i);
  return y;
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((std::uint64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <typename T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}

// Of two integers of one size or of two floats; as in CUDA, of an unsigned one if either is.
namespace simt {
template <typename A, typename B>
concept Comparable = (std::integral<A> && std::integral<B> && sizeof(A) == sizeof(B) && sizeof(A) >= 4) ||
                     (std::floating_point<A> && std::floating_point<B>);
}  // namespace simt
template <typename A, typename B>
  requires simt::Comparable<A, B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::floating_point<T>)
    return std::fmin(static_cast<T>(a), static_cast<T>(b));
  else
    return std::min(static_cast<T>(a), static_cast<T>(b));
}
template <typename A, typename B>
  requires simt::Comparable<A, B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::floating_point<T>)
    return std::fmax(static_cast<T>(a), static_cast<T>(b));
  else
    return std::max(static_cast<T>(a), static_cast<T>(b));
}

#include "host_runtime.h"

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
