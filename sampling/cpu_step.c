/* One new token through GPT-2 on a CPU, as one call.

   Teaches that small operations also cost time. LayerNorm, GELU, sums and the bookkeeping of attention are a few
   thousandths of a token's operations. As some thirty operators per layer they take a tenth of its time: the code and
   data of each must be read from memory again, because the weights of the layer have replaced them in the processor's
   caches. Here they are a few kilobytes of code. It is model.py's Block again, tested against it, for GPT-2 only and
   without gradients.

   Attention of a single query is two weighted sums of rows, with a softmax between them. Each reads the cache once, in
   four streams like the weights (matvec.c).

   Not here: the products (matvec.c); many queries at once (a prompt), the embedding and the choice of a token (Python). */
#include <math.h>
#include <string.h>
#include "native.h"

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Norm ln_1, ln_2;
    Matrix c_attn, attn_c_proj, c_fc, mlp_c_proj;
    float *keys, *values;                        /* of B * n_head heads: [width, positions] and [positions, width] */
    float scale;                                 /* of the attention scores */
} Layer;

typedef struct {
    const Layer *layers;
    Norm ln_f;
    Matrix head;
    long n_layer, n_embd, n_head, mlp_width, B, positions;
    float eps;
    float *x, *normed;                           /* B * n_embd numbers */
    float *wide;                                 /* B * (the outputs of the widest layer) + 7 */
    float *scores;                               /* B * n_head * positions */
    void *room;                                  /* working memory of product */
} Step;

/* The sum of x - mean, or of its square. */
static float sum(const float *x, long n, float mean, int square) {
    f8 eight = {0};
    float all = 0;
    long i = 0;
    for (; i + 8 <= n; i += 8) {
        f8 off = *(const f8_anywhere *)(x + i) - mean;
        if (square) off *= off;
        eight += off;
    }
    for (; i < n; i++) all += square ? (x[i] - mean) * (x[i] - mean) : x[i] - mean;
    return all + across(eight);
}

/* Add the last sub-layer's output (or nothing, if it is 0) to the residual stream x; y = LayerNorm(x). */
static void add_and_norm(const Step *t, const float *added, const Norm *norm, float *y) {
    long D = t->n_embd;
#pragma omp for
    for (long b = 0; b < t->B; b++) {
        float *x = t->x + b * D;
        for (long i = 0; added && i < D; i++) x[i] += added[b * D + i];
        float mean = sum(x, D, 0, 0) / D, over_std = 1 / sqrtf(sum(x, D, mean, 1) / D + t->eps);
        for (long i = 0; i < D; i++) y[b * D + i] = (x[i] - mean) * over_std * norm->weight[i] + norm->bias[i];
    }
}

/* e^x = 2^n 2^f with n an integer and f between -1/2 and 1/2; 2^f by its Taylor series. */
static f8 exponential(f8 x) {
    f8 bits = x * 1.44269504f;
    EACH(j, 8) bits[j] = bits[j] > 126 ? 126 : bits[j] < -126 ? -126 : bits[j];
    f8 whole = bits + 12582912.0f - 12582912.0f, f = (bits - whole) * 0.693147181f;      /* 3/2 2^23: rounds */
    f8 power = 1 + f * (1 + f * (1 / 2.0f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f + f * (1 / 720.0f))))));
    return power * (f8)((__builtin_convertvector(whole, i8) + 127) << 23);
}

/* GELU in its tanh form, x (1 + tanh u) / 2 = x / (1 + e^-2u). */
static void gelu(const Step *t) {
#pragma omp for
    for (long i = 0; i < t->B * t->mlp_width; i += 8) {          /* in eights, the last of which may end in the 7 extra numbers */
        f8_anywhere *y = (f8_anywhere *)(t->wide + i);
        f8 x = *y;
        *y = x / (1 + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));          /* 2 sqrt(2 / pi) */
    }
}

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

/* Each head appends the new token's k and v to the `length` cached ones; then y = softmax(scale q k) v. */
static void attention(const Step *t, const Layer *layer, long length) {
    long D = t->n_embd, H = t->n_head, width = D / H, S = t->positions;
#pragma omp for
    for (long h = 0; h < t->B * H; h++) {
        const float *q = t->wide + h / H * 3 * D + h % H * width, *k = q + D, *v = k + D;
        float *keys = layer->keys + h * width * S, *values = layer->values + h * width * S, *scores = t->scores + h * S;
        for (long i = 0; i < width; i++) keys[i * S + length] = k[i];
        memcpy(values + length * width, v, width * sizeof(float));
        blend(scores, q, keys, S, width, length + 1);
        softmax(scores, layer->scale, length + 1);
        blend(t->normed + h * width, scores, values, width, length + 1, width);
    }
}

/* logits_BV of the token that follows the one whose embedding is in t->x, at position `length`. */
void cpu_step(const Step *t, float *logits, long length, long threads) {
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        for (long l = 0; l < t->n_layer; l++) {
            const Layer *layer = t->layers + l;
            add_and_norm(t, l ? t->normed : 0, &layer->ln_1, t->normed);
            product(&layer->c_attn, t->normed, t->wide, t->room, t->B);
            attention(t, layer, length);
            product(&layer->attn_c_proj, t->normed, t->wide, t->room, t->B);
            add_and_norm(t, t->wide, &layer->ln_2, t->normed);
            product(&layer->c_fc, t->normed, t->wide, t->room, t->B);
            gelu(t);
            product(&layer->mlp_c_proj, t->wide, t->normed, t->room, t->B);
        }
        add_and_norm(t, t->normed, &t->ln_f, t->normed);
        product(&t->head, t->normed, logits, t->room, t->B);
    }
}
