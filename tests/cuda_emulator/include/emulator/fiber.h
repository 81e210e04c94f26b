// Fibers: a stack and a place to go on from. On x86-64 a switch saves the six callee-saved
// registers and the stack pointer; a barrier or a shuffle costs 16 to 25 ns per thread, switch,
// exchange and scheduling together. The same costs 230 to 255 ns with ucontext, whose switch makes
// a system call for the signal mask; it serves other processors, and -DEMULATOR_UCONTEXT.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

#ifdef EMULATOR_UCONTEXT

struct Context {
  ucontext_t state;
};

inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = size;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

inline void switch_context(Context& from, Context& to) {
  swapcontext(&from.state, &to.state);
}

#else

struct Context {
  void* stack_pointer;
};

__attribute__((naked, noinline, noipa)) inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
      // an indirect jump: a `ret` to another stack's address is always mispredicted
      "popq %rcx\n jmp *%rcx\n");
}

inline void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  // What switch_stack pops: six registers and the address to go to. Then entry finds a null return
  // address on a stack that is aligned as the ABI asks at a function's first instruction.
  auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t{15});
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

inline void switch_context(Context& from, Context& to) {
  switch_stack(&from.stack_pointer, to.stack_pointer);
}

#endif

struct Fiber {
  Context context{};
  char* stack = nullptr;  // AddressSanitizer must know the bounds of the stack that runs
  size_t size = 0;
  void* fake_stack = nullptr;
};

// The one way from stack to stack.
inline void switch_fiber(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.size);
#endif
  switch_context(from.context, to.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Describes the stack of the calling OS thread, which exists already.
inline void adopt_stack(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  static thread_local Fiber self;
  if (self.stack == nullptr) {
    pthread_attr_t attributes;
    void* stack = nullptr;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &self.size);
    pthread_attr_destroy(&attributes);
    self.stack = static_cast<char*>(stack);
  }
  fiber.stack = self.stack;
  fiber.size = self.size;
#else
  (void)fiber;
#endif
}

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// A fiber with a guard page under its stack. Stacks live as long as the library.
inline Fiber* new_fiber(int index) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  auto* fiber = new Fiber;
  fiber->stack = static_cast<char*>(memory) + page;
  // Tops at different offsets in their pages, or all stacks would share the same few cache sets.
  fiber->size = kStackBytes - static_cast<size_t>(index) * 192 % 4096;
  return fiber;
}

// Forgets what ran on the fiber; its next switch calls entry.
inline void reset_fiber(Fiber& fiber, void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber.stack, fiber.size);
#endif
  fiber.fake_stack = nullptr;
  make_context(fiber.context, fiber.stack, fiber.size, entry);
}

}  // namespace emulator
