/* Fused elementwise and reduction ops of a decoder, forward and backward, in float32 (called by fused_ops.py): RMSNorm,
 * rotary positions, SwiGLU, log-softmax and its gradient, KL and entropy, gradients of weights. torch takes four to ten calls
 * for each, with a new array after every one.
 *
 * Rows are divided among the threads. Sums over rows are made in chunks of CHUNK rows and the chunks added in their order, so
 * a result does not depend on the number of threads.
 *
 * Functions that allocate return 0, or 1 if memory ran out; then their results are not valid.
 */
#include "matmul.h"

#define CHUNK 64

INLINE float sigmoid(float x)
{
    float e = exp_nonpositive(x < 0 ? x : -x);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

/* ------------------------------------------------------------------------------------------------ RMSNorm */

void rms_norm(float *out, const float *x, const float *weight, long rows, long d, float eps, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++)
        rms_norm_row(out + row * d, x + row * d, weight, d, eps);
}

/* With s = 1 / sqrt(mean x^2 + eps) and y = x s w:  dx += s w dy - x s^3 / d sum(w dy x),  dw = sum over rows of dy x s. */
int rms_norm_backward(float *dx, float *dweight, const float *dout, const float *x, const float *weight, long rows, long d,
                      float eps, int threads)
{
    long chunks = (rows + CHUNK - 1) / CHUNK;
    float *sums = calloc(chunks * d + 1, sizeof(float));
    if (!sums)
        return 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long chunk = 0; chunk < chunks; chunk++) {
        float weighted[d], sum[d];
        memset(sum, 0, sizeof sum);
        for (long row = chunk * CHUNK; row < rows && row < (chunk + 1) * CHUNK; row++) {
            const float *restrict in = x + row * d, *restrict grad = dout + row * d;
            float *restrict to = dx + row * d, scale = 1.0f / sqrtf(dot(in, in, d) / d + eps);
            for (long i = 0; i < d; i++)
                weighted[i] = grad[i] * weight[i];
            float coefficient = scale * scale * scale / d * dot(weighted, in, d);
            for (long i = 0; i < d; i++) {
                to[i] += scale * weighted[i] - coefficient * in[i];
                sum[i] += grad[i] * in[i] * scale;
            }
        }
        memcpy(sums + chunk * d, sum, sizeof sum);
    }
    memset(dweight, 0, d * sizeof(float));
    for (long chunk = 0; chunk < chunks; chunk++)
        for (long i = 0; i < d; i++)
            dweight[i] += sums[chunk * d + i];
    free(sums);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ rotary positions */

/* Rotates x [tokens][heads][width] in place: pairs (i, i + width / 2) by their token's angles [tokens][width]; `inverse`
 * rotates back, which is the gradient. */
void apply_rope(float *x, const float *cosines, const float *sines, long tokens, long heads, long width, int inverse,
                int threads)
{
    long half = width / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            const float *cosine = cosines + token * width, *sine = sines + token * width;
            float *low = x + (token * heads + head) * width, *high = low + half;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                float a = low[i], b = high[i], s = sign * sine[i];
                low[i] = a * cosine[i] - b * s;
                high[i] = b * cosine[i] + a * s;
            }
        }
}

/* ------------------------------------------------------------------------------------------------ SwiGLU */

/* out = silu(gate) * up */
void swiglu(float *out, const float *gate, const float *up, long n, int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++)
        out[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

/* The forward result again, and the gradients of both inputs; dgate and dout may be one array. */
void swiglu_backward(float *out, float *dgate, float *dup, const float *dout, const float *gate, const float *up, long n,
                     int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++) {
        float s = sigmoid(gate[i]), silu_gate = gate[i] * s, grad = dout[i];
        out[i] = silu_gate * up[i];
        dup[i] = grad * silu_gate;
        dgate[i] = grad * up[i] * (s + silu_gate * (1.0f - s));
    }
}

/* ------------------------------------------------------------------------------------------------ log-probabilities */

/* A log-probability in [-1000, 0], so that p log p is 0 where p is 0. NaN stays NaN. */
INLINE float clamp_log_prob(float log_prob)
{
    return log_prob > 0 ? 0 : log_prob < -1000 ? -1000 : log_prob;
}

/* Per row of logits [rows][vocabulary]: log p(target), the log-sum-exp, and the entropy unless it is NULL. */
void log_softmax_nll(float *logp, float *lse, float *entropy, const float *logits, const long *target, long rows,
                     long vocabulary, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const float *z = logits + row * vocabulary;
        float max_value = -INFINITY, probs[256], log_probs[256], sum = 0, mean = 0;
#pragma omp simd reduction(max : max_value)
        for (long v = 0; v < vocabulary; v++)
            max_value = z[v] > max_value ? z[v] : max_value;
        for (long from = 0; from < vocabulary; from += 256) {
            long n = vocabulary - from < 256 ? vocabulary - from : 256;
            for (long v = 0; v < n; v++) {
                log_probs[v] = clamp_log_prob(z[from + v] - max_value);
                probs[v] = exp_nonpositive(log_probs[v]);
            }
            sum += dot(probs, NULL, n);
            mean += entropy ? dot(probs, log_probs, n) : 0;
        }
        lse[row] = max_value + logf(sum);
        logp[row] = z[target[row]] - lse[row];
        if (entropy)
            entropy[row] = logf(sum) - mean / sum;
    }
}

/* Overwrites logits with the gradient of  dlogp log p(target) + dentropy entropy  with respect to them. */
void log_softmax_nll_backward(float *logits, const float *lse, const float *entropy, const float *dlogp,
                              const float *dentropy, const long *target, long rows, long vocabulary, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        float *z = logits + row * vocabulary, first = -dlogp[row], row_lse = lse[row];
        if (dentropy) {
            float second = -dentropy[row], row_entropy = entropy[row];
            for (long v = 0; v < vocabulary; v++) {
                float log_prob = clamp_log_prob(z[v] - row_lse);
                z[v] = exp_nonpositive(log_prob) * (first + second * (log_prob + row_entropy));
            }
        } else
            for (long v = 0; v < vocabulary; v++)
                z[v] = exp_nonpositive(clamp_log_prob(z[v] - row_lse)) * first;
        z[target[row]] += dlogp[row];
    }
}

/* Per row of log-probs log p [rows][vocabulary] and log q [rows][other_vocabulary]: the entropy of p, and KL(p || q), the sum
 * of p (log p - log q). */
void kl_and_entropy(float *entropy, float *kl, const float *logp, const float *logq, long rows, long vocabulary,
                    long other_vocabulary, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const float *logp_row = logp + row * vocabulary, *logq_row = logq + row * other_vocabulary;
        float probs[256], terms[256], row_entropy = 0, row_kl = 0;
        for (long from = 0; from < vocabulary; from += 256) {
            long n = vocabulary - from < 256 ? vocabulary - from : 256;
            for (long v = 0; v < n; v++) {
                float log_prob = clamp_log_prob(logp_row[from + v]), prob = exp_nonpositive(log_prob);
                probs[v] = prob * log_prob;
                terms[v] = prob == 0 ? 0 : prob * (logp_row[from + v] - logq_row[from + v]);
            }
            row_entropy -= dot(probs, NULL, n);
            row_kl += dot(terms, NULL, n);
        }
        entropy[row] = row_entropy;
        kl[row] = row_kl;
    }
}

/* ------------------------------------------------------------------------------------------------ gradients of weights */

#define DEPTH 256 /* rows at a time: a tile's part of both factors stays in the L1 and L2 caches */

/* x [rows][width] -> panels [width / panel_width][DEPTH][panel_width], zero-padded. All threads of a region call it. */
INLINE void pack(float *to, const float *x, long rows, long width, const long panel_width)
{
    long parts = (width + panel_width - 1) / panel_width;
#pragma omp for schedule(static)
    for (long part = 0; part < parts; part++) {
        long n_columns = width - part * panel_width < panel_width ? width - part * panel_width : panel_width;
        for (long row = 0; row < rows; row++) {
            float *to_row = to + (part * DEPTH + row) * panel_width;
            const float *from = x + row * width + part * panel_width;
            if (n_columns == panel_width) {
                memcpy(to_row, from, panel_width * sizeof(float)); /* a constant size: inlined */
                continue;
            }
            memset(to_row, 0, panel_width * sizeof(float));
            memcpy(to_row, from, n_columns * sizeof(float));
        }
    }
}

/* grad [out][in] += dout' x: few results, each a sum over all rows. Both factors are transposed for a BLAS product, which
 * copies them first; here they are packed in blocks of DEPTH rows. */
int weight_grad(float *grad, const float *dout, const float *x, long rows, long out, long in, int threads)
{
    long panels = (in + PANEL - 1) / PANEL, bands = (out + TILE - 1) / TILE;
    float *x_packed = malloc((panels * PANEL + bands * TILE) * DEPTH * sizeof(float));
    float *dout_packed = x_packed + panels * PANEL * DEPTH;
    if (!x_packed)
        return 1;
#pragma omp parallel num_threads(threads)
    for (long from = 0; from < rows; from += DEPTH) {
        long n = rows - from < DEPTH ? rows - from : DEPTH;
        pack(x_packed, x + from * in, n, in, PANEL);
        pack(dout_packed, dout + from * out, n, out, TILE);
#pragma omp for collapse(2) schedule(static)
        for (long band = 0; band < bands; band++)
            for (long panel = 0; panel < panels; panel++) {
                long n_columns = in - panel * PANEL < PANEL ? in - panel * PANEL : PANEL;
                long n_rows = out - band * TILE < TILE ? out - band * TILE : TILE;
                tiles(grad + band * TILE * in + panel * PANEL, in, dout_packed + band * TILE * DEPTH, 1, TILE,
                      x_packed + panel * PANEL * DEPTH, NULL, n, n_columns, ADD, n_rows);
            }
    }
    free(x_packed);
    return 0;
}
