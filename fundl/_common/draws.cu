// -fmad=false
// Random numbers on a GPU, as fundl.random defines them: see philox.py and normal_numbers.py, whose bits these are.
//
// gpu_kernels.py compiles this file, without any header; by the option in the first line, products and sums are rounded each by
// itself, as on any processor. A thread makes four numbers that follow each other, of one block of words or of two.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct Words { u32 word[4]; };

// The words of a block. Words 1 and 3 of its counter are the purpose.
__device__ inline Words words_of(u32 k, u32 l, u32 purpose, u64 position) {
  u32 a = (u32)position, b = purpose, c = (u32)(position >> 32), d = purpose;
  for (int round = 0; round < 10; round++) {
    const u64 x = (u64)a * 0xD2511F53u, y = (u64)c * 0xCD9E8D57u;
    a = (u32)(y >> 32) ^ b ^ k;
    c = (u32)(x >> 32) ^ d ^ l;
    b = (u32)y;
    d = (u32)x;
    k += 0x9E3779B9u;
    l += 0xBB67AE85u;
  }
  return Words{{a, b, c, d}};
}

// What all kernels are given: keys of `size` numbers, and how many numbers each draws, in so many lines.
#define OF_ALL const i64 *keys, int size, i64 count, i64 lines, i64 total
#define GIVEN keys, size, count, lines

// Where number i of a key's is in the whole draw: of a key of five numbers, in a part of the rows; of seven, in a piece of each
// of their lines too (see _of_part in draws.py).
__device__ inline i64 place_of(const i64* key, int size, i64 count, i64 lines, i64 i) {
  if (size == 2) return i;
  const i64 place = key[2], part = key[3], rows = key[4] > 1 ? key[4] : 1;
  const i64 piece = size > 5 ? key[5] : 0, pieces = size > 5 ? key[6] : 1;
  const i64 numbers = count / lines, each = lines / rows > 1 ? lines / rows : 1;
  const i64 line = i / numbers, whole = (line / each * part + place) * each + line % each;
  return (whole * pieces + piece) * numbers + i % numbers;
}

// The words of one number after the other: those of a block that was just made are not made again.
struct Source {
  const i64* key;
  i64 block;
  Words words;

  // The number's place in its block, which then is in `words`.
  __device__ int find(OF_ALL, int per_block, i64 index) {
    const i64* const own = keys + index / count * size;
    const i64 place = place_of(own, size, count, lines, index % count);
    if (key != own || block != place / per_block) {
      key = own;
      block = place / per_block;
      words = words_of((u32)key[0], (u32)key[1], 0, (u64)block);
    }
    return (int)(place % per_block);
  }
};

#define FIRST (4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x))
#define FOR_EACH_NUMBER(per_block)                                                            \
  Source from = {nullptr, 0, {}};                                                             \
  for (i64 i = FIRST, end = i + 4 < total ? i + 4 : total; i < end; i++)                      \
    if (const int at = from.find(GIVEN, total, per_block, i); true)
#define KERNEL extern "C" __global__ void

// --- Integers ---------------------------------------------------------------------------------------------------------

__device__ inline u64 wide(const Words& words, int at) { return (u64)words.word[2 * at] << 32 | words.word[2 * at + 1]; }

KERNEL fundl_short_integers(OF_ALL, i64* out, int bits) {
  FOR_EACH_NUMBER(4) out[i] = (i64)((u64)from.words.word[at] >> (32 - bits));
}

KERNEL fundl_long_integers(OF_ALL, i64* out, int bits) { FOR_EACH_NUMBER(2) out[i] = (i64)(wide(from.words, at) >> (64 - bits)); }

KERNEL fundl_booleans(OF_ALL, bool* out, u64 threshold) { FOR_EACH_NUMBER(4) out[i] = from.words.word[at] < threshold; }

// Words 0 and 1 of each block from a position on: two numbers for a key.
KERNEL fundl_keys(OF_ALL, i64* out, u32 purpose, i64 position) {
  for (i64 i = FIRST; i < FIRST + 4 && i < total; i += 2) {
    const i64* const key = keys + i / count * size;
    const Words made = words_of((u32)key[0], (u32)key[1], purpose, (u64)(position + i % count / 2));
    out[i] = made.word[0];
    out[i + 1] = made.word[1];
  }
}

// Keys of keys: of each of the first blocks, as many keys as one draws.
KERNEL fundl_nested_keys(OF_ALL, i64* out, u32 purpose, i64 each) {
  for (i64 i = FIRST; i < FIRST + 4 && i < total; i += 2) {
    const Words outer = words_of((u32)keys[0], (u32)keys[1], purpose, (u64)(i / 2 / each));
    const Words made = words_of(outer.word[0], outer.word[1], purpose, (u64)(i / 2 % each));
    out[i] = made.word[0];
    out[i + 1] = made.word[1];
  }
}

// --- Floating point -----------------------------------------------------------------------------------------------------

// The first 53 of 64 bits, of two words, plus something.
__device__ inline double whole_of_words(u32 first, u32 second, u32 more) {
  return (double)first * 0x1p21 + (double)((second >> 11) + more);
}

__device__ inline double at_most(double number, double greatest) { return number < greatest ? number : greatest; }

KERNEL fundl_unit_float32(OF_ALL, float* out, int bits) {
  const float unit = 1.0f / (float)(1 << bits);
  FOR_EACH_NUMBER(4) out[i] = (float)(int)(from.words.word[at] >> (32 - bits)) * unit;
}

KERNEL fundl_uniform_float32(OF_ALL, float* out, int bits, double span, double low, double greatest) {
  FOR_EACH_NUMBER(4) out[i] = (float)at_most((double)(int)(from.words.word[at] >> (32 - bits)) * span + low, greatest);
}

KERNEL fundl_uniform_float64(OF_ALL, double* out, double span, double low, double greatest) {
  FOR_EACH_NUMBER(2) {
    const u32* const word = from.words.word + 2 * at;
    out[i] = at_most(whole_of_words(word[0], word[1], 0) * span + low, greatest);
  }
}

// --- Normal numbers -----------------------------------------------------------------------------------------------------

#define COUNT(coefficients) (int)(sizeof coefficients / sizeof *coefficients)

__device__ inline double polynomial(const double* coefficients, int count, double x) {
  double value = coefficients[0];
  for (int i = 1; i < count; i++) value = value * x + coefficients[i];
  return value;
}

__device__ inline double logarithm(double x, double scale) {
  const double terms[] = {2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9, 2.0 / 7, 2.0 / 5, 2.0 / 3};
  const u64 bits = (u64)__double_as_longlong(x);
  const double half = __longlong_as_double((i64)((bits & 0xFFFFFFFFFFFFFull) | 0x3FE0000000000000ull));
  const double power = (double)(bits >> 52) - 1022.0;
  const bool is_low = half < 0.70710678118654752;
  const double fraction = is_low ? half + half : half, exponent = (is_low ? power - 1.0 : power) - scale;
  const double s = (fraction - 1.0) / (fraction + 1.0), square = s * s;
  return exponent * 0.69314718055994531 + (s * 2.0 + s * square * polynomial(terms, COUNT(terms), square));
}

__device__ inline double sine(double t, double square) {
  const double terms[] = {-1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120,
                          -1.0 / 6};
  return t + t * square * polynomial(terms, COUNT(terms), square);
}

__device__ inline double cosine(double square) {
  const double terms[] = {1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720,
                          1.0 / 24, -1.0 / 2};
  return polynomial(terms, COUNT(terms), square) * square + 1.0;
}

// One of the two normal numbers of a block.
__device__ inline double normal(const Words& words, int at) {
  const u32* const word = words.word;
  const double radius = __dsqrt_rn(logarithm(whole_of_words(word[0], word[1], 1), 53.0) * -2.0);
  const u32 quarter = (word[2] + 0x20000000u) >> 30, rest = word[2] - (quarter << 30) + 0x80000000u;
  const double t = (((double)rest - 0x1p31) * 0x1p21 + (double)(word[3] >> 11)) * (6.283185307179586477 * 0x1p-53);
  const double square = t * t, found = (at ^ (int)(quarter & 1)) ? sine(t, square) : cosine(square);
  return radius * (((quarter + (at ? 0 : 1)) & 2) ? -found : found);
}

KERNEL fundl_normal_float32(OF_ALL, float* out, double std, double mean) {
  FOR_EACH_NUMBER(2) out[i] = (float)(normal(from.words, at) * std + mean);
}

KERNEL fundl_normal_float64(OF_ALL, double* out, double std, double mean) {
  FOR_EACH_NUMBER(2) out[i] = normal(from.words, at) * std + mean;
}

// --- Exponential numbers, and Gumbel's ------------------------------------------------------------------------------------

__device__ inline double exponential(const Words& words, int at) {
  const u32* const word = words.word + 2 * at;
  return -logarithm((double)word[0] * 0x1p21 + (double)((word[1] >> 11) | 1), 53.0);
}

__device__ inline double gumbel(const Words& words, int at) { return -logarithm(exponential(words, at) * 0x1p53, 53.0); }

KERNEL fundl_exponential_float32(OF_ALL, float* out, double scale, double location) {
  FOR_EACH_NUMBER(2) out[i] = (float)(exponential(from.words, at) * scale + location);
}

KERNEL fundl_exponential_float64(OF_ALL, double* out, double scale, double location) {
  FOR_EACH_NUMBER(2) out[i] = exponential(from.words, at) * scale + location;
}

KERNEL fundl_gumbel_float32(OF_ALL, float* out, double scale, double location) {
  FOR_EACH_NUMBER(2) out[i] = (float)(gumbel(from.words, at) * scale + location);
}

KERNEL fundl_gumbel_float64(OF_ALL, double* out, double scale, double location) {
  FOR_EACH_NUMBER(2) out[i] = gumbel(from.words, at) * scale + location;
}
