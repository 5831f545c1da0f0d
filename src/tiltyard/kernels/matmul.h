/* Register-tiled products, sums and exponentials shared by decode.c, tree_attention.c and fused_ops.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PANEL 32 /* columns of a product computed together: two vectors of 16 */
#ifdef __AVX512F__
#define TILE 12 /* rows computed together: their sums fill the registers */
#else
#define TILE 3
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(64), aligned(4), may_alias));

/* e^x for x <= 0, to 2 units in the last place: 2^k times a Taylor series around 0; 0 below the least normal number. In a
 * form that compilers vectorise. */
INLINE float exp_nonpositive(float x)
{
    float bounded = x < -87.0f ? -87.0f : x;
    float k = __builtin_rintf(bounded * 1.44269504f);
    float r = bounded - k * 0.693359375f; /* ln 2 in two parts: the first has few bits, so its product is exact */
    r = r + k * 2.12194440e-4f;
    float y = 1.0f / 720 + r * (1.0f / 5040);
    y = 1.0f + r * (1.0f + r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * y)))));
    int bits = ((int)k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : y * power;
}

INLINE float silu(float x)
{
    float e = exp_nonpositive(x < 0 ? x : -x);
    return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

typedef float vector8 __attribute__((vector_size(32)));
typedef float vector4 __attribute__((vector_size(16)));

/* The sum of 16 numbers. The order is written out because a compiler starts a reduction where memory is aligned: the same
 * numbers would give other bits at another address. */
INLINE float horizontal_sum(vector all)
{
    union { vector all; vector8 halves[2]; } a = {.all = all};
    union { vector8 all; vector4 halves[2]; } b = {.all = a.halves[0] + a.halves[1]};
    union { vector4 all; float each[4]; } c = {.all = b.halves[0] + b.halves[1]};
    return (c.each[0] + c.each[2]) + (c.each[1] + c.each[3]);
}

/* The sum of x[i] * y[i] over [0, n), or of x[i] where y is NULL. */
INLINE float dot(const float *x, const float *y, long n)
{
    vector sum = {0};
    float tail = 0;
    long i = 0;
    for (; i + 16 <= n; i += 16) {
        vector numbers = *(const vector *)(x + i);
        if (y)
            numbers *= *(const vector *)(y + i);
        sum += numbers;
    }
    for (; i < n; i++)
        tail += y ? x[i] * y[i] : x[i];
    return horizontal_sum(sum) + tail;
}

/* RMSNorm of one row. */
INLINE void rms_norm_row(float *out, const float *x, const float *weight, long d, float eps)
{
    float scale = 1.0f / sqrtf(dot(x, x, d) / d + eps);
    for (long i = 0; i < d; i++)
        out[i] = x[i] * scale * weight[i];
}

enum { STORE, ADD, SWIGLU };

/* `n` rows of x (element i of row r at x[r * row_stride + i * stride_in]) times a panel [in][32]. STORE and ADD write
 * `columns` columns to out [n][stride], SWIGLU writes silu(first 16) * (last 16). */
INLINE void tile(float *out, long stride, const float *x, long row_stride, long stride_in, const float *panel, const float *bias,
                 long in, long columns, const int kind, const int n)
{
    vector a[n], b[n];
#pragma GCC unroll 16
    for (int r = 0; r < n; r++) {
        a[r] = bias ? *(const vector *)bias : (vector){0};
        b[r] = bias ? *(const vector *)(bias + 16) : (vector){0};
    }
    for (long i = 0; i < in; i++) {
        vector w = *(const vector *)(panel + i * PANEL), v = *(const vector *)(panel + i * PANEL + 16);
#pragma GCC unroll 16
        for (int r = 0; r < n; r++) {
            a[r] += x[r * row_stride + i * stride_in] * w;
            b[r] += x[r * row_stride + i * stride_in] * v;
        }
    }
    float sums[PANEL];
#pragma GCC unroll 16
    for (int r = 0; r < n; r++) {
        float *to = out + r * stride;
        if (kind != SWIGLU && columns == PANEL) {
            vector *first = (vector *)to, *last = (vector *)(to + 16);
            if (kind == ADD)
                a[r] += *first, b[r] += *last;
            *first = a[r];
            *last = b[r];
            continue;
        }
        *(vector *)sums = a[r];
        *(vector *)(sums + 16) = b[r];
        if (kind == SWIGLU)
            for (long c = 0; c < 16; c++)
                sums[c] = silu(sums[c]) * sums[16 + c];
        if (kind == ADD)
            for (long c = 0; c < columns; c++)
                to[c] += sums[c];
        else
            memcpy(to, sums, columns * sizeof(float));
    }
}

/* `tile` for up to TILE rows, with the number of rows known to the compiler. */
INLINE void tiles(float *out, long stride, const float *x, long row_stride, long stride_in, const float *panel, const float *bias,
                  long in, long columns, const int kind, long n)
{
#define ROWS(known) case known: tile(out, stride, x, row_stride, stride_in, panel, bias, in, columns, kind, known); break
    switch (n) {
        ROWS(1); ROWS(2); ROWS(3);
#if TILE > 3
        ROWS(4); ROWS(5); ROWS(6); ROWS(7); ROWS(8); ROWS(9); ROWS(10); ROWS(11); ROWS(12);
#endif
    }
}
