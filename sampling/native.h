/* What the three .c files share. */
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { INT8 = 1, BF16 = 2, FP32 = 4 };           /* kinds of weights, by their bytes */
enum { STREAMS = 4 };                            /* places that memory is asked for at once: see matvec.c */

#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)      /* unrolled: sums stay in registers */

typedef float f8 __attribute__((vector_size(32), may_alias));
typedef float f8_anywhere __attribute__((vector_size(32), may_alias, aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), may_alias));
typedef uint32_t u8 __attribute__((vector_size(32), may_alias));

/* a b + c, rounded once where the processor can. Compilers are told not to do so on their own (native.py): they would
   in one copy of a loop and not in another, and a row beside others would differ in its last bits from a row alone. */
static inline f8 fused(f8 a, f8 b, f8 c) {
#ifdef __FMA__
    return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* The sum of eight numbers, by halves: one by one, it took a fifth of the time of several vectors. */
static inline float across(f8 eight) {
    typedef float f4 __attribute__((vector_size(16), may_alias));
    f4 four = ((f4 *)&eight)[0] + ((f4 *)&eight)[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

typedef struct {                                 /* y = scale W x + bias */
    long kind;
    const char *W;                               /* a row: `inputs` weights, and zeros to a multiple of 64 bytes */
    const float *scale, *bias;                   /* of each output; may be 0 */
    long outputs, inputs;
} Matrix;

/* For a team of OpenMP threads: they share the work, and all go on when all of it is done. */
void product(const Matrix *m, const float *x, float *y, void *room, long B);
void attend(const float *q, const float *k, const float *v, float *keys, float *values, float *scores, float *y,
            long width, long length, long positions, float scale);
