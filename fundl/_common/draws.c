/* Random numbers from a key, as fundl.random defines them: Philox4x32-10, and what is made of its words.

   draws.py compiles this file, without a contraction of products and sums: each operation is rounded as IEEE 754 says, and so
   the numbers are to the bit those of the tensor operations in philox.py and normal_numbers.py. */

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX2__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif

/* Words are made in batches that stay in the innermost cache, one block in each lane of a vector. */
enum { LANES = BYTES / 8, BLOCKS = 64, WORDS = 4 * BLOCKS };
typedef uint64_t lanes_t __attribute__((vector_size(BYTES)));
typedef struct { uint32_t word[WORDS]; } batch_t;

/* The product of the low 32 bits of each lane with a factor. */
static inline lanes_t product(lanes_t x, uint32_t factor) {
  const lanes_t y = (lanes_t){0} + factor;
#if defined(__AVX512F__)
  return (lanes_t)_mm512_mul_epu32((__m512i)x, (__m512i)y);
#elif defined(__AVX2__)
  return (lanes_t)_mm256_mul_epu32((__m256i)x, (__m256i)y);
#elif defined(__SSE2__)
  return (lanes_t)_mm_mul_epu32((__m128i)x, (__m128i)y);
#elif defined(__ARM_NEON)
  return (lanes_t)vmull_u32(vmovn_u64((uint64x2_t)x), vdup_n_u32(factor));
#else
  return (x & 0xFFFFFFFF) * y;
#endif
}

/* The words of so many blocks from a position on, up to BLOCKS. Words 1 and 3 of a counter are the purpose. Above its 32 bits,
   a lane holds what no product sees. */
static void fill(batch_t* batch, const int64_t* key, uint32_t purpose, uint64_t position, uint64_t blocks) {
  const lanes_t zero = {0};
  lanes_t counter;
  for (int i = 0; i < LANES; i++) counter[i] = position + i;
  for (uint64_t block = 0; block < blocks; block += LANES) {
    lanes_t a = counter, b = zero + purpose, c = counter >> 32, d = b;
    uint32_t k = (uint32_t)key[0], l = (uint32_t)key[1];
    for (int round = 0; round < 10; round++) {
      const lanes_t x = product(a, 0xD2511F53u), y = product(c, 0xCD9E8D57u);
      a = (y >> 32) ^ b ^ (zero + k);
      c = (x >> 32) ^ d ^ (zero + l);
      b = y;
      d = x;
      k += 0x9E3779B9u;
      l += 0xBB67AE85u;
    }
    uint64_t pairs[2 * LANES];
    a = (a & 0xFFFFFFFF) | (b << 32);
    c = (c & 0xFFFFFFFF) | (d << 32);
    for (int i = 0; i < LANES; i++) {
      pairs[2 * i] = a[i];
      pairs[2 * i + 1] = c[i];
    }
    memcpy(batch->word + 4 * block, pairs, sizeof pairs);
    counter += LANES;
  }
}

/* Goes through `count` numbers of `words` words each, from a block on, and does so for each key, whose numbers follow those of
   the key before it in `out`: `start` is the first number of a batch, and `size` how many it has. */
#define FOR_EACH_BATCH(purpose, position, words)                                                                    \
  batch_t batch;                                                                                                    \
  for (const int64_t* const end = key + 2 * keys; key < end; key += 2, out += count)                                \
    for (uint64_t start = 0, size; start < count; start += WORDS / (words))                                         \
      if (size = count - start < WORDS / (words) ? count - start : WORDS / (words),                                 \
          fill(&batch, key, purpose, (uint64_t)(position) + start * (words) / 4, (size * (words) + 3) / 4), 1)

/* The 64 bits of number i of a batch. */
static inline uint64_t wide(const batch_t* batch, uint64_t i) {
  return (uint64_t)batch->word[2 * i] << 32 | batch->word[2 * i + 1];
}

/* --- Integers --------------------------------------------------------------------------------------------------------- */

/* Words 0 and 1 of each block: two numbers for a key. */
void fundl_keys(const int64_t* key, uint64_t keys, uint64_t count, int64_t* out, uint32_t purpose, int64_t position) {
  FOR_EACH_BATCH(purpose, position, 2) {
    for (uint64_t i = 0; i < size; i++) out[start + i] = batch.word[4 * (i / 2) + i % 2];
  }
}

/* Keys of keys: of each of those at some places, `size` keys. */
void fundl_nested_keys(
    const int64_t* key, uint64_t keys, uint64_t count, int64_t* out, uint32_t purpose, const int64_t* places, uint64_t size) {
  for (const int64_t* const end = key + 2 * keys; key < end; key += 2) {
    for (uint64_t i = 0; i < count / (2 * size); i++, out += 2 * size) {
      int64_t own[2];
      fundl_keys(key, 1, 2, own, purpose, places[i]);
      fundl_keys(own, 1, 2 * size, out, purpose, 0);
    }
  }
}

/* The most significant bits of each word. */
void fundl_short_integers(const int64_t* key, uint64_t keys, uint64_t count, int64_t* out, int32_t bits) {
  FOR_EACH_BATCH(0, 0, 1) {
    for (uint64_t i = 0; i < size; i++) out[start + i] = batch.word[i] >> (32 - bits);
  }
}

/* Those of each two words. */
void fundl_long_integers(const int64_t* key, uint64_t keys, uint64_t count, int64_t* out, int32_t bits) {
  FOR_EACH_BATCH(0, 0, 2) {
    for (uint64_t i = 0; i < size; i++) out[start + i] = (int64_t)(wide(&batch, i) >> (64 - bits));
  }
}

/* Whether a word is less than a threshold, from 0 to 2^32. */
static inline uint8_t is_less(uint32_t word, uint64_t threshold) {
  return (word <= (uint32_t)(threshold - 1)) & (threshold > 0);
}

void fundl_booleans(const int64_t* key, uint64_t keys, uint64_t count, uint8_t* out, uint64_t threshold) {
  FOR_EACH_BATCH(0, 0, 1) {
    for (uint64_t i = 0; i < size; i++) out[start + i] = is_less(batch.word[i], threshold);
  }
}

/* The same of the rows place, place + size, ... of a whole draw, for a key of five numbers: two words, place, size, and how many
   rows there are, which are as many lines, of `numbers` each. With two numbers more, piece and pieces, a line has so many pieces
   of `numbers` each, of which that one is drawn. */
void fundl_booleans_of_part(
    const int64_t* key, uint64_t words, uint64_t lines, uint64_t numbers, uint8_t* out, uint64_t threshold) {
  const uint64_t place = (uint64_t)key[2], size = (uint64_t)key[3], rows = key[4] > 0 ? (uint64_t)key[4] : 1;
  const uint64_t piece = words > 5 ? (uint64_t)key[5] : 0, pieces = words > 5 ? (uint64_t)key[6] : 1;
  const uint64_t each = lines > rows ? lines / rows : 1; /* lines of a row */
  const uint64_t together = pieces > 1 ? 1 : each;       /* lines that lie one behind the other */
  batch_t batch;
  for (uint64_t line = 0; line < lines; line += together) {
    const uint64_t count = (lines - line < together ? lines - line : together) * numbers;
    const uint64_t first = (((line / each * size + place) * each + line % each) * pieces + piece) * numbers;
    const uint64_t last = first + count;
    for (uint64_t block = first / 4; 4 * block < last; block += BLOCKS) {
      const uint64_t blocks = (last + 3) / 4 - block < BLOCKS ? (last + 3) / 4 - block : BLOCKS;
      fill(&batch, key, 0, block, blocks);
      const uint64_t start = 4 * block < first ? first - 4 * block : 0;
      const uint64_t stop = last - 4 * block < 4 * blocks ? last - 4 * block : 4 * blocks;
      for (uint64_t i = start; i < stop; i++) *out++ = is_less(batch.word[i], threshold);
    }
  }
}

/* --- Floating point --------------------------------------------------------------------------------------------------- */

static inline double double_of(uint64_t bits) {
  double number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

static inline uint64_t bits_of(double number) {
  uint64_t bits;
  memcpy(&bits, &number, sizeof bits);
  return bits;
}

/* An integer below 2^52. Vectors of 64 bits have no instruction for it before AVX-512. */
static inline double whole(uint64_t integer) { return double_of(integer | bits_of(0x1p52)) - 0x1p52; }

/* The first 53 of 64 bits, of two words, plus something. */
static inline double whole_of_words(uint32_t first, uint32_t second, uint32_t more) {
  return whole(first) * 0x1p21 + whole((second >> 11) + more);
}

/* Multiples of 2^-bits from 0 up to 1, exact in float32. */
void fundl_unit_float32(const int64_t* key, uint64_t keys, uint64_t count, float* out, int32_t bits) {
  const float unit = 1.0f / (float)(1 << bits);
  FOR_EACH_BATCH(0, 0, 1) {
    for (uint64_t i = 0; i < size; i++) out[start + i] = (float)(int32_t)(batch.word[i] >> (32 - bits)) * unit;
  }
}

/* low + k span, where k has so many random bits, but no more than the greatest. */
void fundl_uniform_float32(
    const int64_t* key, uint64_t keys, uint64_t count, float* out, int32_t bits, double span, double low, double greatest) {
  FOR_EACH_BATCH(0, 0, 1) {
    for (uint64_t i = 0; i < size; i++) {
      const double number = (double)(int32_t)(batch.word[i] >> (32 - bits)) * span + low;
      out[start + i] = (float)(number < greatest ? number : greatest);
    }
  }
}

void fundl_uniform_float64(
    const int64_t* key, uint64_t keys, uint64_t count, double* out, double span, double low, double greatest) {
  FOR_EACH_BATCH(0, 0, 2) {
    for (uint64_t i = 0; i < size; i++) {
      const double number = whole_of_words(batch.word[2 * i], batch.word[2 * i + 1], 0) * span + low;
      out[start + i] = number < greatest ? number : greatest;
    }
  }
}

/* --- Normal numbers ---------------------------------------------------------------------------------------------------

   See normal_numbers.py, which says what is computed, operation for operation. */

#define COUNT(coefficients) (int)(sizeof coefficients / sizeof *coefficients)

/* By Horner's rule, from the coefficient of the highest power on. */
static inline double polynomial(const double* coefficients, int count, double x) {
  double value = coefficients[0];
  for (int i = 1; i < count; i++) value = value * x + coefficients[i];
  return value;
}

static inline double logarithm(double x, double scale) {
  const double terms[] = {2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9, 2.0 / 7, 2.0 / 5, 2.0 / 3};
  const uint64_t bits = bits_of(x);
  const double half = double_of((bits & 0xFFFFFFFFFFFFFull) | bits_of(0.5)), power = whole(bits >> 52) - 1022.0;
  const int is_low = half < 0.70710678118654752;
  const double fraction = is_low ? half + half : half, exponent = (is_low ? power - 1.0 : power) - scale;
  const double s = (fraction - 1.0) / (fraction + 1.0), square = s * s;
  return exponent * 0.69314718055994531 + (s * 2.0 + s * square * polynomial(terms, COUNT(terms), square));
}

static inline double sine(double t, double square) {
  const double terms[] = {-1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120,
                          -1.0 / 6};
  return t + t * square * polynomial(terms, COUNT(terms), square);
}

static inline double cosine(double square) {
  const double terms[] = {1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720,
                          1.0 / 24, -1.0 / 2};
  return polynomial(terms, COUNT(terms), square) * square + 1.0;
}

typedef struct { double x, y; } point_t;

/* Two normal numbers, of the four words of a block. */
static inline point_t point(const uint32_t* word) {
  const double radius = __builtin_sqrt(logarithm(whole_of_words(word[0], word[1], 1), 53.0) * -2.0);
  const uint32_t quarter = (word[2] + 0x20000000u) >> 30, rest = word[2] - (quarter << 30) + 0x80000000u;
  const double t = ((whole(rest) - 0x1p31) * 0x1p21 + whole(word[3] >> 11)) * (6.283185307179586477 * 0x1p-53), q = t * t;
  const double s = sine(t, q), c = cosine(q);
  const double x = quarter & 1 ? s : c, y = quarter & 1 ? c : s;
  return (point_t){radius * ((quarter + 1) & 2 ? -x : x), radius * (quarter & 2 ? -y : y)};
}

#define NORMAL(name, type)                                                                                        \
  void name(const int64_t* key, uint64_t keys, uint64_t count, type* out, double std, double mean) {          \
    FOR_EACH_BATCH(0, 0, 2) {                                                                                        \
      type row[WORDS / 2];                                                                                        \
      for (uint64_t i = 0; i < size; i += 2) {                                                                    \
        const point_t found = point(batch.word + 2 * i);                                                          \
        row[i] = (type)(found.x * std + mean);                                                                    \
        row[i + 1] = (type)(found.y * std + mean);                                                                \
      }                                                                                                           \
      memcpy(out + start, row, size * sizeof(type));                                                              \
    }                                                                                                             \
  }

NORMAL(fundl_normal_float32, float)
NORMAL(fundl_normal_float64, double)

/* --- Exponential numbers, and Gumbel's --------------------------------------------------------------------------------

   See waiting_times.py. */

static inline double exponential(const uint32_t* word) {
  return -logarithm(whole(word[0]) * 0x1p21 + whole((word[1] >> 11) | 1), 53.0);
}

static inline double gumbel(const uint32_t* word) { return -logarithm(exponential(word) * 0x1p53, 53.0); }

#define WAITING(distribution, name, type)                                                                         \
  void fundl_##distribution##_##name(                                                                             \
      const int64_t* key, uint64_t keys, uint64_t count, type* out, double scale, double location) {              \
    FOR_EACH_BATCH(0, 0, 2) {                                                                                     \
      for (uint64_t i = 0; i < size; i++) out[start + i] = (type)(distribution(batch.word + 2 * i) * scale + location); \
    }                                                                                                             \
  }

WAITING(exponential, float32, float)
WAITING(exponential, float64, double)
WAITING(gumbel, float32, float)
WAITING(gumbel, float64, double)

/* --- Gamma numbers ------------------------------------------------------------------------------------------------------

   See gamma_numbers.py. */

enum { ROUNDS = 12 };

/* 3 d (log(1 + w) - w + w^2 / 2 - w^3 / 3). */
static inline double surplus(double d, double w, double t) {
  const double terms[] = {1.0 / 19, -1.0 / 18, 1.0 / 17, -1.0 / 16, 1.0 / 15, -1.0 / 14, 1.0 / 13, -1.0 / 12, 1.0 / 11, -1.0 / 10,
                          1.0 / 9,  -1.0 / 8,  1.0 / 7,  -1.0 / 6,  1.0 / 5,  -1.0 / 4};
  const double square = w * w, near = square * square * polynomial(terms, COUNT(terms), w);
  const double far = logarithm((t > 0.0 ? t : 1.0) * 0x1p53, 53.0) - w + square * 0.5 - square * w * (1.0 / 3.0);
  return d * 3.0 * (w > -0.125 && w < 0.125 ? near : far);
}

static inline double third(double normal, double waiting, double d, double c) {
  const double w = normal * c, t = w + 1.0;
  return t > 0.0 && waiting + surplus(d, w, t) > 0.0 ? t : 0.0;
}

/* That of a place in the first round after the first that gives one; 1 if none does. */
static double later(const int64_t (*round_keys)[2], uint64_t place, double d, double c) {
  batch_t normals, waiting;
  for (int round = 1; round < ROUNDS; round++) {
    fill(&normals, round_keys[2 * round], 0, place / 2, 1);
    fill(&waiting, round_keys[2 * round + 1], 0, place / 2, 1);
    const point_t found = point(normals.word);
    const double t = third(place % 2 ? found.y : found.x, exponential(waiting.word + 2 * (place % 2)), d, c);
    if (t > 0.0) return t;
  }
  return 1.0;
}

/* Of concentrations from 1 on: one for all numbers, or as many as numbers if `step` is 1. */
void fundl_gamma_float64(
    const int64_t* key, uint64_t keys, uint64_t count, double* out, const double* concentration, uint64_t step) {
  for (const int64_t* const end = key + 2 * keys; key < end; key += 2, out += count) {
    int64_t own[1 + 2 * ROUNDS][2];
    fundl_keys(key, 1, 2 * (1 + 2 * ROUNDS), own[0], 2, 0);
    batch_t normals, waiting;
    for (uint64_t start = 0, size; start < count; start += size) {
      size = count - start < WORDS / 2 ? count - start : WORDS / 2;
      fill(&normals, own[1], 0, start / 2, (size + 1) / 2);
      fill(&waiting, own[2], 0, start / 2, (size + 1) / 2);
      double normal[WORDS / 2], t[WORDS / 2];
      for (uint64_t i = 0; i < size; i += 2) {
        const point_t found = point(normals.word + 2 * i);
        normal[i] = found.x;
        normal[i + 1] = found.y;
      }
      for (uint64_t i = 0; i < size; i++) {
        const double d = concentration[(start + i) * step] - 1.0 / 3.0, c = 1.0 / (__builtin_sqrt(d) * 3.0);
        t[i] = third(normal[i], exponential(waiting.word + 2 * i), d, c);
      }
      for (uint64_t i = 0; i < size; i++) {
        const double d = concentration[(start + i) * step] - 1.0 / 3.0;
        const double found = t[i] > 0.0 ? t[i] : later(own + 1, start + i, d, 1.0 / (__builtin_sqrt(d) * 3.0));
        out[start + i] = d * found * found * found;
      }
    }
  }
}

/* --- Dropout ----------------------------------------------------------------------------------------------------------

   See dropping.py. Both products are taken, so that what is not a number stays none where it is dropped. */

#define DROPOUT(name, type)                                                                                       \
  void fundl_masked_##name(                                                                                       \
      const type* restrict x, uint64_t count, type* restrict y, const uint8_t* restrict mask, double scale) {     \
    for (uint64_t i = 0; i < count; i++) y[i] = x[i] * (type)mask[i] * (type)scale;                               \
  }                                                                                                               \
                                                                                                                  \
  /* The mask, and x masked, whose elements are as many for each key. */                                          \
  void fundl_dropped_##name(                                                                                      \
      const int64_t* key, uint64_t keys, uint64_t count, uint8_t* out, uint64_t threshold, const type* x, type* y, \
      double scale) {                                                                                             \
    const uint8_t* const mask = out;                                                                              \
    FOR_EACH_BATCH(0, 0, 1) {                                                                                     \
      const uint64_t place = (uint64_t)(out - mask) + start;                                                      \
      for (uint64_t i = 0; i < size; i++) out[start + i] = is_less(batch.word[i], threshold);                     \
      fundl_masked_##name(x + place, size, y + place, mask + place, scale);                                       \
    }                                                                                                             \
  }

DROPOUT(float32, float)
DROPOUT(float64, double)
