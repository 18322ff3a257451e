/* Shared by the two .c files: vector types, sums and the matrix. */
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { INT4 = 0, INT8 = 1, BF16 = 2, FP32 = 4 }; /* kinds of weights, by their bytes */
enum { BLOCK = 256, BLOCK_BYTES = 144 };         /* int4: weights with their scales */
enum { STREAMS = 4 };                            /* places where memory is read at the same time: see matvec.c */

#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)      /* unrolled: sums stay in registers */

typedef float f8 __attribute__((vector_size(32), may_alias));
typedef float f8_anywhere __attribute__((vector_size(32), may_alias, aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), may_alias));
typedef uint32_t u8 __attribute__((vector_size(32), may_alias));
typedef uint16_t h8 __attribute__((vector_size(16), may_alias));

/* a b + c, rounded once where the processor can. Compilers must not decide this (-ffp-contract=off in native.py): they
   would fuse in one copy of a loop and not in another, and the last bits of a row would depend on the rows beside it. */
static inline f8 fused(f8 a, f8 b, f8 c) {
#ifdef __FMA__
    return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined __ARM_FEATURE_FMA
    EACH(j, 8) c[j] = __builtin_fmaf(a[j], b[j], c[j]);          /* compilers make two vectors of it */
    return c;
#else
    return a * b + c;
#endif
}

/* The sum of eight numbers, by halves. One by one, it took a fifth of the time of a product with several vectors. */
static inline float across(f8 eight) {
    typedef float f4 __attribute__((vector_size(16), may_alias));
    f4 four = ((f4 *)&eight)[0] + ((f4 *)&eight)[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

typedef struct {                                 /* y = scale W x + bias */
    long kind;
    const char *W;                               /* a row: `inputs` weights, then zeros up to a multiple of 64 bytes, or
                                                    for int4 to whole blocks */
    const float *scale, *bias;                   /* per output; may be 0 */
    long outputs, inputs;
} Matrix;

/* Called by all threads of an OpenMP team: they share the work, and all continue when it is done. */
void product(const Matrix *m, const float *x, float *y, void *room, long B);
