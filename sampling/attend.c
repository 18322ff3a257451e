/* Attention of one new token on a CPU: its query meets the cache.

   Teaches what remains of attention for a single query: two products of a vector and a matrix, both of them weighted
   sums of rows, with a softmax between them. The cache is read once, in four streams like the weights (matvec.c).

   Not here: many queries at once (a prompt), which torch computes; the rest of the layer (cpu_step.c). */
#include <math.h>
#include <string.h>
#include "native.h"

/* y += the sum of weights[r] * row r, n numbers each, for `few` rows: r = 0, apart, 2 apart ... Row r is r * stride on. */
static inline void add(float *y, const float *weights, const float *rows, int few, long apart, long stride, long n) {
    float w[STREAMS];
    long i = 0;
    EACH(r, few) w[r] = weights[r * apart];
    for (; i + 16 <= n; i += 16) {
        f8_anywhere *two = (f8_anywhere *)(y + i);
        f8 first = two[0], second = two[1];
        EACH(r, few) {
            const float *here = rows + r * apart * stride + i;
            const f8_anywhere *row = (const f8_anywhere *)here;
            f8 weight = {w[r], w[r], w[r], w[r], w[r], w[r], w[r], w[r]};
            __builtin_prefetch(here + stride);
            first = fused(weight, row[0], first), second = fused(weight, row[1], second);
        }
        two[0] = first, two[1] = second;
    }
    for (; i < n; i++)
        for (int r = 0; r < few; r++) y[i] += w[r] * rows[r * apart * stride + i];
}

/* y = the sum of weights[j] * rows[j], n numbers each; consecutive rows are `stride` apart. */
static void blend(float *y, const float *weights, const float *rows, long stride, long count, long n) {
    long apart = count / STREAMS;
    memset(y, 0, n * sizeof(float));
    for (long j = 0; j < apart; j++) add(y, weights + j, rows + j * stride, STREAMS, apart, stride, n);
    for (long j = STREAMS * apart; j < count; j++) add(y, weights + j, rows + j * stride, 1, apart, stride, n);
}

static void softmax(float *z, float scale, long n) {
    float most = z[0], total = 0;
    for (long s = 1; s < n; s++) most = z[s] > most ? z[s] : most;
    for (long s = 0; s < n; s++) total += z[s] = expf(scale * (z[s] - most));
    for (long s = 0; s < n; s++) z[s] /= total;
}

/* One head: append the new token's k and v (`width` numbers) to the `length` cached ones, then y = softmax(scale q k) v.
   Keys are [width, positions], values [positions, width]; `scores` has room for length + 1 numbers. */
void attend(const float *q, const float *k, const float *v, float *keys, float *values, float *scores, float *y,
            long width, long length, long positions, float scale) {
    for (long i = 0; i < width; i++) keys[i * positions + length] = k[i];
    memcpy(values + length * width, v, width * sizeof(float));
    blend(scores, q, keys, positions, width, length + 1);
    softmax(scores, scale, length + 1);
    blend(y, scores, values, width, length + 1, width);
}
