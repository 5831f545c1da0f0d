/* Attention over packed trees, forward and backward, in float32 (called by tree_attention.py). Only pairs of a query and a key
 * that it attends to are computed; there is no mask matrix.
 *
 *   q, out [T][heads][D]     k, v [T][kv heads][D]     lse [T][heads]: log-sum-exp of each query's scores
 *
 * A tree is a prompt (the whole tree where it does not branch) and its branches: `trees` [count + 1] holds where each tree's
 * segments begin among `segments` [..][2] = (first token, number of tokens), the prompt first. A query attends to the prompt
 * and to its own segment up to itself. One thread computes a tree's queries of one key head in blocks of rows. It packs keys
 * and values into panels of 32 columns, the layout that `tile` multiplies by:
 *
 *   k_packed [columns / 32][D][32]     v_packed [D / 32][columns][32]     every segment begins a panel, zero-padded at its end
 *
 * The functions return 0, or 1 if memory ran out; then their results are not valid.
 */
#include "matmul.h"

#define BLOCK (4 * TILE) /* queries at a time */

typedef struct {
    const long *trees, *segments;
    long count, heads, kv_heads, width;
    float scaling;
} Forest;

/* Sizes of the structures, which ctypes lays out by itself (abi.py); Gradients' stands below. */
const long sizeof_Forest = sizeof(Forest);

static long round_up(long n)
{
    return (n + PANEL - 1) / PANEL * PANEL;
}

/* Each segment of a tree, and the column where it begins among the tree's packed columns. */
#define FOR_SEGMENTS(t, tree)                                                              \
    for (long segment = (t)->trees[tree], offset = 0; segment < (t)->trees[(tree) + 1];    \
         offset += round_up((t)->segments[2 * segment + 1]), segment++)

/* Packed columns of a tree, each segment padded to whole panels; and of its longest segment. */
static long count_columns(const Forest *t, long tree, long *longest)
{
    long sum = 0;
    *longest = 0;
    for (long segment = t->trees[tree]; segment < t->trees[tree + 1]; segment++) {
        long n = round_up(t->segments[2 * segment + 1]);
        sum += n;
        *longest = n > *longest ? n : *longest;
    }
    return sum;
}

/* rows [n][stride] -> columns from `offset` on of [columns / 32][D][32] */
static void pack_k(float *to, const float *from, long n, long stride, long width, long offset)
{
    to += offset * width;
    memset(to, 0, round_up(n) * width * sizeof(float));
    for (long c = 0; c < n; c++)
        for (long i = 0; i < width; i++)
            to[(c / PANEL * width + i) * PANEL + c % PANEL] = from[c * stride + i];
}

/* rows [n][stride] -> rows from `offset` on of [D / 32][columns][32] */
static void pack_v(float *to, const float *from, long n, long stride, long width, long offset, long columns)
{
    long n_zeroed = round_up(n) < columns - offset ? round_up(n) : columns - offset;
    for (long panel = 0; panel * PANEL < width; panel++) {
        long n_left = width - panel * PANEL < PANEL ? width - panel * PANEL : PANEL;
        float *panel_out = to + (panel * columns + offset) * PANEL;
        memset(panel_out, 0, n_zeroed * PANEL * sizeof(float));
        for (long c = 0; c < n; c++)
            memcpy(panel_out + c * PANEL, from + c * stride + panel * PANEL, n_left * sizeof(float));
    }
}

/* out [rows][..] = x [rows][x_stride] times one panel; `_add` accumulates. */
static void rows_matmul(float *out, long stride, const float *x, long x_stride, const float *panel, long in, long rows)
{
    for (long row = 0; row < rows; row += TILE)
        tiles(out + row * stride, stride, x + row * x_stride, x_stride, 1, panel, NULL, in, PANEL, STORE,
              rows - row < TILE ? rows - row : TILE);
}

static void rows_matmul_add(float *out, long stride, const float *x, long x_stride, const float *panel, long in, long rows)
{
    for (long row = 0; row < rows; row += TILE)
        tiles(out + row * stride, stride, x + row * x_stride, x_stride, 1, panel, NULL, in, PANEL, ADD,
              rows - row < TILE ? rows - row : TILE);
}

/* out [columns][..] += (x [rows][x_stride])' times one panel [rows][32] */
static void columns_matmul_add(float *out, long stride, const float *x, long x_stride, const float *panel, long rows,
                               long columns)
{
    for (long column = 0; column < columns; column += TILE)
        tiles(out + column * stride, stride, x + column, 1, x_stride, panel, NULL, rows, PANEL, ADD,
              columns - column < TILE ? columns - column : TILE);
}

/* A block of queries: rows [row, row + rows) of a segment. It attends to `base` columns of the prompt (`prompt` of them are
 * tokens, the others padding) and to `self` columns of its own segment, which begin at `offset` among the tree's. */
typedef struct {
    long first, rows, row, base, prompt, self, offset, columns;
} Block;

static Block block_of(const Forest *t, long tree, long segment, long offset, long row, long columns)
{
    long prompt = t->trees[tree], length = t->segments[2 * segment + 1], n_left = length - row;
    Block b = {.first = t->segments[2 * segment] + row, .row = row, .offset = offset, .columns = columns};
    b.rows = n_left < BLOCK ? n_left : BLOCK;
    b.prompt = segment == prompt ? 0 : t->segments[2 * prompt + 1];
    b.base = round_up(b.prompt);
    b.self = round_up(row + b.rows);
    return b;
}

/* Scores out [rows][base + self] = x [rows][D] times the block's columns of `k_packed`. */
static void qk_scores(float *out, const float *x, const float *k_packed, const Block *b, long width)
{
    long stride = b->base + b->self;
    for (long c = 0; c < stride; c += PANEL) {
        long column = c < b->base ? c : c - b->base + b->offset;
        rows_matmul(out + c, stride, x, width, k_packed + column * width, width, b->rows);
    }
}

/* out [rows][padded] = weights x [rows][base + self] times the block's rows of `v_packed`. */
static void pv(float *out, const float *x, const float *v_packed, const Block *b, long padded)
{
    long stride = b->base + b->self;
    memset(out, 0, b->rows * padded * sizeof(float));
    for (long panel = 0; panel * PANEL < padded; panel++) {
        const float *from = v_packed + panel * b->columns * PANEL;
        rows_matmul_add(out + panel * PANEL, padded, x, stride, from, b->base, b->rows);
        rows_matmul_add(out + panel * PANEL, padded, x + b->base, stride, from + b->offset * PANEL, b->self, b->rows);
    }
}

/* Adds a block's part to a gradient of keys or values: out [columns of the tree][padded] += (x [rows][base + self])' times
 * panels [padded / 32][BLOCK][32]. */
static void accumulate_kv_grad(float *out, const float *x, const float *panels, const Block *b, long padded)
{
    long stride = b->base + b->self;
    for (long panel = 0; panel * PANEL < padded; panel++) {
        const float *from = panels + panel * BLOCK * PANEL;
        columns_matmul_add(out + panel * PANEL, padded, x, stride, from, b->rows, b->base);
        columns_matmul_add(out + b->offset * padded + panel * PANEL, padded, x + b->base, stride, from, b->rows, b->self);
    }
}

/* Loads a block's rows of one head, scaled, as rows [rows][D] and, unless NULL, as panels [padded / 32][BLOCK][32]. */
static void load_scaled(float *rows, float *panels, const float *from, const Block *b, long heads, long head, long width,
                        float scaling)
{
    for (long r = 0; r < b->rows; r++)
        for (long i = 0; i < width; i++)
            rows[r * width + i] = from[((b->first + r) * heads + head) * width + i] * scaling;
    if (panels)
        pack_v(panels, rows, b->rows, width, width, 0, BLOCK);
}

/* Sets the scores of columns that a row does not attend to (padding, later tokens) to -inf. */
static void mask(float *logits, const Block *b, long row)
{
    for (long c = b->prompt; c < b->base; c++)
        logits[c] = -INFINITY;
    for (long c = b->row + row + 1; c < b->self; c++)
        logits[b->base + c] = -INFINITY;
}

static int forward_head(const Forest *t, float *out, float *lse, const float *q, const float *k, const float *v, long tree,
                        long kv)
{
    long width = t->width, padded = round_up(width), group = t->heads / t->kv_heads, kv_stride = t->kv_heads * width;
    long longest, columns = count_columns(t, tree, &longest), max_columns = 2 * longest;
    float *k_packed = malloc((columns * (width + padded) + BLOCK * (width + padded + max_columns)) * sizeof(float));
    if (!k_packed)
        return 1;
    float *v_packed = k_packed + columns * width, *q_rows = v_packed + columns * padded, *sum = q_rows + BLOCK * width;
    float *logits = sum + BLOCK * padded;
    FOR_SEGMENTS(t, tree) {
        long first = t->segments[2 * segment], n = t->segments[2 * segment + 1];
        pack_k(k_packed, k + first * kv_stride + kv * width, n, kv_stride, width, offset);
        pack_v(v_packed, v + first * kv_stride + kv * width, n, kv_stride, width, offset, columns);
    }
    for (long head = kv * group; head < (kv + 1) * group; head++)
        FOR_SEGMENTS(t, tree)
            for (long row = 0; row < t->segments[2 * segment + 1]; row += BLOCK) {
                Block b = block_of(t, tree, segment, offset, row, columns);
                long stride = b.base + b.self;
                float totals[BLOCK];
                load_scaled(q_rows, NULL, q, &b, t->heads, head, width, t->scaling);
                qk_scores(logits, q_rows, k_packed, &b, width);
                for (long r = 0; r < b.rows; r++) {
                    float *scores = logits + r * stride, max_value = -INFINITY;
                    mask(scores, &b, r);
#pragma omp simd reduction(max : max_value)
                    for (long c = 0; c < stride; c++)
                        max_value = scores[c] > max_value ? scores[c] : max_value;
                    for (long c = 0; c < stride; c++)
                        scores[c] = exp_nonpositive(scores[c] - max_value);
                    totals[r] = dot(scores, NULL, stride);
                    lse[(b.first + r) * t->heads + head] = max_value + logf(totals[r]);
                }
                pv(sum, logits, v_packed, &b, padded);
                for (long r = 0; r < b.rows; r++)
                    for (long i = 0; i < width; i++)
                        out[((b.first + r) * t->heads + head) * width + i] = sum[r * padded + i] / totals[r];
            }
    free(k_packed);
    return 0;
}

int tree_attention_forward(float *out, float *lse, const float *q, const float *k, const float *v, const Forest *t,
                           int threads)
{
    int failed = 0;
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
    for (long tree = 0; tree < t->count; tree++)
        for (long kv = 0; kv < t->kv_heads; kv++)
            failed |= forward_head(t, out, lse, q, k, v, tree, kv);
    return failed;
}

typedef struct {
    float *dq, *dk, *dv;
    const float *dout, *out, *lse, *q, *k, *v;
} Gradients;

const long sizeof_Gradients = sizeof(Gradients);

static int backward_head(const Forest *t, const Gradients *g, long tree, long kv)
{
    long width = t->width, padded = round_up(width), group = t->heads / t->kv_heads, kv_stride = t->kv_heads * width;
    long longest, columns = count_columns(t, tree, &longest), max_columns = 2 * longest;
    long n_floats = columns * (2 * width + 3 * padded) + BLOCK * (2 * width + 3 * padded + 2 * max_columns);
    float *k_packed = malloc(n_floats * sizeof(float)), *v_packed = k_packed + columns * width;
    if (!k_packed)
        return 1;
    float *k_row_panels = v_packed + columns * width, *dk = k_row_panels + columns * padded, *dv = dk + columns * padded;
    float *q_rows = dv + columns * padded, *dout = q_rows + BLOCK * width, *q_panels = dout + BLOCK * width;
    float *dout_panels = q_panels + BLOCK * padded, *sum = dout_panels + BLOCK * padded, *p = sum + BLOCK * padded;
    float *dp = p + BLOCK * max_columns;
    memset(dk, 0, 2 * columns * padded * sizeof(float));
    FOR_SEGMENTS(t, tree) {
        long first = t->segments[2 * segment], n = t->segments[2 * segment + 1];
        pack_k(k_packed, g->k + first * kv_stride + kv * width, n, kv_stride, width, offset);
        pack_k(v_packed, g->v + first * kv_stride + kv * width, n, kv_stride, width, offset);
        pack_v(k_row_panels, g->k + first * kv_stride + kv * width, n, kv_stride, width, offset, columns);
    }
    for (long head = kv * group; head < (kv + 1) * group; head++)
        FOR_SEGMENTS(t, tree)
            for (long row = 0; row < t->segments[2 * segment + 1]; row += BLOCK) {
                Block b = block_of(t, tree, segment, offset, row, columns);
                long stride = b.base + b.self;
                load_scaled(q_rows, q_panels, g->q, &b, t->heads, head, width, t->scaling);
                load_scaled(dout, dout_panels, g->dout, &b, t->heads, head, width, 1.0f);
                qk_scores(p, q_rows, k_packed, &b, width);
                qk_scores(dp, dout, v_packed, &b, width);
                for (long r = 0; r < b.rows; r++) {
                    float *scores = p + r * stride, *grad = dp + r * stride;
                    const float *out = g->out + ((b.first + r) * t->heads + head) * width;
                    float lse = g->lse[(b.first + r) * t->heads + head];
                    float dout_out = dot(dout + r * width, out, width);
                    mask(scores, &b, r);
                    for (long c = 0; c < stride; c++) {
                        scores[c] = exp_nonpositive(scores[c] - lse);
                        grad[c] = scores[c] * (grad[c] - dout_out);
                    }
                }
                accumulate_kv_grad(dv, p, dout_panels, &b, padded);
                accumulate_kv_grad(dk, dp, q_panels, &b, padded);
                pv(sum, dp, k_row_panels, &b, padded);
                for (long r = 0; r < b.rows; r++)
                    for (long i = 0; i < width; i++)
                        g->dq[((b.first + r) * t->heads + head) * width + i] = sum[r * padded + i] * t->scaling;
            }
    FOR_SEGMENTS(t, tree)
        for (long c = 0; c < t->segments[2 * segment + 1]; c++) {
            long to = (t->segments[2 * segment] + c) * kv_stride + kv * width;
            memcpy(g->dk + to, dk + (offset + c) * padded, width * sizeof(float));
            memcpy(g->dv + to, dv + (offset + c) * padded, width * sizeof(float));
        }
    free(k_packed);
    return 0;
}

int tree_attention_backward(const Gradients *g, const Forest *t, int threads)
{
    int failed = 0;
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
    for (long tree = 0; tree < t->count; tree++)
        for (long kv = 0; kv < t->kv_heads; kv++)
            failed |= backward_head(t, g, tree, kv);
    return failed;
}
