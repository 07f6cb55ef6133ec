/* Convolutions on small integers, exact in any order; included by tile_ops.h.
 *
 * A map of integers holds 16 bits or, where the processor multiplies bytes (op->i0), 8 bits a channel: the value + 128,
 * since that instruction wants one unsigned factor; p2 takes the surplus of 128 times the filter's sum away again. Pixels
 * are padded to a multiple of 16 channels, whose filters are 0, so what stands there does not matter. */
#include "tile.h"

INLINE int64_t int_pixel(const bam_op *op, int channels) { return (int64_t)int_stride(channels) * (op->i0 ? 1 : 2); }

/* fl(value * inverse), limited and rounded to even, as integers of a map. */
INLINE void int_store(uint8_t *out, VF value, VF inverse, VF limit, const int bytes) {
    const VI rounded = vf_round(vf_limit(vf_mul(value, inverse), limit));
    if (bytes)
        vi_store_bytes(out, vi_add(rounded, vi_set1(BAM_BYTE_ZERO)));
    else
        vi_store_halves(out, rounded);
}

/* in0 floats, out0 integers (i0 = 1: bytes); p0 inverse, f0 limit */
NOINLINE void quantize_op(const tile_t *t, const bam_op *op) {
    const int stride = stride_of(op->in_channels), size = op->i0 ? 1 : 2;
    const float *x = locate(t, op->in0), *inverse = op->p0;
    uint8_t *out = locate(t, op->out0);
    const VF limit = vf_set1(op->f0);
    for (int p = 0; p < t->count; p++, x += stride, out += size * stride)
        for (int c = 0; c < stride; c += BAM_LANES)
            if (size == 1)
                int_store(out + c, vf_load(x + c), vf_load(inverse + c), limit, 1);
            else
                int_store(out + 2 * c, vf_load(x + c), vf_load(inverse + c), limit, 0);
}

typedef struct {
    const uint8_t *rows[MAX_KERNEL], *weights; /* weights: (steps, vectors of 4 bytes a lane) of the current chunk */
    const int32_t *start;
    const float *scale, *bias, *inverse;
    float limit;
    int64_t pixel, out_pixel; /* bytes from one pixel, or group of pixels, to the next */
    int kernel, run;          /* steps of 4 bytes in a row of taps */
    int count, lanes, last;   /* lanes: output channels from the chunk's first one on; last: of the last group */
    uint8_t *out;
} int_conv_t;

INLINE int32_t four_bytes(const uint8_t *p) {
    int32_t result;
    memcpy(&result, p, sizeof result);
    return result;
}

INLINE void int_block(const int_conv_t *k, int first, const int vectors, const int pixels, const int bytes) {
    VI sum[16][4];
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = vi_load(k->start + v * BAM_LANES);
    const int32_t *weights = (const int32_t *)k->weights;
    const int64_t pixel = k->pixel;
    for (int i = 0; i < k->kernel; i++) {
        const uint8_t *in = k->rows[i] + first * pixel;
        for (int j = 0; j < k->run; j++, in += 4, weights += vectors * BAM_LANES) {
            VI w[4];
            UNROLL for (int v = 0; v < vectors; v++) w[v] = vi_load(weights + v * BAM_LANES);
            UNROLL for (int p = 0; p < pixels; p++) {
                const VI a = vi_set1(four_bytes(in + p * pixel));
                UNROLL for (int v = 0; v < vectors; v++)
                    sum[p][v] = bytes ? vi_dot_bytes(sum[p][v], a, w[v]) : vi_dot_halves(sum[p][v], a, w[v]);
            }
        }
    }
    const VF limit = vf_set1(k->limit);
    UNROLL for (int v = 0; v < vectors; v++) {
        const int at = v * BAM_LANES;
        const VF scale = vf_load(k->scale + at), bias = vf_load(k->bias + at);
        const VF inverse = k->inverse ? vf_load(k->inverse + at) : scale;
        UNROLL for (int p = 0; p < pixels; p++) {
            const VF value = vf_add(vf_mul(vi_to_vf(sum[p][v]), scale), bias);
            uint8_t *out = k->out + (first + p) * k->out_pixel;
            if (k->inverse)
                int_store(out + at * (bytes ? 1 : 2), value, inverse, limit, bytes);
            else {
                const int lanes = (first + p == k->count - 1 ? k->last : k->lanes) - at;
                if (lanes >= BAM_LANES)
                    vf_store((float *)out + at, value);
                else {
                    float kept[BAM_LANES];
                    vf_store(kept, value);
                    memcpy((float *)out + at, kept, sizeof(float) * lanes);
                }
            }
        }
    }
}

/* How many pixels at once for so many registers of output channels: what fills the register file (with one register 10,
 * the groups of a tile), then 4, then 1. */
#define INT_PIXELS(V) ((V) == 1 ? 10 : BAM_PIXELS(V))
#define INT_CHUNK(V, BYTES)                                                                                 \
    NOINLINE void int_chunk_##V##_##BYTES(const int_conv_t *k) {                                            \
        int p = 0;                                                                                          \
        for (; p + INT_PIXELS(V) <= k->count; p += INT_PIXELS(V)) int_block(k, p, V, INT_PIXELS(V), BYTES); \
        for (; p + 4 <= k->count; p += 4) int_block(k, p, V, 4, BYTES);                                     \
        for (; p < k->count; p++) int_block(k, p, V, 1, BYTES);                                             \
    }
#if BAM_MAX_VECTORS >= 4
#define INT_CHUNKS(BYTES) INT_CHUNK(1, BYTES) INT_CHUNK(2, BYTES) INT_CHUNK(3, BYTES) INT_CHUNK(4, BYTES)
#define INT_CHUNK_TABLE(BYTES) {int_chunk_1_##BYTES, int_chunk_2_##BYTES, int_chunk_3_##BYTES, int_chunk_4_##BYTES}
#else
#define INT_CHUNKS(BYTES) INT_CHUNK(1, BYTES) INT_CHUNK(2, BYTES)
#define INT_CHUNK_TABLE(BYTES) {int_chunk_1_##BYTES, int_chunk_2_##BYTES}
#endif
INT_CHUNKS(0)
#if BAM_DOT_BYTES
INT_CHUNKS(1)
#endif

/* Few output channels would leave most lanes of a register idle: the filters then make a group of i1 neighbouring pixels
 * at once, each with its own zeros around the kernel. The last group of a tile may reach beyond it, whatever stands there.
 * in0 integers (i0 = 1: bytes), out0 floats, or out1 integers by p4 inverse and f0 limit; p0 weights, p1 scale, p2 start,
 * p3 bias. */
NOINLINE void int_conv_op(const tile_t *t, const bam_op *op) {
    static void (*const chunks[2][BAM_MAX_VECTORS])(const int_conv_t *) = {
        INT_CHUNK_TABLE(0),
#if BAM_DOT_BYTES
        INT_CHUNK_TABLE(1),
#endif
    };
    const int group = op->i1, size = op->i0 ? 1 : 2, stride = int_stride(op->in_channels);
    const int out_stride = stride_of(op->out_channels) * group;
    int_conv_t k = {.kernel = op->kernel, .weights = op->p0, .inverse = op->p4, .limit = op->f0};
    const int64_t pixel = locate_rows(t, op->in0, op->kernel, int_pixel(op, op->in_channels), k.rows);
    k.pixel = pixel * group, k.count = (t->count + group - 1) / group;
    k.run = (op->kernel + group - 1) * stride * size / 4;
    for (int64_t b = 0; group > 1 && b < t->count * pixel; b += 64) /* the next tile's row, which no tile has read yet */
        __builtin_prefetch(k.rows[op->kernel - 1] + t->count * pixel + b);
    uint8_t *out = locate(t, op->p4 ? op->out1 : op->out0);
    k.out_pixel = op->p4 ? int_pixel(op, op->out_channels) : 4 * out_stride;
    const int64_t steps = (int64_t)op->kernel * k.run;
    for (int block = 0, blocks = (out_stride + BAM_LANES - 1) / BAM_LANES, vectors; block < blocks; block += vectors) {
        const int first = block * BAM_LANES;
        vectors = blocks - block < BAM_MAX_VECTORS ? blocks - block : BAM_MAX_VECTORS;
        k.scale = (const float *)op->p1 + first;
        k.start = (const int32_t *)op->p2 + first;
        k.bias = (const float *)op->p3 + first;
        if (op->p4) k.inverse = (const float *)op->p4 + first;
        k.out = out + first * (op->p4 ? size : 4);
        k.lanes = out_stride - first;
        k.last = k.lanes - (k.count * group - t->count) * op->out_channels;
        chunks[op->i0 != 0][vectors - 1](&k);
        k.weights += steps * vectors * BAM_LANES * 4;
    }
}
