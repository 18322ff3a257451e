/* A matrix times one vector, or a few: a new token on a CPU, nearly as fast as memory gives the matrix.

   Teaches that such a product is limited by reading. A weight is used once, for two operations, and a core computes
   these faster than memory delivers weights. So the order of the reads matters:
     - Four streams at once. The processor prefetches several streams, but none of them far enough ahead to keep memory
       busy. So four rows are read side by side, a quarter of the matrix apart: each stream continues where its last row
       ended. Two streams are too few; eight slow each other down.
     - Pages of 2 MB (native.py): with 4 KB the processor looks up a page's address 512 times as often.
     - Nothing is unpacked to memory. bf16 is the upper half of an fp32: of two in a word, one is the word shifted up,
       the other the word with its lower half cleared. int8 is multiplied with inputs of 16 bits, so nothing overflows.
       int4 is multiplied with inputs of 8 bits: with 16, arithmetic would take longer than reading. A group of 32 weights
       or inputs has a scale, and 8 groups lie side by side, one in each lane, so that a vector holds their scales.
   With more vectors a weight is used several times, and arithmetic is the limit: FEW vectors at a time are multiplied
   with the four rows, CHUNK by CHUNK, from the cache. The sums of a chunk are always taken in the same order: a
   vector's result does not depend on the vectors beside it or on the number of threads, to the last bit.

   Not here: how this is compiled and called, and how weights are stored (native.py). Little-endian processors only. */
#include <string.h>
#include "native.h"

enum { FEW = 3, LINE = 64, AHEAD = 6 * LINE };
enum { CHUNK = 2560 };                           /* a multiple of LINE and BLOCK; to 4096, int8's sums fit into 32 bits */
enum { MANY = 16 };                              /* from so many vectors on, they do not fit into the cache as a whole */

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX2__
/* sums + 16 products of 16-bit numbers, added by pairs. VNNI does it in one instruction, to the same bits (compiled by
   gcc 12 for such processors, but not run on one yet). */
INLINE i8 pairs(i8 sums, __m256i a, __m256i b) {
#if defined __AVX512VNNI__ && defined __AVX512VL__
    return (i8)_mm256_dpwssd_epi32((__m256i)sums, a, b);
#elif defined __AVXVNNI__
    return (i8)_mm256_dpwssd_avx_epi32((__m256i)sums, a, b);
#else
    return sums + (i8)_mm256_madd_epi16(a, b);
#endif
}
#endif

typedef struct {                                 /* the inputs of a BLOCK of int4 weights */
    int8_t x[8][8][4];                           /* [four, group, input]: a group's 32 inputs, four at a time */
    int16_t start[8][2];                         /* weights are stored as 0 to 15 for -8 to 7: -8 times the sum of inputs */
    float step[8];                               /* the value of 1, per group */
} Inputs4;

/* total += a BLOCK of weights times its inputs, a group per lane. w: a byte has a weight of one four and, 16 times, of the
   next; then a bf16 scale per group. Sums of 16 bits may wrap on their way: the last is 16 * 8 * 127 at most. */
INLINE void meet_int4(const uint8_t *w, const Inputs4 *const vectors[FEW], long i, f8 *total, int few) {
    const Inputs4 *x[FEW];
    i8 sums[FEW];
    EACH(b, few) x[b] = vectors[b] + i / BLOCK;
#ifdef __AVX2__
    u8 scale = (u8)_mm256_cvtepu16_epi32(*(const __m128i *)(w + BLOCK / 2)) << 16;
    __m256i low = _mm256_set1_epi8(15), halves[FEW];
    EACH(b, few) halves[b] = *(const __m256i *)x[b]->start;
#pragma GCC unroll 1                             /* or the compiler runs out of registers */
    for (int k = 0; k < 4; k++) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(w + 32 * k));
        __m256i first = _mm256_and_si256(both, low), second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        EACH(b, few) {
            const __m256i *four = (const __m256i *)x[b]->x + 2 * k;
            halves[b] = _mm256_add_epi16(halves[b], _mm256_maddubs_epi16(first, four[0]));
            halves[b] = _mm256_add_epi16(halves[b], _mm256_maddubs_epi16(second, four[1]));
        }
    }
    EACH(b, few) sums[b] = (i8)_mm256_madd_epi16(halves[b], _mm256_set1_epi16(1));
#else
    u8 scale = __builtin_convertvector(*(const h8 *)(w + BLOCK / 2), u8) << 16;
    for (int b = 0; b < few; b++)
        for (int g = 0; g < 8; g++) {
            sums[b][g] = x[b]->start[g][0] + x[b]->start[g][1];
            for (int i = 0; i < 32; i++)
                sums[b][g] += (w[i / 8 * 32 + g * 4 + i % 4] >> i / 4 % 2 * 4 & 15) * x[b]->x[i / 4][g][i % 4];
        }
#endif
    EACH(b, few) total[b] = fused(__builtin_convertvector(sums[b], f8), (f8)scale * *(const f8 *)x[b]->step, total[b]);
}

/* sums += 16 weights times 16 inputs, by pairs */
INLINE void meet_int8(const int8_t *w, const int16_t *const x[FEW], long i, i8 *sums, int few) {
#ifdef __AVX2__
    __m256i wide = _mm256_cvtepi8_epi16(*(const __m128i *)w);
    EACH(b, few) sums[b] = pairs(sums[b], wide, *(const __m256i *)(x[b] + i));
#else
    for (int b = 0; b < few; b++)
        for (int j = 0; j < 16; j++) sums[b][j / 2] += w[j] * x[b][i + j];
#endif
}

/* sums += 16 weights times 16 inputs, 8 and 8: in bf16 the even ones first */
INLINE void meet_float(int kind, const char *w, const float *const x[FEW], long i, f8 *sums, int few) {
    u8 words = *(const u8 *)w;
    f8 first = kind == BF16 ? (f8)(words << 16) : (f8)words;
    f8 second = kind == BF16 ? (f8)(words & 0xffff0000u) : ((const f8 *)w)[1];
    EACH(b, few) sums[b] = fused(first, *(const f8 *)(x[b] + i), sums[b]);
    EACH(b, few) sums[b] = fused(second, *(const f8 *)(x[b] + i + 8), sums[b]);
}

/* Weights that are read at a time; the bytes of `columns` weights of a row, and of as many inputs. */
INLINE long unit(int kind) { return kind == INT4 ? BLOCK : LINE / kind; }
INLINE long bytes(int kind, long columns) { return kind == INT4 ? columns / BLOCK * BLOCK_BYTES : columns * kind; }
INLINE long input_bytes(int kind, long columns) {
    return kind == INT4 ? columns / BLOCK * (long)sizeof(Inputs4) : columns * (kind == INT8 ? 2 : 4);
}

/* sums[s][b] += the row from row[s] on times the vector from x[b] on, over n columns, whole units. */
INLINE void meet(int kind, const char *const row[STREAMS], const void *const x[FEW], float sums[STREAMS][FEW], int few,
                 long n) {
    f8 floats[STREAMS * FEW] = {0};
    i8 ints[STREAMS * FEW] = {0};
    for (long i = 0; i < n; i += unit(kind)) {
        EACH(s, STREAMS)
            for (long line = 0; line < bytes(kind, unit(kind)); line += LINE)
                __builtin_prefetch(row[s] + bytes(kind, i) + line + AHEAD);
#pragma GCC unroll 1                             /* or the compiler runs out of registers */
        for (long c = i; c < i + unit(kind); c += kind == INT4 ? BLOCK : 16)
            EACH(s, STREAMS) {
                const char *w = row[s] + bytes(kind, c);
                if (kind == INT4) meet_int4((const uint8_t *)w, (const Inputs4 *const *)x, c, floats + s * few, few);
                else if (kind == INT8) meet_int8((const int8_t *)w, (const int16_t *const *)x, c, ints + s * few, few);
                else meet_float(kind, w, (const float *const *)x, c, floats + s * few, few);
            }
    }
    EACH(s, STREAMS) EACH(b, few) {
        int k = s * few + b;
        sums[s][b] += across(kind == INT8 ? __builtin_convertvector(ints[k], f8) : floats[k]);
    }
}

/* The largest of n numbers without their signs, at least 1e-30. */
INLINE float largest_of(const float *x, long n) {
    union { float number; uint32_t bits; } value, largest = {1e-30f};
    for (long i = 0; i < n; i++) {               /* as integers they have the same order, and NaN is last */
        value.number = x[i], value.bits &= 0x7fffffff;
        if (value.bits > largest.bits) largest = value;
    }
    return largest.number;
}

/* Round a vector to 8 bits, the largest number of each 32 to 127, with zeros up to whole blocks. Returns 1. */
static float prepare_int4(const float *x, Inputs4 *block, long inputs, long columns) {
    for (long start = 0; start < columns; start += 32) {
        long g = start % BLOCK / 32, n = inputs - start < 0 ? 0 : inputs - start < 32 ? inputs - start : 32;
        float group[32] = {0}, largest;
        int8_t ints[32];
        Inputs4 *to = block + start / BLOCK;
        for (long i = 0; i < n; i++) group[i] = x[start + i];
        largest = largest_of(group, 32);
        for (int i = 0; i < 32; i++) ints[i] = (int8_t)(group[i] * (127 / largest) + (group[i] < 0 ? -0.5f : 0.5f));
        to->step[g] = largest / 127;
        to->start[g][0] = to->start[g][1] = 0;
        for (int i = 0; i < 32; i += 4) {
            memcpy(to->x[i / 4][g], ints + i, 4);
            for (int k = 0; k < 4; k++) to->start[g][k / 2] -= 8 * ints[i + k];
        }
    }
    return 1;
}

/* Arrange a vector in the order in which meet reads it, with zeros up to whole lines. For int8 it is rounded to 16 bits,
   its largest number to 32767; returns the value of one such step. For int4 see prepare_int4. */
INLINE float prepare(int kind, const float *x, void *prepared, long inputs, long columns) {
    float *floats = prepared;
    int16_t *ints = prepared;
    if (kind == INT4) return prepare_int4(x, prepared, inputs, columns);
    if (kind != INT8) {
        for (long i = 0; i < columns; i++)
            floats[kind == BF16 ? i / 16 * 16 + i % 2 * 8 + i % 16 / 2 : i] = i < inputs ? x[i] : 0;
        return 1;
    }
    float largest = largest_of(x, inputs);
    for (long i = 0; i < inputs; i++)
        ints[i] = (int16_t)(x[i] * (32767 / largest) + (x[i] < 0 ? -0.5f : 0.5f));
    for (long i = inputs; i < columns; i++) ints[i] = 0;
    return largest / 32767;
}

typedef struct {
    const Matrix *m;
    const char *x;                               /* B vectors of `columns` numbers, prepared */
    const float *step;                           /* prepare's result for each */
    float *y;
    long columns, apart;                         /* `apart` rows between two streams */
} Work;

/* The rows r, r + apart ... of W times the vectors b, b + 1 ..., from column `start` to before `end`. */
INLINE void tile(int kind, const Work *t, long r, long b, int few, long start, long end) {
    long rows[STREAMS], O = t->m->outputs;
    float sums[STREAMS][FEW] = {{0}};
    EACH(s, STREAMS) rows[s] = r + s * t->apart < O ? r + s * t->apart : O - 1;   /* after the last row, the last again */
    for (long c = start; c < end; c += CHUNK) {
        const char *w[STREAMS];
        const void *x[FEW];
        EACH(s, STREAMS) w[s] = t->m->W + rows[s] * bytes(kind, t->columns) + bytes(kind, c);
        EACH(v, few) x[v] = t->x + (b + v) * input_bytes(kind, t->columns) + input_bytes(kind, c);
        meet(kind, w, x, sums, few, end - c < CHUNK ? end - c : CHUNK);
    }
    for (int s = 0; s < STREAMS && r + s * t->apart < O; s++)
        for (int v = 0; v < few; v++) {
            float *y = t->y + (b + v) * O + rows[s], scale = t->m->scale ? t->m->scale[rows[s]] : 1;
            *y = (start ? *y : 0) + sums[s][v];
            if (end == t->columns) *y = *y * (t->step[b + v] * scale) + (t->m->bias ? t->m->bias[rows[s]] : 0);
        }
}

INLINE void product_of(int kind, const Matrix *m, const float *x_BI, float *y_BO, char *room, long B) {
    long columns = (m->inputs + unit(kind) - 1) / unit(kind) * unit(kind), each = input_bytes(kind, columns);
    float *step_B = (float *)(room + B * each);
    Work work = {m, room, step_B, y_BO, columns, (m->outputs + STREAMS - 1) / STREAMS};
#pragma omp for
    for (long b = 0; b < B; b++) step_B[b] = prepare(kind, x_BI + b * m->inputs, room + b * each, m->inputs, columns);
    long block = B < MANY ? columns : CHUNK;
    for (long start = 0, end; start < columns; start = end) {
        end = start + block < columns ? start + block : columns;
#pragma omp for
        for (long r = 0; r < work.apart; r++)
            for (long b = 0, few; b < B; b += few) {
                few = B - b < FEW ? B - b : B - b == 4 ? 2 : FEW;
                if (few == 3) tile(kind, &work, r, b, 3, start, end);
                else if (few == 2) tile(kind, &work, r, b, 2, start, end);
                else tile(kind, &work, r, b, 1, start, end);
            }
    }
}

/* y_BO = scale W x_BI + bias. room: see room_for in native.py. */
void product(const Matrix *m, const float *x_BI, float *y_BO, void *room, long B) {
    if (m->kind == INT4) product_of(INT4, m, x_BI, y_BO, room, B);
    else if (m->kind == INT8) product_of(INT8, m, x_BI, y_BO, room, B);
    else if (m->kind == BF16) product_of(BF16, m, x_BI, y_BO, room, B);
    else product_of(FP32, m, x_BI, y_BO, room, B);
}

void matvec(const Matrix *m, const float *x_BI, float *y_BO, void *room, long B, long threads) {
    (void)threads;
#pragma omp parallel num_threads(threads)
    product(m, x_BI, y_BO, room, B);
}

/* The sum of n numbers (a multiple of 128 per thread): the fastest way to read memory that we know of, the measure for
   the products. Without a product, eight streams are faster than four. */
float read_all(const float *x, long n, long threads) {
    float all = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : all)
    for (long t = 0; t < threads; t++) {
        f8 sums[8] = {{0}};
        for (long i = 0; i < n / threads / 8; i += LINE / sizeof(float))
            EACH(s, 8) {
                const f8 *line = (const f8 *)(x + (8 * t + s) * (n / threads / 8) + i);
                __builtin_prefetch((const char *)line + AHEAD);
                sums[s] += line[0] + line[1];
            }
        for (int s = 0; s < 8; s++) all += sums[s][0];           /* so that the compiler computes them */
    }
    return all;
}
