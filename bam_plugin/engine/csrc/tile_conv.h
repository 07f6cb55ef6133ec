/* The float convolution of a tile: one chain of fused multiply-adds per output, over rows, columns, channels; included by
 * tile_ops.h. */
#include "tile.h"

typedef struct {
    const float *rows[MAX_KERNEL], *weights, *bias; /* weights: (steps, vectors * BAM_LANES) of the current chunk */
    int64_t pixel, column, out_stride;              /* floats from one pixel, and from one tap, to the next */
    int kernel, columns, run;                       /* taps in a row are `columns` times `run` floats in one piece */
    const float *rows2[MAX_KERNEL];                 /* a second map, whose channels follow those of the first one */
    int64_t pixel2, column2;
    int run2;         /* 0 where there is none */
    int count, lanes; /* lanes: output channels from the chunk's first one on */
    float *out;
} conv_t;

/* `run` floats of one tap, or of neighbouring taps, onto the sums of some pixels. Returns the weights that follow. */
INLINE const float *conv_run(const float *in, int64_t pixel, int run, const float *weights, VF (*sum)[4],
                             const int vectors, const int pixels) {
    for (int j = 0; j < run; j++, weights += vectors * BAM_LANES) {
        VF w[4];
    UNROLL for (int v = 0; v < vectors; v++) w[v] = vf_load(weights + v * BAM_LANES);
        UNROLL for (int p = 0; p < pixels; p++) {
            const VF a = vf_set1(in[p * pixel + j]);
            UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = vf_fma(a, w[v], sum[p][v]);
        }
    }
    return weights;
}

INLINE void conv_block(const conv_t *k, int first, const int vectors, const int pixels) {
    VF sum[16][4];
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = vf_load(k->bias + v * BAM_LANES);
    const float *weights = k->weights;
    for (int i = 0; i < k->kernel; i++)
        for (int column = 0; column < k->columns; column++) {
            const float *in = k->rows[i] + first * k->pixel + column * k->column;
            weights = conv_run(in, k->pixel, k->run, weights, sum, vectors, pixels);
            if (k->run2) {
                in = k->rows2[i] + first * k->pixel2 + column * k->column2;
                weights = conv_run(in, k->pixel2, k->run2, weights, sum, vectors, pixels);
            }
        }
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float *out = k->out + (first + p) * k->out_stride + v * BAM_LANES;
            if (k->lanes >= (v + 1) * BAM_LANES)
                vf_store(out, sum[p][v]);
            else {
                float kept[BAM_LANES];
                vf_store(kept, sum[p][v]);
                for (int l = 0; l < k->lanes - v * BAM_LANES; l++) out[l] = kept[l];
            }
        }
}

#define CONV_CHUNK(V)                                                                          \
    NOINLINE void conv_chunk_##V(const conv_t *k) {                                            \
        int p = 0;                                                                             \
        for (; p + BAM_PIXELS(V) <= k->count; p += BAM_PIXELS(V)) conv_block(k, p, V, BAM_PIXELS(V)); \
        for (; p < k->count; p++) conv_block(k, p, V, 1);                                      \
    }
CONV_CHUNK(1)
CONV_CHUNK(2)
#if BAM_MAX_VECTORS >= 4
CONV_CHUNK(3)
CONV_CHUNK(4)
#endif

/* Few outputs from many channels, such as the last convolution of an upsampler, would leave most lanes of a register
 * idle. Here the lanes are neighbouring pixels: each row of the kernel is turned into planes of one channel first. Every
 * output is the same chain of operations as above. */
#define FEW_OUT 4
#define FEW_IN 64
#define FEW_PITCH 64 /* floats of a plane: a tile and its neighbours */
#define FEW_VECTORS 3

INLINE int takes_few(const bam_op *op) {
    return !op->i1 && op->i2 == 1 && op->out_channels <= FEW_OUT && op->in_channels >= GROUP && op->in_channels <= FEW_IN &&
           op->in_channels % GROUP == 0 && op->kernel > 1 && op->kernel <= FEW_PITCH - MAX_TILE;
}

typedef float four_t __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t pick_t __attribute__((vector_size(16)));
#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (pick_t){i, j, k, l})
#endif

/* planes[c][p] = x[p][c] */
INLINE void to_planes(const float *x, int pixels, int channels, float (*planes)[FEW_PITCH]) {
    int p = 0;
    for (; p + 4 <= pixels; p += 4) {
        /* The next tile: the largest maps come from far away. */
        for (int b = 0; b < 4 * channels; b += 16) __builtin_prefetch(x + (p + MAX_TILE) * channels + b);
        for (int c = 0; c < channels; c += 4) {
            const float *at = x + p * channels + c;
            const four_t r0 = *(const four_t *)at, r1 = *(const four_t *)(at + channels);
            const four_t r2 = *(const four_t *)(at + 2 * channels), r3 = *(const four_t *)(at + 3 * channels);
            const four_t a = PICK(r0, r1, 0, 4, 1, 5), b = PICK(r2, r3, 0, 4, 1, 5);
            const four_t d = PICK(r0, r1, 2, 6, 3, 7), e = PICK(r2, r3, 2, 6, 3, 7);
            *(four_t *)(planes[c] + p) = PICK(a, b, 0, 1, 4, 5);
            *(four_t *)(planes[c + 1] + p) = PICK(a, b, 2, 3, 6, 7);
            *(four_t *)(planes[c + 2] + p) = PICK(d, e, 0, 1, 4, 5);
            *(four_t *)(planes[c + 3] + p) = PICK(d, e, 2, 3, 6, 7);
        }
    }
    for (; p < pixels; p++)
        for (int c = 0; c < channels; c++) planes[c][p] = x[p * channels + c];
}

/* One row of the kernel onto the sums of up to FEW_VECTORS registers of pixels. */
INLINE void few_block(float (*planes)[FEW_PITCH], const float *weights, int kernel, int channels,
                      float (*sums)[FEW_PITCH], int first, const int outputs, const int vectors) {
    VF sum[FEW_OUT][FEW_VECTORS];
    UNROLL for (int o = 0; o < outputs; o++)
        UNROLL for (int v = 0; v < vectors; v++) sum[o][v] = vf_load(sums[o] + first + v * BAM_LANES);
    for (int column = 0; column < kernel; column++)
        for (int c = 0; c < channels; c++, weights += BAM_LANES) {
            VF x[FEW_VECTORS];
            UNROLL for (int v = 0; v < vectors; v++) x[v] = vf_load(planes[c] + first + column + v * BAM_LANES);
            UNROLL for (int o = 0; o < outputs; o++) {
                const VF w = vf_set1(weights[o]);
                UNROLL for (int v = 0; v < vectors; v++) sum[o][v] = vf_fma(x[v], w, sum[o][v]);
            }
        }
    UNROLL for (int o = 0; o < outputs; o++)
        UNROLL for (int v = 0; v < vectors; v++) vf_store(sums[o] + first + v * BAM_LANES, sum[o][v]);
}

INLINE void few_rows(const float *const *rows, const bam_op *op, float (*sums)[FEW_PITCH], int count,
                     const int outputs) {
    float planes[FEW_IN][FEW_PITCH] __attribute__((aligned(64)));
    const int channels = op->in_channels, kernel = op->kernel;
    memset(planes, 0, sizeof planes[0] * channels); /* lanes behind the last pixel are computed, too */
    for (int i = 0; i < kernel; i++) {
        const float *weights = (const float *)op->p0 + (int64_t)i * kernel * channels * BAM_LANES;
        int first = 0;
        to_planes(rows[i], count + kernel - 1, channels, planes);
        for (; first < count && first + FEW_VECTORS * BAM_LANES <= MAX_TILE; first += FEW_VECTORS * BAM_LANES)
            few_block(planes, weights, kernel, channels, sums, first, outputs, FEW_VECTORS);
        for (; first < count; first += BAM_LANES)
            few_block(planes, weights, kernel, channels, sums, first, outputs, 1);
    }
}

NOINLINE void conv_few(const tile_t *t, const bam_op *op) {
    const uint8_t *bytes[MAX_KERNEL];
    const float *rows[MAX_KERNEL];
    float sums[FEW_OUT][FEW_PITCH];
    const int outputs = op->out_channels;
    locate_rows(t, op->in0, op->kernel, 0, bytes);
    for (int i = 0; i < op->kernel; i++) rows[i] = (const float *)bytes[i];
    for (int o = 0; o < outputs; o++)
        for (int p = 0; p < FEW_PITCH; p++) sums[o][p] = ((const float *)op->p1)[o];
    switch (outputs) {
    case 1: few_rows(rows, op, sums, t->count, 1); break;
    case 2: few_rows(rows, op, sums, t->count, 2); break;
    case 3: few_rows(rows, op, sums, t->count, 3); break;
    default: few_rows(rows, op, sums, t->count, 4);
    }
    float *out = locate(t, op->out0);
    for (int p = 0; p < t->count; p++)
        for (int o = 0; o < outputs; o++) *out++ = sums[o][p];
}

/* The rows of an operand; returns floats from one pixel of the result to the next one's place in the operand. */
INLINE int64_t conv_rows(const tile_t *t, const bam_op *op, bam_ref ref, int in_stride, const float **rows) {
    const uint8_t *bytes[MAX_KERNEL];
    const int stride = op->i2;
    tile_t at = *t; /* where the operand is read */
    at.y *= stride, at.x *= stride;
    const int64_t pixel = locate_rows(&at, ref, op->kernel, 4 * in_stride, bytes) / 4;
    for (int i = 0; i < op->kernel; i++) rows[i] = (const float *)bytes[i];
    return pixel * stride;
}

/* All output channels, register block by register block; `lanes` numbers of a pixel are written. */
INLINE void conv_all(conv_t *k, const float *bias, float *out, int out_channels, int lanes, int64_t steps) {
    for (int block = 0, blocks = blocks_of(out_channels), vectors; block < blocks; block += vectors) {
        vectors = blocks - block < BAM_MAX_VECTORS ? blocks - block : BAM_MAX_VECTORS;
        k->bias = bias + block * BAM_LANES;
        k->out = out + block * BAM_LANES;
        k->lanes = lanes - block * BAM_LANES;
        switch (vectors) {
        case 1: conv_chunk_1(k); break;
        case 2: conv_chunk_2(k); break;
#if BAM_MAX_VECTORS >= 4
        case 3: conv_chunk_3(k); break;
        case 4: conv_chunk_4(k); break;
#endif
        }
        k->weights += steps * vectors * BAM_LANES;
    }
}

/* p0 weights, p1 bias; i1 channels of in1, which follow those of in0, or 0; i2 stride */
NOINLINE void conv_op(const tile_t *t, const bam_op *op) {
    if (takes_few(op)) { conv_few(t, op); return; }
    const int in_stride = stride_of(op->in_channels), out_stride = stride_of(op->out_channels);
    const int dense = in_stride == op->in_channels && !op->i1; /* else the zeros behind each pixel are passed over */
    conv_t k = {.kernel = op->kernel, .count = t->count, .weights = op->p0, .out_stride = out_stride};
    k.pixel = conv_rows(t, op, op->in0, in_stride, k.rows);
    k.column = in_stride;
    k.columns = dense ? 1 : op->kernel;
    k.run = dense ? op->kernel * in_stride : op->in_channels;
    if (op->i1) {
        k.column2 = stride_of(op->i1), k.run2 = op->i1;
        k.pixel2 = conv_rows(t, op, op->in1, stride_of(op->i1), k.rows2);
    }
    const int64_t steps = (int64_t)op->kernel * op->kernel * (op->in_channels + op->i1);
    conv_all(&k, op->p1, locate(t, op->out0), op->out_channels, out_stride, steps);
}

/* Numbers per pixel of weights for so many channels: whole registers, and whole pixels. */
INLINE int padded_of(int channels) {
    const int lanes = blocks_of(channels) * BAM_LANES, stride = stride_of(channels);
    return lanes > stride ? lanes : stride;
}

/* Channels beyond the last one of a pixel are zero. */
INLINE void clear_padding(float *out, int count, int channels) {
    const int stride = stride_of(channels);
    for (int p = 0; stride > channels && p < count; p++)
        for (int c = channels; c < stride; c++) out[p * stride + c] = 0;
}

/* i0 groups, each a convolution of its own on neighbouring channels; p0 weights and p1 bias group by group; i2 stride */
NOINLINE void grouped_conv_op(const tile_t *t, const bam_op *op) {
    const int inputs = op->in_channels / op->i0, outputs = op->out_channels / op->i0;
    const int in_stride = stride_of(op->in_channels);
    conv_t k = {.kernel = op->kernel, .count = t->count, .weights = op->p0, .out_stride = stride_of(op->out_channels)};
    k.pixel = conv_rows(t, op, op->in0, in_stride, k.rows);
    k.column = in_stride, k.columns = op->kernel, k.run = inputs;
    const int64_t steps = (int64_t)op->kernel * op->kernel * inputs;
    float *out = locate(t, op->out0);
    for (int g = 0; g < op->i0; g++) {
        const float *bias = (const float *)op->p1 + (int64_t)g * padded_of(outputs);
        conv_all(&k, bias, out + g * outputs, outputs, outputs, steps);
        for (int i = 0; i < op->kernel; i++) k.rows[i] += inputs;
    }
    clear_padding(out, t->count, op->out_channels);
}

/* One register of channels for all pixels. `kept`: the nine filters of 3x3 taps stay in registers. */
INLINE void depthwise_block(const float *const *rows, const float *weights, const float *bias, float *out, int count,
                            int64_t pixel, int stride, int padded, const int kernel, const int kept) {
    const VF start = vf_load(bias);
    VF w[9];
    if (kept) UNROLL for (int tap = 0; tap < 9; tap++) w[tap] = vf_load(weights + tap * padded);
    for (int p = 0; p < count; p++) {
        VF sum = start;
        for (int i = 0; i < kernel; i++)
            for (int j = 0; j < kernel; j++) {
                const VF x = vf_load(rows[i] + p * pixel + j * stride);
                sum = vf_fma(x, kept ? w[3 * i + j] : vf_load(weights + (int64_t)(kernel * i + j) * padded), sum);
            }
        vf_store(out + (int64_t)p * stride, sum);
    }
}

/* As many groups as channels; p0 weights (taps, channels padded to registers), p1 bias; i2 stride */
NOINLINE void depthwise_conv_op(const tile_t *t, const bam_op *op) {
    const int stride = stride_of(op->in_channels), kernel = op->kernel, padded = padded_of(op->in_channels);
    const float *rows[MAX_KERNEL], *weights = op->p0, *bias = op->p1;
    const int64_t pixel = conv_rows(t, op, op->in0, stride, rows);
    float *out = locate(t, op->out0);
    if (stride < GROUP) { /* pixels are narrower than a register */
        for (int p = 0; p < t->count; p++)
            for (int c = 0; c < stride; c++) {
                float sum = bias[c];
                for (int i = 0; i < kernel; i++)
                    for (int j = 0; j < kernel; j++)
                        sum = fmaf(rows[i][p * pixel + j * stride + c], weights[(kernel * i + j) * padded + c], sum);
                out[p * stride + c] = sum;
            }
        return;
    }
    for (int c = 0; c < stride; c += BAM_LANES) {
        if (kernel == 3)
            depthwise_block(rows, weights + c, bias + c, out + c, t->count, pixel, stride, padded, 3, 1);
        else
            depthwise_block(rows, weights + c, bias + c, out + c, t->count, pixel, stride, padded, kernel, 0);
        for (int i = 0; i < kernel; i++) rows[i] += BAM_LANES;
    }
}
