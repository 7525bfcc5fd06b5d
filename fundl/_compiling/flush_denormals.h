// Numbers below the normal ones (1e-38 in float32) count as 0 while this lives, on the thread that made it, as XLA has it: many
// processors take a hundred cycles for each of them, and a moment of a weight that gets no gradient decays to one.

#include <cstdint>
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace fundl {

class FlushDenormals {
 public:
  FlushDenormals() : before_(read()) { write(before_ | flushing); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
  ~FlushDenormals() { write(before_); }

 private:
#if defined(__x86_64__) || defined(_M_X64)
  static constexpr uint64_t flushing = 0x8040;  // results, and what is given
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
  static constexpr uint64_t flushing = uint64_t(1) << 24;  // both
  static uint64_t read() {
    uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
  static constexpr uint64_t flushing = 0;  // it is not known how
  static uint64_t read() { return 0; }
  static void write(uint64_t) {}
#endif
  const uint64_t before_;
};

}  // namespace fundl
