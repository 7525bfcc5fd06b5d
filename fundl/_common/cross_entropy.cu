// The cross-entropy of class indices and its gradient on a GPU, a block of threads for each row: see classification.py in
// fundl.losses, whose formula this is.
//
// A row is read twice, and its gradient written once; sums are in float32, and what is written is rounded once.
// gpu_kernels.py compiles this file, without any header.

typedef unsigned int u32;
typedef long long i64;

#define INFINITY __int_as_float(0x7F800000)

struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

__device__ inline float widened(float x) { return x; }
__device__ inline float widened(bfloat16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ inline float widened(float16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(float x, bfloat16& out) {
  const u32 bits = __float_as_uint(x), last = bits >> 16 & 1;
  out.bits = x == x ? (unsigned short)((bits + 0x7FFFu + last) >> 16) : (unsigned short)0x7FFF;
}
__device__ inline void narrow(float x, float16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }

__device__ inline float power(float x, float) { return expf(x); }
__device__ inline float power(float x, bfloat16) { return __expf(x); }  // much closer than what is written
__device__ inline float power(float x, float16) { return expf(x); }

// Four numbers that are read and written at once, where the memory of each row allows it.
template <typename T> struct alignas(4 * sizeof(T)) Four { T at[4]; };

template <typename T> __device__ inline int fetched(const T* row, i64 start, i64 classes, bool aligned, float* values) {
  if (aligned) {
    const Four<T> four = *(const Four<T>*)(row + start);
    for (int j = 0; j < 4; j++) values[j] = widened(four.at[j]);
    return 4;
  }
  const int count = classes - start < 4 ? (int)(classes - start) : 4;
  for (int j = 0; j < count; j++) values[j] = widened(row[start + j]);
  return count;
}

// The greatest of some numbers x, the sum of exp(x - greatest), and the sum of x.
struct Sums { float greatest, powers, plain; };

// From 0 of the greatest as from any other, but that -inf is no number to subtract.
__device__ inline float scaled(float powers, float from, float to) { return from == -INFINITY ? powers : powers * expf(from - to); }

__device__ inline Sums both(Sums a, Sums b) {
  const float greatest = a.greatest > b.greatest ? a.greatest : b.greatest;
  return Sums{greatest, scaled(a.powers, a.greatest, greatest) + scaled(b.powers, b.greatest, greatest), a.plain + b.plain};
}

__device__ inline Sums of_warp(Sums mine, int threads) {
  for (int offset = threads / 2; offset; offset /= 2) {
    const Sums other = {__shfl_xor_sync(0xFFFFFFFFu, mine.greatest, offset), __shfl_xor_sync(0xFFFFFFFFu, mine.powers, offset),
                        __shfl_xor_sync(0xFFFFFFFFu, mine.plain, offset)};
    mine = both(mine, other);
  }
  return mine;
}

__device__ inline Sums of_block(Sums mine) {
  __shared__ Sums warps[32];
  const int threads = blockDim.x < 32 ? blockDim.x : 32, count = blockDim.x / threads;
  mine = of_warp(mine, threads);
  if (count == 1) return mine;
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  Sums all = warps[0];
  for (int i = 1; i < count; i++) all = both(all, warps[i]);
  return all;
}

template <typename T> __device__ inline Sums sums_of(const T* row, i64 classes, bool aligned) {
  Sums sums = {-INFINITY, 0, 0};
  for (i64 start = 4 * (i64)threadIdx.x; start < classes; start += 4 * (i64)blockDim.x) {
    float values[4];
    const int count = fetched(row, start, classes, aligned, values);
    float greatest = sums.greatest;
    for (int j = 0; j < count; j++) greatest = values[j] > greatest ? values[j] : greatest;
    sums.powers = scaled(sums.powers, sums.greatest, greatest);
    sums.greatest = greatest;
    for (int j = 0; j < count; j++) {
      sums.powers += values[j] == -INFINITY ? 0 : power(values[j] - greatest, T{});
      sums.plain += values[j];
    }
  }
  return of_block(sums);
}

// Of each row of x (rows, classes), with its class: the loss, and the gradient of the sum of all losses over the divisor, which
// is the number at `counted` or, where there is none, the one that is given.
template <typename T>
__device__ void cross_entropy(
    const T* x, i64 classes, const i64* target, i64 ignored, const i64* counted, float given, float smoothing, bool aligned,
    T* grad, float* losses) {
  const i64 row = blockIdx.x, index = target[row];
  const bool counts = index != ignored;
  x += row * classes;
  grad += row * classes;
  if (counts && (index < 0 || index >= classes))
    __assertfail("a class index is from 0 to C - 1", "cross_entropy.cu", __LINE__, "cross_entropy", 1);
  Sums sums = {0, 1, 0};
  if (counts) sums = sums_of(x, classes, aligned);
  const float scale = 1 / (counted ? (float)*counted : given), even = smoothing / (float)classes, part = 1 / sums.powers;
  if (threadIdx.x == 0) {
    const float rest = sums.greatest + logf(sums.powers);  // log of the sum of exp
    const float own = counts ? sums.greatest - widened(x[index]) + logf(sums.powers) : 0;
    losses[row] = !counts ? 0 : smoothing == 0 ? own : (1 - smoothing) * own + smoothing * (rest - sums.plain / (float)classes);
  }
  for (i64 start = 4 * (i64)threadIdx.x; start < classes; start += 4 * (i64)blockDim.x) {
    float values[4] = {0, 0, 0, 0};
    int count = classes - start < 4 ? (int)(classes - start) : 4;
    if (counts) {
      count = fetched(x, start, classes, aligned, values);
      for (int j = 0; j < count; j++) {
        const float probability = power(values[j] - sums.greatest, T{}) * part;
        values[j] = (probability - even - (start + j == index ? 1 - smoothing : 0)) * scale;
      }
    }
    Four<T> made;
    for (int j = 0; j < count; j++) narrow(values[j], made.at[j]);
    if (aligned) *(Four<T>*)(grad + start) = made;
    else for (int j = 0; j < count; j++) grad[start + j] = made.at[j];
  }
}

#define KERNEL(name, T)                                                                                                       \
  extern "C" __global__ void name(const T* x, i64 classes, const i64* target, i64 ignored, const i64* counted, float given, \
                                  float smoothing, int aligned, T* grad, float* losses) {                                   \
    cross_entropy(x, classes, target, ignored, counted, given, smoothing, aligned != 0, grad, losses);                      \
  }

KERNEL(fundl_cross_entropy_float32, float)
KERNEL(fundl_cross_entropy_bfloat16, bfloat16)
KERNEL(fundl_cross_entropy_float16, float16)
