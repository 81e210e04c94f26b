// Replaces the C library's header (this folder is searched first): a failed assert inside a kernel
// fails the launch, as a device-side assert does, rather than the process. The macro stands outside
// the include guard because each inclusion defines it anew, according to NDEBUG.
#ifndef EMULATOR_ASSERT_H
#define EMULATOR_ASSERT_H
namespace emulator {
[[noreturn]] inline void fail_assert(const char* condition, const char* file, int line);
}
#endif
#undef assert
#ifdef NDEBUG
#define assert(condition) static_cast<void>(0)
#else
#define assert(condition)                              \
  (static_cast<bool>(condition) ? static_cast<void>(0) \
                                : emulator::fail_assert(#condition, __FILE__, __LINE__))
#endif
