/* Attention over packed trees, forward and backward, in float32: each query meets the keys that it may see and no others
 * (trees.py calls it, kernels.py compiles it).
 *
 *   q, out [T][heads][D]     k, v [T][kv heads][D]     lse [T][heads]: log of each query's sum of exponentials
 *
 * A tree is a trunk (its prompt; all of it where it does not branch) and its branches: `trees` [count + 1] says where each
 * tree's pieces begin among `pieces` [..][2] = (first token, tokens), the trunk first. A query sees the trunk and its own
 * piece up to itself. One thread does a tree's queries of one key head, in blocks of rows; of the keys it makes two
 * copies, since a panel of 32 columns is what `tile` multiplies by:
 *
 *   across [columns / 32][D][32]     along [D / 32][columns][32]     every piece begins a panel; what is left over is 0
 */
#include "matmul.h"

#define BLOCK (4 * TILE) /* queries at a time */

typedef struct {
    const long *trees, *pieces;
    long count, heads, kv_heads, width;
    float scaling;
} Trees;

static long whole(long n)
{
    return (n + PANEL - 1) / PANEL * PANEL;
}

/* Columns of a tree, each piece beginning a panel; and of its longest piece. */
static long columns_of(const Trees *t, long tree, long *longest)
{
    long sum = 0;
    *longest = 0;
    for (long piece = t->trees[tree]; piece < t->trees[tree + 1]; piece++) {
        long n = whole(t->pieces[2 * piece + 1]);
        sum += n;
        *longest = n > *longest ? n : *longest;
    }
    return sum;
}

/* rows [n][stride] -> columns from `at` on of [columns / 32][D][32] */
static void lay_across(float *to, const float *from, long n, long stride, long width, long at)
{
    to += at * width;
    memset(to, 0, whole(n) * width * sizeof(float));
    for (long c = 0; c < n; c++)
        for (long i = 0; i < width; i++)
            to[(c / PANEL * width + i) * PANEL + c % PANEL] = from[c * stride + i];
}

/* rows [n][stride] -> rows from `at` on of [D / 32][columns][32] */
static void lay_along(float *to, const float *from, long n, long stride, long width, long at, long columns)
{
    long room = whole(n) < columns - at ? whole(n) : columns - at;
    for (long panel = 0; panel * PANEL < width; panel++) {
        long left = width - panel * PANEL < PANEL ? width - panel * PANEL : PANEL;
        float *into = to + (panel * columns + at) * PANEL;
        memset(into, 0, room * PANEL * sizeof(float));
        for (long c = 0; c < n; c++)
            memcpy(into + c * PANEL, from + c * stride + panel * PANEL, left * sizeof(float));
    }
}

/* out[rows][..] = or += x [rows][across] times one panel */
static void rows_times(float *out, long stride, const float *x, long across, const float *panel, long in, long rows)
{
    for (long row = 0; row < rows; row += TILE)
        tiles(out + row * stride, stride, x + row * across, across, 1, panel, NULL, in, PANEL, STORE,
              rows - row < TILE ? rows - row : TILE);
}

static void rows_times_more(float *out, long stride, const float *x, long across, const float *panel, long in, long rows)
{
    for (long row = 0; row < rows; row += TILE)
        tiles(out + row * stride, stride, x + row * across, across, 1, panel, NULL, in, PANEL, ADD,
              rows - row < TILE ? rows - row : TILE);
}

/* out[columns][..] += (x [rows][along])' times one panel [rows][32] */
static void columns_times(float *out, long stride, const float *x, long along, const float *panel, long rows, long columns)
{
    for (long column = 0; column < columns; column += TILE)
        tiles(out + column * stride, stride, x + column, 1, along, panel, NULL, rows, PANEL, ADD,
              columns - column < TILE ? columns - column : TILE);
}

/* A block of queries: rows [row, row + rows) of a piece; it sees `base` columns of the trunk (of them `trunk` are tokens) and
 * `own` columns of its own piece, which begin at `at` among the tree's. */
typedef struct {
    long first, rows, row, base, trunk, own, at, columns;
} Block;

static Block block_of(const Trees *t, long tree, long piece, long at, long row, long columns)
{
    long trunk = t->trees[tree], length = t->pieces[2 * piece + 1], left = length - row;
    Block b = {.first = t->pieces[2 * piece] + row, .row = row, .at = at, .columns = columns};
    b.rows = left < BLOCK ? left : BLOCK;
    b.trunk = piece == trunk ? 0 : t->pieces[2 * trunk + 1];
    b.base = whole(b.trunk);
    b.own = whole(row + b.rows);
    return b;
}

/* out [rows][base + own] = x [rows][D] times the block's columns of `across` */
static void meet(float *out, const float *x, const float *across, const Block *b, long width)
{
    long stride = b->base + b->own;
    for (long c = 0; c < stride; c += PANEL) {
        long column = c < b->base ? c : c - b->base + b->at;
        rows_times(out + c, stride, x, width, across + column * width, width, b->rows);
    }
}

/* out [rows][wide] = x [rows][base + own] times the block's rows of `along` */
static void mix(float *out, const float *x, const float *along, const Block *b, long wide)
{
    long stride = b->base + b->own;
    memset(out, 0, b->rows * wide * sizeof(float));
    for (long panel = 0; panel * PANEL < wide; panel++) {
        const float *from = along + panel * b->columns * PANEL;
        rows_times_more(out + panel * PANEL, wide, x, stride, from, b->base, b->rows);
        rows_times_more(out + panel * PANEL, wide, x + b->base, stride, from + b->at * PANEL, b->own, b->rows);
    }
}

/* out [columns of the tree][wide] += (x [rows][base + own])' times panels [wide / 32][BLOCK][32] */
static void spread(float *out, const float *x, const float *panels, const Block *b, long wide)
{
    long stride = b->base + b->own;
    for (long panel = 0; panel * PANEL < wide; panel++) {
        const float *from = panels + panel * BLOCK * PANEL;
        columns_times(out + panel * PANEL, wide, x, stride, from, b->rows, b->base);
        columns_times(out + b->at * wide + panel * PANEL, wide, x + b->base, stride, from, b->rows, b->own);
    }
}

/* Rows of one head, scaled, as rows [rows][D] and as panels [wide / 32][BLOCK][32]. */
static void take(float *rows, float *panels, const float *from, const Block *b, long heads, long head, long width, float scaling)
{
    for (long r = 0; r < b->rows; r++)
        for (long i = 0; i < width; i++)
            rows[r * width + i] = from[((b->first + r) * heads + head) * width + i] * scaling;
    if (panels)
        lay_along(panels, rows, b->rows, width, width, 0, BLOCK);
}

/* What a row may not see, as -inf. */
static void hide(float *logits, const Block *b, long row)
{
    for (long c = b->trunk; c < b->base; c++)
        logits[c] = -INFINITY;
    for (long c = b->row + row + 1; c < b->own; c++)
        logits[b->base + c] = -INFINITY;
}

static void forward_head(const Trees *t, float *out, float *lse, const float *q, const float *k, const float *v, long tree,
                         long kv)
{
    long width = t->width, wide = whole(width), shared = t->heads / t->kv_heads, longest, step = t->kv_heads * width;
    long columns = columns_of(t, tree, &longest), end = t->trees[tree + 1], most_columns = 2 * longest;
    float *across = malloc((columns * (width + wide) + BLOCK * (width + wide + most_columns)) * sizeof(float));
    float *along = across + columns * width, *query = along + columns * wide, *sum = query + BLOCK * width;
    float *logits = sum + BLOCK * wide;
    for (long piece = t->trees[tree], at = 0; piece < end; at += whole(t->pieces[2 * piece + 1]), piece++) {
        long first = t->pieces[2 * piece], n = t->pieces[2 * piece + 1];
        lay_across(across, k + first * step + kv * width, n, step, width, at);
        lay_along(along, v + first * step + kv * width, n, step, width, at, columns);
    }
    for (long head = kv * shared; head < (kv + 1) * shared; head++)
        for (long piece = t->trees[tree], at = 0; piece < end; at += whole(t->pieces[2 * piece + 1]), piece++)
            for (long row = 0; row < t->pieces[2 * piece + 1]; row += BLOCK) {
                Block b = block_of(t, tree, piece, at, row, columns);
                long stride = b.base + b.own;
                float totals[BLOCK];
                take(query, NULL, q, &b, t->heads, head, width, t->scaling);
                meet(logits, query, across, &b, width);
                for (long r = 0; r < b.rows; r++) {
                    float *line = logits + r * stride, most = -INFINITY;
                    hide(line, &b, r);
#pragma omp simd reduction(max : most)
                    for (long c = 0; c < stride; c++)
                        most = line[c] > most ? line[c] : most;
                    for (long c = 0; c < stride; c++)
                        line[c] = exponential(line[c] - most);
                    totals[r] = sum_up(line, NULL, stride);
                    lse[(b.first + r) * t->heads + head] = most + logf(totals[r]);
                }
                mix(sum, logits, along, &b, wide);
                for (long r = 0; r < b.rows; r++)
                    for (long i = 0; i < width; i++)
                        out[((b.first + r) * t->heads + head) * width + i] = sum[r * wide + i] / totals[r];
            }
    free(across);
}

void trees_forward(float *out, float *lse, const float *q, const float *k, const float *v, const Trees *t, int threads)
{
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
    for (long tree = 0; tree < t->count; tree++)
        for (long kv = 0; kv < t->kv_heads; kv++)
            forward_head(t, out, lse, q, k, v, tree, kv);
}

typedef struct {
    float *dq, *dk, *dv;
    const float *dout, *out, *lse, *q, *k, *v;
} Gradients;

static void backward_head(const Trees *t, const Gradients *g, long tree, long kv)
{
    long width = t->width, wide = whole(width), shared = t->heads / t->kv_heads, longest, step = t->kv_heads * width;
    long columns = columns_of(t, tree, &longest), end = t->trees[tree + 1], most_columns = 2 * longest;
    long numbers = columns * (2 * width + 3 * wide) + BLOCK * (2 * width + 3 * wide + 2 * most_columns);
    float *keys_across = malloc(numbers * sizeof(float)), *values_across = keys_across + columns * width;
    float *keys_along = values_across + columns * width, *dk = keys_along + columns * wide, *dv = dk + columns * wide;
    float *query = dv + columns * wide, *dout = query + BLOCK * width, *queries = dout + BLOCK * width;
    float *douts = queries + BLOCK * wide, *sum = douts + BLOCK * wide, *p = sum + BLOCK * wide;
    float *dp = p + BLOCK * most_columns;
    memset(dk, 0, 2 * columns * wide * sizeof(float));
    for (long piece = t->trees[tree], at = 0; piece < end; at += whole(t->pieces[2 * piece + 1]), piece++) {
        long first = t->pieces[2 * piece], n = t->pieces[2 * piece + 1];
        lay_across(keys_across, g->k + first * step + kv * width, n, step, width, at);
        lay_across(values_across, g->v + first * step + kv * width, n, step, width, at);
        lay_along(keys_along, g->k + first * step + kv * width, n, step, width, at, columns);
    }
    for (long head = kv * shared; head < (kv + 1) * shared; head++)
        for (long piece = t->trees[tree], at = 0; piece < end; at += whole(t->pieces[2 * piece + 1]), piece++)
            for (long row = 0; row < t->pieces[2 * piece + 1]; row += BLOCK) {
                Block b = block_of(t, tree, piece, at, row, columns);
                long stride = b.base + b.own;
                take(query, queries, g->q, &b, t->heads, head, width, t->scaling);
                take(dout, douts, g->dout, &b, t->heads, head, width, 1.0f);
                meet(p, query, keys_across, &b, width);
                meet(dp, dout, values_across, &b, width);
                for (long r = 0; r < b.rows; r++) {
                    float *line = p + r * stride, *slope = dp + r * stride;
                    const float *out = g->out + ((b.first + r) * t->heads + head) * width;
                    float lse = g->lse[(b.first + r) * t->heads + head];
                    float along = sum_up(dout + r * width, out, width);
                    hide(line, &b, r);
                    for (long c = 0; c < stride; c++) {
                        line[c] = exponential(line[c] - lse);
                        slope[c] = line[c] * (slope[c] - along);
                    }
                }
                spread(dv, p, douts, &b, wide);
                spread(dk, dp, queries, &b, wide);
                mix(sum, dp, keys_along, &b, wide);
                for (long r = 0; r < b.rows; r++)
                    for (long i = 0; i < width; i++)
                        g->dq[((b.first + r) * t->heads + head) * width + i] = sum[r * wide + i] * t->scaling;
            }
    for (long piece = t->trees[tree], at = 0; piece < end; at += whole(t->pieces[2 * piece + 1]), piece++)
        for (long c = 0; c < t->pieces[2 * piece + 1]; c++) {
            long to = (t->pieces[2 * piece] + c) * step + kv * width;
            memcpy(g->dk + to, dk + (at + c) * wide, width * sizeof(float));
            memcpy(g->dv + to, dv + (at + c) * wide, width * sizeof(float));
        }
    free(keys_across);
}

void trees_backward(const Gradients *g, const Trees *t, int threads)
{
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
    for (long tree = 0; tree < t->count; tree++)
        for (long kv = 0; kv < t->kv_heads; kv++)
            backward_head(t, g, tree, kv);
}
