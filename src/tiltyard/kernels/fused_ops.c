/* Passes over activations, forward and backward, in float32 (passes.py calls them, kernels.py compiles them): what stands
 * between a decoder's products. torch makes four to ten calls of each, with a new array after every one.
 *
 * Rows are shared among the threads; what is added up over rows is added up in chunks of CHUNK rows and the chunks in their
 * order, so that a result does not depend on the number of threads.
 */
#include "matmul.h"

#define CHUNK 64

INLINE float sigmoid(float x)
{
    float e = exponential(x < 0 ? x : -x);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

/* ------------------------------------------------------------------------------------------------ RMSNorm */

void norm(float *out, const float *x, const float *weight, long rows, long d, float eps, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++)
        norm_row(out + row * d, x + row * d, weight, d, eps);
}

/* With s = 1 / sqrt(mean x^2 + eps) and y = x s w:  dx += s w dy - x s^3 / d sum(w dy x),  dw = sum over rows of dy x s. */
void norm_slope(float *dx, float *dweight, const float *dout, const float *x, const float *weight, long rows, long d,
                float eps, int threads)
{
    long chunks = (rows + CHUNK - 1) / CHUNK;
    float *sums = calloc(chunks * d + 1, sizeof(float));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long chunk = 0; chunk < chunks; chunk++) {
        float weighted[d], sum[d];
        memset(sum, 0, sizeof sum);
        for (long row = chunk * CHUNK; row < rows && row < (chunk + 1) * CHUNK; row++) {
            const float *restrict in = x + row * d, *restrict slope = dout + row * d;
            float *restrict to = dx + row * d, scale = 1.0f / sqrtf(sum_up(in, in, d) / d + eps);
            for (long i = 0; i < d; i++)
                weighted[i] = slope[i] * weight[i];
            float back = scale * scale * scale / d * sum_up(weighted, in, d);
            for (long i = 0; i < d; i++) {
                to[i] += scale * weighted[i] - back * in[i];
                sum[i] += slope[i] * in[i] * scale;
            }
        }
        memcpy(sums + chunk * d, sum, sizeof sum);
    }
    memset(dweight, 0, d * sizeof(float));
    for (long chunk = 0; chunk < chunks; chunk++)
        for (long i = 0; i < d; i++)
            dweight[i] += sums[chunk * d + i];
    free(sums);
}

/* ------------------------------------------------------------------------------------------------ positions */

/* x [tokens][heads][width] in place: pairs (i, i + width / 2) turned by their token's angles [tokens][width], or back. */
void turn(float *x, const float *cosines, const float *sines, long tokens, long heads, long width, int back, int threads)
{
    long half = width / 2;
    float sign = back ? -1.0f : 1.0f;
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

/* ------------------------------------------------------------------------------------------------ gates */

/* out = silu(gate) * up */
void gated(float *out, const float *gate, const float *up, long n, int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++)
        out[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

/* The same again, and the slopes; dgate may stand where dout does. */
void gated_slope(float *out, float *dgate, float *dup, const float *dout, const float *gate, const float *up, long n,
                 int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++) {
        float share = sigmoid(gate[i]), open = gate[i] * share, slope = dout[i];
        out[i] = open * up[i];
        dup[i] = slope * open;
        dgate[i] = slope * up[i] * (share + open * (1.0f - share));
    }
}

/* ------------------------------------------------------------------------------------------------ log-probabilities */

/* The log of a share, never -inf: 0 times it is 0. What is not a number stays none. */
INLINE float bounded(float log_share)
{
    return log_share > 0 ? 0 : log_share < -1000 ? -1000 : log_share;
}

/* Of each row of logits [rows][vocabulary]: log p(target), the log of the sum of exponentials, and, where there is room for
 * it, the entropy. */
void law(float *logp, float *lse, float *entropy, const float *logits, const long *target, long rows, long vocabulary,
         int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const float *z = logits + row * vocabulary;
        float most = -INFINITY, shares[256], below[256], sum = 0, mean = 0;
#pragma omp simd reduction(max : most)
        for (long v = 0; v < vocabulary; v++)
            most = z[v] > most ? z[v] : most;
        for (long from = 0; from < vocabulary; from += 256) {
            long n = vocabulary - from < 256 ? vocabulary - from : 256;
            for (long v = 0; v < n; v++) {
                below[v] = bounded(z[from + v] - most);
                shares[v] = exponential(below[v]);
            }
            sum += sum_up(shares, NULL, n);
            mean += entropy ? sum_up(shares, below, n) : 0;
        }
        lse[row] = most + logf(sum);
        logp[row] = z[target[row]] - lse[row];
        if (entropy)
            entropy[row] = logf(sum) - mean / sum;
    }
}

/* Logits become the slope of  dlogp log p(target) + dentropy entropy  with respect to them. */
void law_slope(float *logits, const float *lse, const float *entropy, const float *dlogp, const float *dentropy,
               const long *target, long rows, long vocabulary, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        float *z = logits + row * vocabulary, first = -dlogp[row], all = lse[row];
        if (dentropy) {
            float second = -dentropy[row], had = entropy[row];
            for (long v = 0; v < vocabulary; v++) {
                float log_share = bounded(z[v] - all);
                z[v] = exponential(log_share) * (first + second * (log_share + had));
            }
        } else
            for (long v = 0; v < vocabulary; v++)
                z[v] = exponential(bounded(z[v] - all)) * first;
        z[target[row]] += dlogp[row];
    }
}

/* Of log-laws [rows][vocabulary] and others of rows [wide]: the entropy, and the divergence, sum of p (log p - log q). */
void divergence(float *entropy, float *kl, const float *law, const float *other, long rows, long vocabulary, long wide,
                int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const float *logs = law + row * vocabulary, *others = other + row * wide;
        float shares[256], terms[256], had = 0, far = 0;
        for (long from = 0; from < vocabulary; from += 256) {
            long n = vocabulary - from < 256 ? vocabulary - from : 256;
            for (long v = 0; v < n; v++) {
                float log_share = bounded(logs[from + v]), share = exponential(log_share);
                shares[v] = share * log_share;
                terms[v] = share == 0 ? 0 : share * (logs[from + v] - others[from + v]);
            }
            had -= sum_up(shares, NULL, n);
            far += sum_up(terms, NULL, n);
        }
        entropy[row] = had;
        kl[row] = far;
    }
}

/* ------------------------------------------------------------------------------------------------ slopes of weights */

#define DEEP 256 /* rows at a time: a tile's share of both sides stays in the nearest caches */

/* x [rows][width] -> [width / wide][DEEP][wide], what is left over 0. The threads of the region share it. */
INLINE void lay(float *to, const float *x, long rows, long width, const long wide)
{
    long parts = (width + wide - 1) / wide;
#pragma omp for schedule(static)
    for (long part = 0; part < parts; part++) {
        long left = width - part * wide < wide ? width - part * wide : wide;
        for (long row = 0; row < rows; row++) {
            float *into = to + (part * DEEP + row) * wide;
            const float *from = x + row * width + part * wide;
            if (left == wide) {
                memcpy(into, from, wide * sizeof(float)); /* of a known size: no call */
                continue;
            }
            memset(into, 0, wide * sizeof(float));
            memcpy(into, from, left * sizeof(float));
        }
    }
}

/* slope [out][in] += sum over rows of dout[row][..] x[row][..]: few numbers, each a sum over all rows, both sides lying the
 * wrong way for a library's product, which copies them first. */
void weight_slope(float *slope, const float *dout, const float *x, long rows, long out, long in, int threads)
{
    long panels = (in + PANEL - 1) / PANEL, bands = (out + TILE - 1) / TILE;
    float *across = malloc((panels * PANEL + bands * TILE) * DEEP * sizeof(float)), *down = across + panels * PANEL * DEEP;
#pragma omp parallel num_threads(threads)
    for (long from = 0; from < rows; from += DEEP) {
        long n = rows - from < DEEP ? rows - from : DEEP;
        lay(across, x + from * in, n, in, PANEL);
        lay(down, dout + from * out, n, out, TILE);
#pragma omp for collapse(2) schedule(static)
        for (long band = 0; band < bands; band++)
            for (long panel = 0; panel < panels; panel++) {
                long left = in - panel * PANEL < PANEL ? in - panel * PANEL : PANEL;
                long high = out - band * TILE < TILE ? out - band * TILE : TILE;
                tiles(slope + band * TILE * in + panel * PANEL, in, down + band * TILE * DEEP, 1, TILE,
                      across + panel * PANEL * DEEP, NULL, n, left, ADD, high);
            }
    }
    free(across);
}
