/* One new token on a CPU: a matrix in bf16 times one vector, nearly as fast as memory gives the matrix.

   Teaches that such a product is a matter of reading. A weight is used once, for two operations, so a core computes
   faster than it is fed; but only if nothing stands between the weight and its sum, and if memory is asked early:
     - Rows are read one after the other, each to its end. Two rows side by side were slower.
     - Bytes are asked for AHEAD of their use. The processor guesses ahead by itself, but stops at every page of 4 KB.
     - Nothing is unpacked. bf16 is the upper half of an fp32: of two in a word, the one is the word shifted up, the
       other the word with its lower half cleared.
   Several vectors (samples) use a weight several times. Then arithmetic is the limit: a PANEL of rows meets FEW vectors
   at a time, CHUNK by CHUNK, from the cache. The sums are the same, in the same order: what is computed for a vector
   does not depend on those beside it, to the last bit.

   Not here: how this is compiled and called (matvec.py). For processors with vectors of 32 bytes, little-endian. */
#include <stdint.h>
#include <stdlib.h>

enum { AHEAD = 2048 };                           /* bytes; half of it was slower, and so was more */
enum { FEW = 4, PANEL = 8, CHUNK = 1024 };

#define INLINE static inline __attribute__((always_inline))
#define EACH(b, few) _Pragma("GCC unroll 4") for (int b = 0; b < few; b++)      /* unrolled, sums stay in registers */

typedef float f8 __attribute__((vector_size(32), aligned(4)));
typedef uint32_t u8 __attribute__((vector_size(32), aligned(4)));
typedef struct { f8 even, odd; } Sums;           /* of one row of W with one vector */

/* Of each 16 inputs the 8 even ones before the 8 odd ones, as the weights come; what is left over as it is. */
static void deal(const float *x, float *dealt, long I) {
    long i = 0;
    for (; i + 16 <= I; i += 16)
        for (int j = 0; j < 16; j++) dealt[i + j % 2 * 8 + j / 2] = x[i + j];
    for (; i < I; i++) dealt[i] = x[i];
}

/* Goes on with the sums of one row of W with `few` vectors, over n columns. */
INLINE void dot(const uint16_t *w, const float *x, Sums *sums, int few, long n, long I, long ahead) {
    f8 even[FEW], odd[FEW];
    EACH(b, few) even[b] = sums[b].even, odd[b] = sums[b].odd;
    for (long i = 0; i + 16 <= n; i += 16) {
        if (i % 32 == 0) __builtin_prefetch((const char *)(w + i) + ahead);
        u8 pairs = *(const u8 *)(w + i);
        EACH(b, few) {
            even[b] += (f8)(pairs << 16) * *(const f8 *)(x + b * I + i);
            odd[b] += (f8)(pairs & 0xffff0000u) * *(const f8 *)(x + b * I + i + 8);
        }
    }
    EACH(b, few) sums[b].even = even[b], sums[b].odd = odd[b];
}

INLINE float total(const uint16_t *w, const float *x, Sums sums, long I) {
    f8 eight = sums.even + sums.odd;
    float all = 0;
    for (int j = 0; j < 8; j++) all += eight[j];
    for (long i = I / 16 * 16; i < I; i++) {
        union { uint32_t bits; float value; } weight = {(uint32_t)w[i] << 16};
        all += weight.value * x[i];
    }
    return all;
}

/* `few` vectors meet a panel of rows of W: their y[b * O + r]. */
INLINE void meet(const uint16_t *W, const float *x, float *y, const float *bias, int few, int panel, long chunk,
                 long ahead, long O, long I) {
    Sums sums[PANEL][FEW];
    for (int r = 0; r < panel; r++)
        EACH(b, few) sums[r][b] = (Sums){{0}, {0}};
    for (long c = 0; c < I; c += chunk)
        for (int r = 0; r < panel; r++)
            dot(W + r * I + c, x + c, sums[r], few, I - c < chunk ? I - c : chunk, I, ahead);
    for (int r = 0; r < panel; r++)
        for (int b = 0; b < few; b++) y[b * O + r] = total(W + r * I, x + b * I, sums[r][b], I) + (bias ? bias[r] : 0);
}

/* y_BO[:, first:last] = x_BI W_OI^T + bias_O (or 0): W in bf16, the rest in fp32, all contiguous. Returns -1 where there
   is no memory for a copy of x. */
int matvec(const uint16_t *W, const float *bias, const float *x, float *y, long B, long first, long last, long O,
           long I) {
    float *dealt = aligned_alloc(64, (B * I * sizeof(float) + 63) / 64 * 64);
    if (!dealt) return -1;
    for (long b = 0; b < B; b++) deal(x + b * I, dealt + b * I, I);
    for (long row = first; row < last;) {
        const uint16_t *w = W + row * I;
        const float *a = bias ? bias + row : 0;
        long b = 0, panel = B < FEW || last - row < PANEL ? 1 : PANEL;
        for (; panel == PANEL && b + FEW <= B; b += FEW)
            meet(w, dealt + b * I, y + b * O + row, a, FEW, PANEL, CHUNK, 2 * I, O, I);
        for (; b < B; b++)
            for (long r = 0; r < panel; r++)
                meet(w + r * I, dealt + b * I, y + b * O + row + r, a ? a + r : 0, 1, 1, I, AHEAD, O, I);
        row += panel;
    }
    free(dealt);
    return 0;
}
