/* The element-wise passes of bam_plugin/nn/fast/fused.py, each over its maps once.
 *
 * A map is float32 or bfloat16 (`half`) in the order (N, H, W, C): `pixels` rows of `channels` values. Parameters of
 * channels are float32. Threads share the pixels in equal parts, and sums over pixels add up the parts in their order: a
 * result depends on the number of threads but not on their timing. Threads come from the OpenMP that PyTorch has loaded,
 * see native.py. Nothing here checks what comes in.
 *
 * Sixteen channels are worked on at a time, as vectors of the compiler (GCC, Clang): `channels` is a multiple of 16.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define ABI_VERSION 1

/* One copy of a function for each of these, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define CLONES __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#else
#define CLONES __attribute__((noinline))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CLIP = 0, IDENTITY = 1, POLYNOMIAL = 2 }; /* estimators; the numbers are shared with native.py */
enum { RUN = 256 };                              /* pixels whose sums are kept in float32 */
enum { LANES = 16 };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

#define EACH_BLOCK for (int c = 0; c < channels; c += LANES)

INLINE vf load(const float *from) {
    vf value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(float *to, vf value) { memcpy(to, &value, sizeof value); }

INLINE vf load_map(const void *map, int half, int64_t at) {
    if (!half) return load((const float *)map + at);
    vh bits;
    memcpy(&bits, (const uint16_t *)map + at, sizeof bits);
    return (vf)(__builtin_convertvector(bits, vu) << 16);
}

/* Of values that bfloat16 holds. */
INLINE void store_map(void *map, int half, int64_t at, vf value) {
    if (!half) {
        store((float *)map + at, value);
        return;
    }
    vh bits = __builtin_convertvector((vu)value >> 16, vh);
    memcpy((uint16_t *)map + at, &bits, sizeof bits);
}

INLINE vf where(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf magnitude_of(vf x) { return (vf)((vi)x & 0x7fffffff); }
INLINE vf signs_of(vf x) { return where(x >= 0.0f, (vf){0} + 1.0f, (vf){0} - 1.0f); }
INLINE vf signs_or_zero(vf x) { return where(x > 0.0f, (vf){0} + 1.0f, where(x < 0.0f, (vf){0} - 1.0f, (vf){0})); }

INLINE float sum_of(vf x) {
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

/* BN(x), folded: written once, so that all passes see the same signs. */
INLINE vf normalized(vf x, vf slope, vf shift) { return x * slope + shift; }

/* g times the derivative of the estimator of the sign at v. */
INLINE vf through_sign(vf g, int estimator, vf v) {
    if (estimator == CLIP) return where(magnitude_of(v) <= 1.0f, g, (vf){0});
    if (estimator == POLYNOMIAL) return g * where(magnitude_of(v) < 1.0f, 2.0f - 2.0f * magnitude_of(v), (vf){0});
    return g;
}

/* -- statistics of the batch ----------------------------------------------------------------------------------------- */

/* Adds the sums over the pixels of x - first and its square to `sums` (2, channels). */
INLINE void statistics_block(const float *x, const float *first, double *sums, int64_t begin, int64_t end, int channels,
                             int c) {
    vf total = {0}, square = {0}, origin = load(first + c);
    for (int64_t p = begin; p < end; p++) {
        vf offset = load(x + p * channels + c) - origin;
        total += offset;
        square += offset * offset;
    }
    for (int lane = 0; lane < LANES; lane++) {
        sums[c + lane] += total[lane];
        sums[channels + c + lane] += square[lane];
    }
}

CLONES static void statistics_part(const float *x, const float *first, double *sums, int64_t begin, int64_t end,
                                   int channels) {
    for (int c = 0; c < 2 * channels; c++) sums[c] = 0.0;
    for (int64_t start = begin; start < end; start += RUN) {
        int64_t stop = start + RUN < end ? start + RUN : end;
        EACH_BLOCK statistics_block(x, first, sums, start, stop, channels, c);
    }
}

/* -- signs of the folded normalization ------------------------------------------------------------------------------- */

INLINE void sign_block(const float *x, const float *slope, const float *shift, void *out, int half, int64_t row,
                       int c) {
    vf value = normalized(load(x + row + c), load(slope + c), load(shift + c));
    store_map(out, half, row + c, signs_of(value));
}

CLONES static void signs_part(const float *x, const float *slope, const float *shift, void *out, int half,
                              int64_t begin, int64_t end, int channels) {
    if (half)
        for (int64_t p = begin; p < end; p++) EACH_BLOCK sign_block(x, slope, shift, out, 1, p * channels, c);
    else
        for (int64_t p = begin; p < end; p++) EACH_BLOCK sign_block(x, slope, shift, out, 0, p * channels, c);
}

/* -- scaled sums of signs -------------------------------------------------------------------------------------------- */

INLINE void scale_block(const void *map, int half, const float *scale, float *out, int64_t row, int c) {
    store(out + row + c, load_map(map, half, row + c) * load(scale + c));
}

CLONES static void scale_part(const void *map, int half, const float *scale, float *out, int64_t begin, int64_t end,
                              int channels) {
    if (half)
        for (int64_t p = begin; p < end; p++) EACH_BLOCK scale_block(map, 1, scale, out, p * channels, c);
    else
        for (int64_t p = begin; p < end; p++) EACH_BLOCK scale_block(map, 0, scale, out, p * channels, c);
}

/* -- gradients of Sign(BN(x)) ---------------------------------------------------------------------------------------- */

typedef struct {
    const void *grad; /* of the signs */
    const float *x, *slope, *shift, *mean;
    int half, estimator, channels;
} sign_t;

/* The gradient of BN(x); *offset becomes x - mean. */
INLINE vf norm_gradient(const sign_t *s, int half, int estimator, int64_t row, int c, vf *offset) {
    vf x = load(s->x + row + c);
    *offset = x - load(s->mean + c);
    vf value = normalized(x, load(s->slope + c), load(s->shift + c));
    return through_sign(load_map(s->grad, half, row + c), estimator, value);
}

/* Adds the sums over the pixels of g and g (x - mean), g being the gradient of BN(x), to `sums` (2, channels). */
INLINE void sum_block(const sign_t *s, int half, int estimator, double *sums, int64_t begin, int64_t end, int c) {
    vf total = {0}, moment = {0}, offset;
    for (int64_t p = begin; p < end; p++) {
        vf g = norm_gradient(s, half, estimator, p * s->channels, c, &offset);
        total += g;
        moment += g * offset;
    }
    for (int lane = 0; lane < LANES; lane++) {
        sums[c + lane] += total[lane];
        sums[s->channels + c + lane] += moment[lane];
    }
}

INLINE void sum_rows(const sign_t *s, int half, int estimator, double *sums, int64_t begin, int64_t end) {
    int channels = s->channels;
    for (int64_t start = begin; start < end; start += RUN) {
        int64_t stop = start + RUN < end ? start + RUN : end;
        EACH_BLOCK sum_block(s, half, estimator, sums, start, stop, c);
    }
}

/* The gradient of x: factor (g - less - (x - mean) tilt), parameters of channels in `rows` (3, channels). */
INLINE void input_block(const sign_t *s, int half, int estimator, const float *rows, float *out, int64_t row, int c) {
    vf offset, g = norm_gradient(s, half, estimator, row, c, &offset);
    vf factor = load(rows + c), less = load(rows + s->channels + c);
    vf tilt = load(rows + 2 * s->channels + c);
    store(out + row + c, factor * (g - less - offset * tilt));
}

INLINE void input_rows(const sign_t *s, int half, int estimator, const float *rows, float *out, int64_t begin,
                       int64_t end) {
    int channels = s->channels;
    for (int64_t p = begin; p < end; p++) EACH_BLOCK input_block(s, half, estimator, rows, out, p * channels, c);
}

#define OF_ITS_KIND(call)                        \
    switch (s->estimator * 2 + (s->half != 0)) { \
    case CLIP * 2:                               \
        call(0, CLIP);                           \
        break;                                   \
    case CLIP * 2 + 1:                           \
        call(1, CLIP);                           \
        break;                                   \
    case IDENTITY * 2:                           \
        call(0, IDENTITY);                       \
        break;                                   \
    case IDENTITY * 2 + 1:                       \
        call(1, IDENTITY);                       \
        break;                                   \
    case POLYNOMIAL * 2:                         \
        call(0, POLYNOMIAL);                     \
        break;                                   \
    case POLYNOMIAL * 2 + 1:                     \
        call(1, POLYNOMIAL);                     \
        break;                                   \
    }

CLONES static void sums_part(const sign_t *s, double *sums, int64_t begin, int64_t end) {
    for (int c = 0; c < 2 * s->channels; c++) sums[c] = 0.0;
#define CALL(half, estimator) sum_rows(s, half, estimator, sums, begin, end)
    OF_ITS_KIND(CALL)
#undef CALL
}

CLONES static void input_part(const sign_t *s, const float *rows, float *out, int64_t begin, int64_t end){
#define CALL(half, estimator) input_rows(s, half, estimator, rows, out, begin, end)
    OF_ITS_KIND(CALL)
#undef CALL
}

/* -- the spatial factors of the accumulation ------------------------------------------------------------------------- */

INLINE vf term_of(const float *row, int magnitude) {
    vf value = load(row);
    return magnitude ? magnitude_of(value) : value;
}

INLINE float mean_of(const float *row, int magnitude, int channels) {
    vf sums = {0};
    EACH_BLOCK sums += term_of(row + c, magnitude);
    return sum_of(sums) / (float)channels;
}

INLINE void weigh_rows(const float *x, float scale, float offset, int magnitude, float *out, int64_t begin, int64_t end,
                       int channels) {
    for (int64_t p = begin; p < end; p++) {
        const float *row = x + p * channels;
        float *target = out + p * channels;
        float factor = mean_of(row, magnitude, channels) * scale + offset;
        EACH_BLOCK store(target + c, load(row + c) * factor);
    }
}

CLONES static void weigh_part(const float *x, float scale, float offset, int magnitude, float *out, int64_t begin,
                              int64_t end, int channels) {
    if (magnitude)
        weigh_rows(x, scale, offset, 1, out, begin, end, channels);
    else
        weigh_rows(x, scale, offset, 0, out, begin, end, channels);
}

INLINE vf through_mean(vf x, float grad_mean, int magnitude) {
    return magnitude ? signs_or_zero(x) * grad_mean : (vf){0} + grad_mean;
}

INLINE double weigh_backward_rows(const float *grad, const float *x, float scale, float offset, int magnitude,
                                  float *out, int64_t begin, int64_t end, int channels) {
    double grad_scale = 0.0;
    for (int64_t p = begin; p < end; p++) {
        const float *row = x + p * channels, *given = grad + p * channels;
        float *target = out + p * channels;
        vf products = {0};
        EACH_BLOCK products += load(given + c) * load(row + c);
        float mean = mean_of(row, magnitude, channels), factor = mean * scale + offset, product = sum_of(products);
        grad_scale += (double)product * mean;
        float grad_mean = product * scale / (float)channels;
        EACH_BLOCK {
            vf direct = load(given + c) * factor;
            store(target + c, direct + through_mean(load(row + c), grad_mean, magnitude));
        }
    }
    return grad_scale;
}

CLONES static double weigh_backward_part(const float *grad, const float *x, float scale, float offset, int magnitude,
                                         float *out, int64_t begin, int64_t end, int channels) {
    return magnitude ? weigh_backward_rows(grad, x, scale, offset, 1, out, begin, end, channels)
                     : weigh_backward_rows(grad, x, scale, offset, 0, out, begin, end, channels);
}

/* -- what Python calls ----------------------------------------------------------------------------------------------- */

#define PARTS \
    _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int part = 0; part < threads; part++)
#define BEGIN (pixels * part / threads)
#define END (pixels * (part + 1) / threads)

int bam_training_abi_version(void) { return ABI_VERSION; }

/* Batch normalization of x, folded: x slope + shift. Into mean, inverse_deviation, slope and shift; moves the running
 * statistics. `work` holds (threads, 2, channels) doubles. */
void bam_fold(const float *x, const float *gamma, const float *beta, float *running_mean, float *running_var,
              double momentum, double eps, double *work, float *mean, float *inverse_deviation, float *slope,
              float *shift, int64_t pixels, int channels, int threads) {
    /* Offsets from a value of the channel: squares of a mean far from zero would drown the variance. */
    PARTS statistics_part(x, x, work + (int64_t)part * 2 * channels, BEGIN, END, channels);
    for (int c = 0; c < channels; c++) {
        double total = 0.0, square = 0.0;
        for (int part = 0; part < threads; part++) {
            total += work[(int64_t)part * 2 * channels + c];
            square += work[(int64_t)part * 2 * channels + channels + c];
        }
        double offset = total / (double)pixels, variance = square / (double)pixels - offset * offset;
        if (variance < 0.0) variance = 0.0;
        double center = x[c] + offset, unbiased = variance * (double)pixels / (double)(pixels - 1);
        running_mean[c] = (float)((1.0 - momentum) * running_mean[c] + momentum * center);
        running_var[c] = (float)((1.0 - momentum) * running_var[c] + momentum * unbiased);
        double scale = 1.0 / sqrt(variance + eps);
        mean[c] = (float)center;
        inverse_deviation[c] = (float)scale;
        slope[c] = (float)(gamma[c] * scale);
        shift[c] = (float)(beta[c] - center * gamma[c] * scale);
    }
}

/* out = Sign(x slope + shift). */
void bam_signs(const float *x, const float *slope, const float *shift, void *out, int half, int64_t pixels,
               int channels, int threads) {
    PARTS signs_part(x, slope, shift, out, half, BEGIN, END, channels);
}

/* out = map scale, float32. */
void bam_scale(const void *map, int half, const float *scale, float *out, int64_t pixels, int channels, int threads) {
    PARTS scale_part(map, half, scale, out, BEGIN, END, channels);
}

/* The gradients of y = Sign(BN(x)) with the statistics of the batch, into out, grad_gamma and grad_beta. `work` holds
 * (threads, 2, channels) doubles and `rows` (3, channels) floats. */
void bam_norm_sign_backward(const void *grad, int half, const float *x, const float *slope, const float *shift,
                            const float *mean, const float *inverse_deviation, const float *gamma, int estimator,
                            double *work, float *rows, float *out, float *grad_gamma, float *grad_beta, int64_t pixels,
                            int channels, int threads) {
    sign_t s = {grad, x, slope, shift, mean, half, estimator, channels};
    PARTS sums_part(&s, work + (int64_t)part * 2 * channels, BEGIN, END);
    for (int c = 0; c < channels; c++) {
        double total = 0.0, moment = 0.0, scale = inverse_deviation[c];
        for (int part = 0; part < threads; part++) {
            total += work[(int64_t)part * 2 * channels + c];
            moment += work[(int64_t)part * 2 * channels + channels + c];
        }
        grad_beta[c] = (float)total;
        grad_gamma[c] = (float)(moment * scale);
        rows[c] = (float)(gamma[c] * scale);
        rows[channels + c] = (float)(total / (double)pixels);
        rows[2 * channels + c] = (float)(moment * scale * scale / (double)pixels);
    }
    PARTS input_part(&s, rows, out, BEGIN, END);
}

/* out = x (offset + scale E), E the mean (magnitude) of a pixel. */
void bam_weigh(const float *x, float scale, float offset, int magnitude, float *out, int64_t pixels, int channels,
               int threads) {
    PARTS weigh_part(x, scale, offset, magnitude, out, BEGIN, END, channels);
}

/* The gradient of x into out; returns that of scale. `work` holds `threads` doubles. */
double bam_weigh_backward(const float *grad, const float *x, float scale, float offset, int magnitude, double *work,
                          float *out, int64_t pixels, int channels, int threads) {
    PARTS work[part] = weigh_backward_part(grad, x, scale, offset, magnitude, out, BEGIN, END, channels);
    double total = 0.0;
    for (int part = 0; part < threads; part++) total += work[part];
    return total;
}
