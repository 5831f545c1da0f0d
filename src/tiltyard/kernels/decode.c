/* One token more of many rows, for Llama-like decoders in float32 on CPUs (kernels.py compiles it, compiled.py calls it).
 *
 *   x       [rows][d]                        weights [out / 32][in][32], padded with zeros (of gate and up: 16 and 16)
 *   qkv     [rows][heads + 2 * kv heads][D]  keys, values [slots][kv heads][C][D], columns on a ring of C (slots.py)
 *
 * Few rows, so few multiplications for each weight read: all threads walk through a layer together, in one parallel
 * region, and keys and values are read at the speed of memory. A number is always summed in the same order, whatever the
 * number of rows and threads: a row's answer does not depend on its neighbours.
 */
#include "matmul.h"

#define BLOCK 64 /* columns of values at a time, and tokens whose probabilities are added up together */

typedef struct {
    const float *weight, *bias; /* bias may be NULL */
    long in, out;
} Product;

typedef struct {
    const float *norm_in, *norm_mid, *q_norm, *k_norm; /* the last two are NULL but for Qwen 3 */
    Product qkv, o, gate_up, down;
    float *keys, *values;
    long window; /* tokens a row may look back, itself included; 0: all */
    float scaling;
} Layer;

typedef struct {
    const Layer *layers;
    const float *last_norm, *cosines, *sines; /* [positions][D] */
    long depth, d, heads, kv_heads, width;
    float eps;
} Model;

/* ------------------------------------------------------------------------------------------------ products */

/* x [rows][in] times the weights; the threads of the region share it and meet at its end */
INLINE void product(float *out, const float *x, const Product *p, long rows, const int kind)
{
    const long made = kind == GATED ? PANEL / 2 : PANEL; /* numbers that a panel gives */
    long stride = kind == GATED ? p->out / 2 : p->out, panels = (stride + made - 1) / made;
#pragma omp for collapse(2) schedule(static)
    for (long panel = 0; panel < panels; panel++)
        for (long row = 0; row < rows; row += TILE) {
            long left = stride - panel * made < made ? stride - panel * made : made;
            tiles(out + row * stride + panel * made, stride, x + row * p->in, p->in, 1,
                  p->weight + panel * PANEL * p->in, p->bias ? p->bias + panel * PANEL : NULL, p->in, left, kind,
                  rows - row < TILE ? rows - row : TILE);
        }
}

/* ------------------------------------------------------------------------------------------------ norms, positions */

INLINE void norm_rows(float *out, const float *x, const float *weight, long rows, long d, float eps)
{
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++)
        norm_row(out + row * d, x + row * d, weight, d, eps);
}

/* Rotary position: x cos + (second half, first half of x) sin; sin's first half comes negative. */
INLINE void turn(float *out, const float *x, const float *cosine, const float *sine, long width, float scaling)
{
    long half = width / 2;
    for (long i = 0; i < half; i++)
        out[i] = (x[i] * cosine[i] + x[i + half] * sine[i]) * scaling;
    for (long i = half; i < width; i++)
        out[i] = (x[i] * cosine[i] + x[i - half] * sine[i]) * scaling;
}

/* ------------------------------------------------------------------------------------------------ attention */

#define WIDTHS(call) /* widths that the compiler knows stay in registers */ \
    switch (width) {                                                       \
    case 16: call(16); break;                                              \
    case 32: call(32); break;                                              \
    case 64: call(64); break;                                              \
    case 128: call(128); break;                                            \
    default: call(width);                                                  \
    }

/* logits[g][0..n) = queries[g] . keys[0..n). Asks meanwhile for the values, and for the keys of the next head, which lie
 * `next` numbers further on: the hardware's own guesses end at each page. */
INLINE void look(float *logits, long stride, const float *queries, const float *keys, const float *values, long next,
                 long shared, const long width, long n)
{
    for (long c = 0; c < n; c++) {
        for (long i = 0; i < width; i += 16) {
            __builtin_prefetch(values + c * width + i);
            __builtin_prefetch(keys + c * width + i + next);
        }
        for (long g = 0; g < shared; g++)
            logits[g * stride + c] = sum_up(queries + g * width, keys + c * width, width);
    }
}

static void look_any(float *logits, long stride, const float *queries, const float *keys, const float *values,
                     long next, long shared, long width, long n)
{
#define LOOK(known) look(logits, stride, queries, keys, values, next, shared, known, n)
    WIDTHS(LOOK)
}

/* out[g] += weights[g][0..n) times values[0..n) */
INLINE void gather(float *out, const float *weights, long stride, const float *values, long shared, const long width,
                   long n)
{
    for (long from = 0; from < n; from += BLOCK) {
        long end = from + BLOCK < n ? from + BLOCK : n;
        for (long g = 0; g < shared; g++) {
            float sum[width];
            memcpy(sum, out + g * width, sizeof sum);
            for (long c = from; c < end; c++)
                for (long i = 0; i < width; i++)
                    sum[i] += weights[g * stride + c] * values[c * width + i];
            memcpy(out + g * width, sum, sizeof sum);
        }
    }
}

static void gather_any(float *out, const float *weights, long stride, const float *values, long shared, long width, long n)
{
#define GATHER(known) gather(out, weights, stride, values, shared, known, n)
    WIDTHS(GATHER)
}

INLINE void softmax(float *logits, long n)
{
    float most = logits[0], total;
#pragma omp simd reduction(max : most)
    for (long c = 0; c < n; c++)
        most = logits[c] > most ? logits[c] : most;
    for (long c = 0; c < n; c++)
        logits[c] = exponential(logits[c] - most);
    total = sum_up(logits, NULL, n);
    for (long c = 0; c < n; c++)
        logits[c] /= total;
}

/* One row and one key head. Its queries and key are normed (Qwen 3) and turned, its key and value written to column
 * `now`; out [heads that share][D]. `room` is for the queries, their logits and the key. */
static void attend(float *out, float *room, const float *qkv, const Model *m, const Layer *layer, long row, long head,
                   long length, long capacity, long now)
{
    long width = m->width, shared = m->heads / m->kv_heads;
    const float *cosine = m->cosines + length * width, *sine = m->sines + length * width;
    float *queries = room, *key = queries + shared * width, *logits = key + width;
    float *keys = layer->keys + (row * m->kv_heads + head) * capacity * width;
    float *values = layer->values + (row * m->kv_heads + head) * capacity * width;
    for (long g = 0; g < shared; g++) {
        const float *query = qkv + (head * shared + g) * width;
        if (layer->q_norm) {
            norm_row(key, query, layer->q_norm, width, m->eps);
            query = key;
        }
        turn(queries + g * width, query, cosine, sine, width, layer->scaling);
    }
    const float *raw = qkv + (m->heads + head) * width;
    if (layer->k_norm) {
        norm_row(out, raw, layer->k_norm, width, m->eps); /* `out` is free until the end */
        raw = out;
    }
    turn(key, raw, cosine, sine, width, 1.0f);
    memcpy(keys + now * width, key, width * sizeof(float));
    memcpy(values + now * width, qkv + (m->heads + m->kv_heads + head) * width, width * sizeof(float));

    long n = layer->window && layer->window < length + 1 ? layer->window : length + 1;
    long first = now + 1 - n, next = capacity * width; /* on a ring: what lies before column 0 is at the end */
    long one = first < 0 ? -first : n, two = n - one, start = (first < 0 ? first + capacity : first) * width;
    look_any(logits, capacity, queries, keys + start, values + start, next, shared, width, one);
    look_any(logits + one, capacity, queries, keys, values, next, shared, width, two);
    memset(out, 0, shared * width * sizeof(float));
    for (long g = 0; g < shared; g++)
        softmax(logits + g * capacity, n);
    gather_any(out, logits, capacity, values + start, shared, width, one);
    gather_any(out, logits + one, capacity, values, shared, width, two);
}

/* ------------------------------------------------------------------------------------------------ a step */

/* The last hidden states [rows][d] after the tokens with embeddings x, which is used up.
 *
 *   scratch: rows * (d + (heads + 2 * kv heads) * D + heads * D + inner) numbers     lengths [rows]: tokens held before
 */
void step(float *out, float *x, float *scratch, const Model *m, const long *lengths, long rows, long capacity, long now,
          int threads)
{
    long wide = (m->heads + 2 * m->kv_heads) * m->width, shared = m->heads / m->kv_heads;
    long chunk = rows < 4 * threads ? 1 : m->kv_heads;
    float *seen = scratch, *qkv = seen + rows * m->d, *mixed = qkv + rows * wide;
    float *inner = mixed + rows * m->heads * m->width;
#pragma omp parallel num_threads(threads)
    {
        float *room = malloc((shared * (m->width + capacity) + m->width) * sizeof(float));
        for (long place = 0; place < m->depth; place++) {
            const Layer *layer = m->layers + place;
            norm_rows(seen, x, layer->norm_in, rows, m->d, m->eps);
            product(qkv, seen, &layer->qkv, rows, STORE);
#pragma omp for collapse(2) schedule(dynamic, chunk)
            for (long row = 0; row < rows; row++)
                for (long head = 0; head < m->kv_heads; head++)
                    attend(mixed + (row * m->heads + head * shared) * m->width, room, qkv + row * wide, m, layer, row, head,
                           lengths[row], capacity, now);
            product(x, mixed, &layer->o, rows, ADD);
            norm_rows(seen, x, layer->norm_mid, rows, m->d, m->eps);
            product(inner, seen, &layer->gate_up, rows, GATED);
            product(x, inner, &layer->down, rows, ADD);
        }
        norm_rows(out, x, m->last_norm, rows, m->d, m->eps);
        free(room);
    }
}

/* ------------------------------------------------------------------------------------------------ the next token */

/* The inverse CDF of softmax(logits / temperature) at `uniform`, in two stages, first among blocks of tokens. `room`: for
 * a number a token and two a block. A token of probability 0 is never drawn. */
static long draw_row(float *logp, const float *logits, double uniform, float temperature, long vocabulary, float *room)
{
    long blocks = (vocabulary + BLOCK - 1) / BLOCK, block = 0;
    double *cdf = (double *)room, total = 0;
    float *mass = room + 2 * blocks, most = logits[0];
#pragma omp simd reduction(max : most)
    for (long j = 0; j < vocabulary; j++)
        most = logits[j] > most ? logits[j] : most;
    most /= temperature;
    for (long b = 0; b < blocks; b++) {
        long end = (b + 1) * BLOCK < vocabulary ? (b + 1) * BLOCK : vocabulary;
        for (long j = b * BLOCK; j < end; j++)
            mass[j] = exponential(logits[j] / temperature - most);
        cdf[b] = total += sum_up(mass + b * BLOCK, NULL, end - b * BLOCK);
    }
    double wanted = uniform * total;
    wanted = wanted < total ? wanted : nextafter(total, 0);
    while (block < blocks - 1 && !(cdf[block] > wanted))
        block++;
    long end = (block + 1) * BLOCK < vocabulary ? (block + 1) * BLOCK : vocabulary, token = block * BLOCK;
    double rest = block ? wanted - cdf[block - 1] : wanted, inside = 0, so_far = 0;
    for (long j = token; j < end; j++)
        inside += mass[j];
    rest = rest < inside ? rest : nextafter(inside, 0); /* rounding must not lead beyond the block's last mass */
    while (token < end - 1 && !((so_far += mass[token]) > rest))
        token++;
    *logp = (float)log(mass[token] / total);
    return token;
}

void draw(long *tokens, float *logps, const float *logits, const double *uniforms, float temperature, long rows,
          long vocabulary, int threads)
{
#pragma omp parallel num_threads(threads)
    {
        float *room = malloc((vocabulary + 2 * (vocabulary / BLOCK + 1)) * sizeof(float));
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++)
            tokens[row] = draw_row(logps + row, logits + row * vocabulary, uniforms[row], temperature, vocabulary, room);
        free(room);
    }
}
