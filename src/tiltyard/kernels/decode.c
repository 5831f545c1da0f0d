/* One decoding step of many rows, for Llama-like decoders in float32 on CPUs (called by native_decoder.py).
 *
 *   x       [rows][d]                        weights [out / 32][in][32], padded with zeros (of gate and up: 16 and 16)
 *   qkv     [rows][heads + 2 * kv heads][D]  keys, values [slots][kv heads][C][D], a ring buffer of C columns (slots.py)
 *
 * Few rows mean few multiplications per weight read: all threads run through a layer together in one parallel region, and
 * keys and values are read at memory bandwidth. Sums are always made in the same order, whatever the number of rows and
 * threads: a row's result does not depend on the other rows.
 *
 * Functions that allocate return 0, or 1 if memory ran out; then their results are not valid.
 */
#include <omp.h>

#include "matmul.h"

#define BLOCK 64 /* columns of values at a time; tokens whose probabilities are summed together */

typedef struct {
    const float *weight, *bias; /* bias may be NULL */
    long in, out;
} Linear;

typedef struct {
    const float *norm_in, *norm_mid, *q_norm, *k_norm; /* the last two are NULL except for Qwen 3 */
    Linear qkv, o, gate_up, down;
    float *keys, *values;
    long window; /* sliding window in tokens, the current one included; 0: none */
    float scaling;
} Layer;

typedef struct {
    const Layer *layers;
    const float *last_norm, *cosines, *sines; /* [positions][D] */
    long depth, d, heads, kv_heads, width;
    float eps;
} Model;

/* Sizes of the structures, which ctypes lays out by itself (abi.py). */
const long sizeof_Linear = sizeof(Linear), sizeof_Layer = sizeof(Layer), sizeof_Model = sizeof(Model);

/* A number of floats rounded up to whole cache lines. */
INLINE long pad_to_line(long n)
{
    return (n + 15) / 16 * 16;
}

/* ------------------------------------------------------------------------------------------------ linear layers */

/* x [rows][in] times the weights; called by all threads of a parallel region, with a barrier at its end. */
INLINE void linear(float *out, const float *x, const Linear *p, long rows, const int kind)
{
    const long panel_outputs = kind == SWIGLU ? PANEL / 2 : PANEL; /* outputs per panel */
    long stride = kind == SWIGLU ? p->out / 2 : p->out, panels = (stride + panel_outputs - 1) / panel_outputs;
#pragma omp for collapse(2) schedule(static)
    for (long panel = 0; panel < panels; panel++)
        for (long row = 0; row < rows; row += TILE) {
            long remaining = stride - panel * panel_outputs;
            tiles(out + row * stride + panel * panel_outputs, stride, x + row * p->in, p->in, 1,
                  p->weight + panel * PANEL * p->in, p->bias ? p->bias + panel * PANEL : NULL, p->in,
                  remaining < panel_outputs ? remaining : panel_outputs, kind,
                  rows - row < TILE ? rows - row : TILE);
        }
}

/* ------------------------------------------------------------------------------------------------ norms, positions */

INLINE void rms_norm_rows(float *out, const float *x, const float *weight, long rows, long d, float eps)
{
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++)
        rms_norm_row(out + row * d, x + row * d, weight, d, eps);
}

/* Rotary position: x cos + (second half, first half of x) sin, where the first half of sin is negated by the caller. */
INLINE void apply_rope(float *out, const float *x, const float *cosine, const float *sine, long width, float scaling)
{
    long half = width / 2;
    for (long i = 0; i < half; i++)
        out[i] = (x[i] * cosine[i] + x[i + half] * sine[i]) * scaling;
    for (long i = half; i < width; i++)
        out[i] = (x[i] * cosine[i] + x[i - half] * sine[i]) * scaling;
}

/* ------------------------------------------------------------------------------------------------ attention */

#define WIDTHS(call) /* sums of a width known to the compiler stay in registers */ \
    switch (width) {                                                       \
    case 16: call(16); break;                                              \
    case 32: call(32); break;                                              \
    case 64: call(64); break;                                              \
    case 128: call(128); break;                                            \
    default: call(width);                                                  \
    }

/* logits[g][0..n) = queries[g] . keys[0..n). Prefetches the values, and the keys of the next head, `next` floats further on:
 * the hardware's prefetcher stops at each page. */
INLINE void qk_dot(float *logits, long stride, const float *queries, const float *keys, const float *values, long next,
                 long group, const long width, long n)
{
    for (long c = 0; c < n; c++) {
        for (long i = 0; i < width; i += 16) {
            __builtin_prefetch(values + c * width + i);
            __builtin_prefetch(keys + c * width + i + next);
        }
        for (long g = 0; g < group; g++)
            logits[g * stride + c] = dot(queries + g * width, keys + c * width, width);
    }
}

static void qk_dot_any(float *logits, long stride, const float *queries, const float *keys, const float *values,
                     long next, long group, long width, long n)
{
#define QK_DOT(known) qk_dot(logits, stride, queries, keys, values, next, group, known, n)
    WIDTHS(QK_DOT)
}

/* out[g] += weights[g][0..n) . values[0..n) */
INLINE void pv(float *out, const float *weights, long stride, const float *values, long group, const long width,
                   long n)
{
    for (long from = 0; from < n; from += BLOCK) {
        long end = from + BLOCK < n ? from + BLOCK : n;
        for (long g = 0; g < group; g++) {
            float sum[width];
            memcpy(sum, out + g * width, sizeof sum);
            for (long c = from; c < end; c++)
                for (long i = 0; i < width; i++)
                    sum[i] += weights[g * stride + c] * values[c * width + i];
            memcpy(out + g * width, sum, sizeof sum);
        }
    }
}

static void pv_any(float *out, const float *weights, long stride, const float *values, long group, long width, long n)
{
#define PV(known) pv(out, weights, stride, values, group, known, n)
    WIDTHS(PV)
}

INLINE void softmax(float *logits, long n)
{
    float max_value = logits[0], total;
#pragma omp simd reduction(max : max_value)
    for (long c = 0; c < n; c++)
        max_value = logits[c] > max_value ? logits[c] : max_value;
    for (long c = 0; c < n; c++)
        logits[c] = exp_nonpositive(logits[c] - max_value);
    total = dot(logits, NULL, n);
    for (long c = 0; c < n; c++)
        logits[c] /= total;
}

/* Attention of one row and one key head: norms (Qwen 3) and rotates its queries and key, writes its key and value to column
 * `column`; out [query heads of this key head][D]. `scratch` holds the queries, their logits and the key. */
static void attend(float *out, float *scratch, const float *qkv, const Model *m, const Layer *layer, long row, long head,
                   long length, long capacity, long column)
{
    long width = m->width, group = m->heads / m->kv_heads;
    const float *cosine = m->cosines + length * width, *sine = m->sines + length * width;
    float *queries = scratch, *key = queries + group * width, *logits = key + width;
    float *keys = layer->keys + (row * m->kv_heads + head) * capacity * width;
    float *values = layer->values + (row * m->kv_heads + head) * capacity * width;
    for (long g = 0; g < group; g++) {
        const float *query = qkv + (head * group + g) * width;
        if (layer->q_norm) {
            rms_norm_row(key, query, layer->q_norm, width, m->eps);
            query = key;
        }
        apply_rope(queries + g * width, query, cosine, sine, width, layer->scaling);
    }
    const float *raw = qkv + (m->heads + head) * width;
    if (layer->k_norm) {
        rms_norm_row(out, raw, layer->k_norm, width, m->eps); /* `out` is scratch until the end */
        raw = out;
    }
    apply_rope(key, raw, cosine, sine, width, 1.0f);
    memcpy(keys + column * width, key, width * sizeof(float));
    memcpy(values + column * width, qkv + (m->heads + m->kv_heads + head) * width, width * sizeof(float));

    long n = layer->window && layer->window < length + 1 ? layer->window : length + 1;
    long first = column + 1 - n, next = capacity * width; /* ring buffer: columns below 0 are at the end */
    long before_wrap = first < 0 ? -first : n, after_wrap = n - before_wrap;
    long start = (first < 0 ? first + capacity : first) * width;
    qk_dot_any(logits, capacity, queries, keys + start, values + start, next, group, width, before_wrap);
    qk_dot_any(logits + before_wrap, capacity, queries, keys, values, next, group, width, after_wrap);
    memset(out, 0, group * width * sizeof(float));
    for (long g = 0; g < group; g++)
        softmax(logits + g * capacity, n);
    pv_any(out, logits, capacity, values + start, group, width, before_wrap);
    pv_any(out, logits + before_wrap, capacity, values, group, width, after_wrap);
}

/* ------------------------------------------------------------------------------------------------ a step */

/* Computes the last hidden states [rows][d] after the tokens with embeddings x, which is overwritten.
 *
 *   scratch: rows * (d + (heads + 2 * kv heads) * D + heads * D + inner) floats
 *   lengths: [rows], tokens in the cache before
 */
int decode_step(float *out, float *x, float *scratch, const Model *m, const long *lengths, long rows, long capacity,
                long column, int threads)
{
    long qkv_width = (m->heads + 2 * m->kv_heads) * m->width, group = m->heads / m->kv_heads;
    long chunk = rows < 4 * threads ? 1 : m->kv_heads;
    float *normed = scratch, *qkv = normed + rows * m->d, *attended = qkv + rows * qkv_width;
    float *inner = attended + rows * m->heads * m->width;
    long n_thread_scratch = pad_to_line(group * (m->width + capacity) + m->width);
    float *all_scratch = malloc(threads * n_thread_scratch * sizeof(float));
    if (!all_scratch)
        return 1;
#pragma omp parallel num_threads(threads)
    {
        float *thread_scratch = all_scratch + omp_get_thread_num() * n_thread_scratch;
        for (long index = 0; index < m->depth; index++) {
            const Layer *layer = m->layers + index;
            rms_norm_rows(normed, x, layer->norm_in, rows, m->d, m->eps);
            linear(qkv, normed, &layer->qkv, rows, STORE);
#pragma omp for collapse(2) schedule(dynamic, chunk)
            for (long row = 0; row < rows; row++)
                for (long head = 0; head < m->kv_heads; head++)
                    attend(attended + (row * m->heads + head * group) * m->width, thread_scratch, qkv + row * qkv_width, m,
                           layer, row, head, lengths[row], capacity, column);
            linear(x, attended, &layer->o, rows, ADD);
            rms_norm_rows(normed, x, layer->norm_mid, rows, m->d, m->eps);
            linear(inner, normed, &layer->gate_up, rows, SWIGLU);
            linear(x, inner, &layer->down, rows, ADD);
        }
        rms_norm_rows(out, x, m->last_norm, rows, m->d, m->eps);
    }
    free(all_scratch);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ the next token */

/* The inverse CDF of softmax(logits / temperature) at `uniform`, in two stages: among blocks of tokens, then within a block.
 * `scratch`: a float per token and two per block. A token of probability 0 is never drawn. */
static long sample_row(float *logp, const float *logits, double uniform, float temperature, long vocabulary, float *scratch)
{
    long blocks = (vocabulary + BLOCK - 1) / BLOCK, block = 0;
    double *cdf = (double *)scratch, total = 0;
    float *probs = scratch + 2 * blocks, max_value = logits[0];
#pragma omp simd reduction(max : max_value)
    for (long j = 0; j < vocabulary; j++)
        max_value = logits[j] > max_value ? logits[j] : max_value;
    max_value /= temperature;
    for (long b = 0; b < blocks; b++) {
        long end = (b + 1) * BLOCK < vocabulary ? (b + 1) * BLOCK : vocabulary;
        for (long j = b * BLOCK; j < end; j++)
            probs[j] = exp_nonpositive(logits[j] / temperature - max_value);
        cdf[b] = total += dot(probs + b * BLOCK, NULL, end - b * BLOCK);
    }
    double target = uniform * total;
    target = target < total ? target : nextafter(total, 0);
    while (block < blocks - 1 && !(cdf[block] > target))
        block++;
    long end = (block + 1) * BLOCK < vocabulary ? (block + 1) * BLOCK : vocabulary, token = block * BLOCK;
    double remainder = block ? target - cdf[block - 1] : target, block_total = 0, so_far = 0;
    for (long j = token; j < end; j++)
        block_total += probs[j];
    remainder = remainder < block_total ? remainder : nextafter(block_total, 0);
    /* not beyond the last token of nonzero probability */
    while (token < end - 1 && !((so_far += probs[token]) > remainder))
        token++;
    *logp = (float)log(probs[token] / total);
    return token;
}

int sample_tokens(long *tokens, float *logps, const float *logits, const double *uniforms, float temperature, long rows,
                  long vocabulary, int threads)
{
    long n_scratch = pad_to_line(vocabulary + 2 * (vocabulary / BLOCK + 1));
    float *all_scratch = malloc(threads * n_scratch * sizeof(float));
    if (!all_scratch)
        return 1;
#pragma omp parallel num_threads(threads)
    {
        float *scratch = all_scratch + omp_get_thread_num() * n_scratch;
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++)
            tokens[row] =
                sample_row(logps + row, logits + row * vocabulary, uniforms[row], temperature, vocabulary, scratch);
    }
    free(all_scratch);
    return 0;
}
