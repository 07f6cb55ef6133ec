/* The operations on a tile, once for all instruction sets. The file that includes this one has defined
 *
 *   BAM_LANES            lanes of a register: output channels of a block
 *   VF, VI               registers of BAM_LANES floats and int32: vf_load, vf_store, vf_set1, vf_add, vf_mul, vf_abs, vf_fma (one
 *                        rounding), vf_abs, vi_load, vi_sub, vi_to_vf
 *   vf_ge_bits(x, t)     bit l set where x[l] >= t[l]
 *   VW, VC               registers of BAM_LANES / 2 words and of their running counts: vw_load, vw_set1, vc_zero,
 *                        vc_count(VC, VW a, VW b) adds popcount(a xor b), vc_flush(VC total, VC partial)
 *   vf_bits_load(p), vf_bits_store(p, bits)  BAM_LANES bits in memory; only used where BAM_LANES is 8 or 16
 *   vf_fold_16(sums)     optional: what fold_lanes makes of sixteen registers, as one
 *   BAM_REGISTER(a)      asm operand that rewrites a VW
 *   VC_STEPS             how many vc_count a partial count can take before it must be flushed
 *   vi_merge(even, odd)  the totals of even and odd channels as one VI in order of channels
 *   BAM_MAX_VECTORS, BAM_PIXELS(v)  register block of the float convolution: up to that many registers of output
 *                        channels, for so many pixels at once
 *
 * Plain loops are left to the compiler, which may use the file's instruction set; -ffp-contract=off keeps it from fusing
 * what reference.py does not fuse.
 */
#include "bam.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define GROUP 16 /* floats: the unit of padded channels and the lanes of a channel mean */
#define MAX_KERNEL 31
#define MAX_TILE 48 /* pixels, as in program.py */
#define UNROLL _Pragma("GCC unroll 16")

INLINE int stride_of(int channels) { return channels < 8 ? channels : (channels + GROUP - 1) / GROUP * GROUP; }
INLINE int words_of(int channels) { return (channels + 63) / 64; }
INLINE int blocks_of(int channels) { return (stride_of(channels) + BAM_LANES - 1) / BAM_LANES; }

typedef struct {
    const bam_map *maps;
    uint8_t *scratch;
    int y, x, count;
} tile_t;

INLINE uint8_t *row_of(const bam_map *map, int y) {
    if (y < 0 || y >= map->height) return (uint8_t *)map->zeros;
    return map->data + (y - map->row0) * map->row_stride;
}

/* The first pixel of the tile in an operand; NULL if it is nowhere. */
INLINE void *locate(const tile_t *t, bam_ref ref) {
    if (ref.map == -2) return NULL;
    if (ref.map < 0) return t->scratch + ref.offset;
    const bam_map *map = t->maps + ref.map;
    return row_of(map, t->y) + (int64_t)(t->x + map->pad) * map->pixel_stride;
}

/* Pointers to the first tap of the tile's first pixel in each row of a kernel; returns the bytes of a pixel. */
INLINE int64_t locate_rows(const tile_t *t, bam_ref ref, int kernel, int64_t scratch_pixel, const uint8_t **rows) {
    if (ref.map < 0) {
        rows[0] = t->scratch + ref.offset; /* only 1x1 kernels read scratch */
        return scratch_pixel;
    }
    const bam_map *map = t->maps + ref.map;
    for (int i = 0; i < kernel; i++)
        rows[i] = row_of(map, t->y + i - kernel / 2) + (int64_t)(t->x - kernel / 2 + map->pad) * map->pixel_stride;
    return map->pixel_stride;
}

/* ---- signs ---- */

/* Words of one pixel's signs; thresholds of padding channels are +infinity and their flips 0, so their bits are 0. */
NOINLINE void threshold_tile(const float *x, uint64_t *out, int count, int channels, const float *limits,
                             const uint64_t *flips) {
    const int stride = stride_of(channels), words = words_of(channels);
    for (int p = 0; p < count; p++, x += stride, out += words) {
        for (int w = 0; w < words; w++) {
            const int first = 64 * w, last = stride < first + 64 ? stride : first + 64;
            uint64_t bits = 0;
            int c = first;
            for (; c + BAM_LANES <= last; c += BAM_LANES)
                bits |= (uint64_t)vf_ge_bits(vf_load(x + c), vf_load(limits + c)) << (c - first);
            for (; c < last; c++) bits |= (uint64_t)(x[c] >= limits[c]) << (c - first);
            out[w] = bits ^ flips[w];
        }
    }
}

/* popcount(pixel xor filter) over a whole kernel for one block of output channels. */
INLINE VI count_differing(const VW *w, const uint64_t *const *rows, int64_t at, int kernel, int run) {
    VC even = vc_zero(), odd = vc_zero(), part_even = vc_zero(), part_odd = vc_zero();
    int left = VC_STEPS;
    for (int i = 0; i < kernel; i++)
        for (int j = 0; j < run; j++, w += 2) {
            const VW a = vw_set1(rows[i][at + j]);
            part_even = vc_count(part_even, a, w[0]);
            part_odd = vc_count(part_odd, a, w[1]);
            if (kernel * run > VC_STEPS && --left == 0) {
                even = vc_flush(even, part_even), odd = vc_flush(odd, part_odd);
                part_even = part_odd = vc_zero(), left = VC_STEPS;
            }
        }
    return vi_merge(vc_flush(even, part_even), vc_flush(odd, part_odd));
}

/* Pixels [first, last) of a tile whose taps lie inside the picture in the same way. */
typedef struct {
    int first, last;
    const int32_t *base;
} segment_t;

typedef struct {
    const uint64_t *rows[MAX_KERNEL];
    int64_t pixel_words;
    int segment_count, count, blocks, stride, out_bytes; /* out_bytes: of a pixel's signs */
    const uint64_t *weights;
    const float *scale, *add, *limits;
    const uint8_t *flips;
    float *out;
    uint8_t *signs;
    segment_t segments[2 * MAX_KERNEL + 1];
} binary_conv_t;

enum { ADDS = 1, STORES = 2, SIGNS = 4 }; /* what a convolution does with its sums */

/* One block of output channels for all pixels. A small kernel's filters are kept in registers. The map that is added
 * comes from far away and is read across the grain: each step asks for a line of the next tile. */
INLINE void binary_conv_block(const binary_conv_t *b, int block, const int kernel, const int run, const int keep,
                              const int mode) {
    const int steps = kernel * run, first = block * BAM_LANES;
    const int64_t stride = b->stride, pixel_words = b->pixel_words, out_bytes = b->out_bytes;
    const int64_t next = (int64_t)b->count * stride;
    const VW *memory = (const VW *)(b->weights + (int64_t)block * steps * BAM_LANES);
    VW kept[2 * 9];
    if (keep) UNROLL for (int s = 0; s < 2 * steps; s++) kept[s] = vw_load(memory + s);
    const VF scale = vf_load(b->scale + first);
    const VF limits = mode & SIGNS ? vf_load(b->limits + first) : scale;
    const unsigned flips = mode & SIGNS ? vf_bits_load(b->flips + first / 8) : 0;
    for (int k = 0; k < b->segment_count; k++) {
        const segment_t *segment = b->segments + k;
        const VI base = vi_load(segment->base + first);
        const float *add = b->add + segment->first * stride + first;
        float *out = b->out + segment->first * stride + first;
        uint8_t *signs = b->signs + segment->first * out_bytes + first / 8;
        const uint64_t *rows[MAX_KERNEL];
        for (int i = 0; i < kernel; i++) rows[i] = b->rows[i] + segment->first * pixel_words;
        for (int64_t p = 0, last = segment->last - segment->first; p < last; p++) {
            const VI differing = count_differing(keep ? kept : memory, rows, p * pixel_words, kernel, run);
            VF value = vf_mul(scale, vi_to_vf(vi_sub(vi_sub(base, differing), differing)));
            if (mode & ADDS) {
                __builtin_prefetch(add + p * stride + next);
                value = vf_add(value, vf_load(add + p * stride));
            }
            if (mode & STORES) vf_store(out + p * stride, value);
            if (mode & SIGNS) vf_bits_store(signs + p * out_bytes, vf_ge_bits(value, limits) ^ flips);
        }
    }
}

/* The last block of fewer than 8 output channels, whose pixels are narrower than a register. */
NOINLINE void binary_conv_narrow(const binary_conv_t *b, int block, int kernel, int run) {
    const int first = block * BAM_LANES;
    const VW *memory = (const VW *)(b->weights + (int64_t)block * kernel * run * BAM_LANES);
    const VF scale = vf_load(b->scale + first);
    for (int k = 0; k < b->segment_count; k++)
        for (int p = b->segments[k].first; p < b->segments[k].last; p++) {
            const VI differing = count_differing(memory, b->rows, p * b->pixel_words, kernel, run);
            const VI dot = vi_sub(vi_sub(vi_load(b->segments[k].base + first), differing), differing);
            float lanes[BAM_LANES];
            vf_store(lanes, vf_mul(scale, vi_to_vf(dot)));
            for (int c = first; c < b->stride; c++) {
                const int64_t at = (int64_t)p * b->stride + c;
                b->out[at] = b->add ? lanes[c - first] + b->add[at] : lanes[c - first];
            }
        }
}

#define BINARY_CONV(NAME, KERNEL, RUN, KEEP)                                                               \
    NOINLINE void NAME(const binary_conv_t *b, int block, int kernel, int run, int mode) {                 \
        (void)kernel, (void)run;                                                                           \
        switch (mode) {                                                                                    \
        case STORES: binary_conv_block(b, block, KERNEL, RUN, KEEP, STORES); break;                        \
        case ADDS | STORES: binary_conv_block(b, block, KERNEL, RUN, KEEP, ADDS | STORES); break;          \
        case SIGNS: binary_conv_block(b, block, KERNEL, RUN, KEEP, SIGNS); break;                          \
        case ADDS | SIGNS: binary_conv_block(b, block, KERNEL, RUN, KEEP, ADDS | SIGNS); break;            \
        case STORES | SIGNS: binary_conv_block(b, block, KERNEL, RUN, KEEP, STORES | SIGNS); break;        \
        default: binary_conv_block(b, block, KERNEL, RUN, KEEP, ADDS | STORES | SIGNS);                    \
        }                                                                                                  \
    }
BINARY_CONV(binary_conv_1_1, 1, 1, 1)
BINARY_CONV(binary_conv_3_3, 3, 3, 1)
BINARY_CONV(binary_conv_any, kernel, run, 0)

/* Cuts a tile into runs of pixels of one border class; there are at most two borders of `kernel` classes. */
INLINE int cut_segments(segment_t *segments, const int32_t *classes, const int32_t *base, int64_t class_stride,
                        int count) {
    int found = 0;
    for (int p = 0; p < count; found++) {
        const int first = p, class = classes[p];
        while (p < count && classes[p] == class) p++;
        segments[found] = (segment_t){first, p, base + class * class_stride};
    }
    return found;
}

NOINLINE void binary_conv_op(const tile_t *t, const bam_op *op) {
    const int words = words_of(op->in_channels), kernel = op->kernel, run = kernel * words;
    const uint8_t *rows[MAX_KERNEL];
    binary_conv_t b;
    b.pixel_words = locate_rows(t, op->in0, kernel, 8 * words, rows) / 8;
    for (int i = 0; i < kernel; i++) b.rows[i] = (const uint64_t *)rows[i];
    b.count = t->count, b.blocks = blocks_of(op->out_channels), b.stride = stride_of(op->out_channels);
    b.out_bytes = 8 * words_of(op->out_channels);
    b.weights = op->p0, b.scale = op->p1;
    const int64_t class_stride = (int64_t)b.blocks * BAM_LANES;
    const int32_t *base = (const int32_t *)op->p2 + ((const int32_t *)op->p3)[t->y] * op->i0 * class_stride;
    b.segment_count = cut_segments(b.segments, (const int32_t *)op->p4 + t->x, base, class_stride, b.count);
    b.add = locate(t, op->in1), b.out = locate(t, op->out0), b.signs = locate(t, op->out1);
    /* Otherwise program.py has given the sums a place, and a second pass makes the signs. */
    const int fused = b.signs && BAM_LANES >= 8 && b.stride >= GROUP;
    b.limits = op->p5, b.flips = op->p6;
    if (fused && b.stride % 64)
        for (int p = 0; p < b.count; p++) ((uint64_t *)b.signs)[(p + 1) * (b.out_bytes / 8) - 1] = 0;
    const int mode = (b.add ? ADDS : 0) | (b.out ? STORES : 0) | (fused ? SIGNS : 0);
    for (int block = 0; block < b.blocks; block++) {
        if ((block + 1) * BAM_LANES > b.stride)
            binary_conv_narrow(&b, block, kernel, run);
        else if (kernel == 1 && words == 1)
            binary_conv_1_1(&b, block, 1, 1, mode);
        else if (kernel == 3 && words == 1)
            binary_conv_3_3(&b, block, 3, 3, mode);
        else
            binary_conv_any(&b, block, kernel, run, mode);
    }
    if (b.signs && !fused)
        threshold_tile(b.out, (uint64_t *)b.signs, b.count, op->out_channels, op->p5, op->p6);
}

/* ---- float convolution: one chain of fused multiply-adds per output, over rows, columns, channels ---- */

typedef struct {
    const float *rows[MAX_KERNEL], *weights, *bias; /* weights: (steps, vectors * BAM_LANES) of the current chunk */
    int64_t pixel, column, out_stride; /* floats from one pixel to the next in the input and the output */
    int kernel, columns, run;          /* taps in a row are `columns` times `run` floats in one piece */
    int count, lanes;                  /* lanes: output channels from the chunk's first one on */
    float *out;
} conv_t;

INLINE void conv_block(const conv_t *k, int first, const int vectors, const int pixels) {
    VF sum[16][4];
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = vf_load(k->bias + v * BAM_LANES);
    const float *weights = k->weights;
    for (int i = 0; i < k->kernel; i++)
        for (int column = 0; column < k->columns; column++) {
            const float *in = k->rows[i] + first * k->pixel + column * k->column;
            const int64_t pixel = k->pixel;
            for (int j = 0; j < k->run; j++, weights += vectors * BAM_LANES) {
                VF w[4];
                UNROLL for (int v = 0; v < vectors; v++) w[v] = vf_load(weights + v * BAM_LANES);
                UNROLL for (int p = 0; p < pixels; p++) {
                    const VF a = vf_set1(in[p * pixel + j]);
                    UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = vf_fma(a, w[v], sum[p][v]);
                }
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
    return op->out_channels <= FEW_OUT && op->in_channels >= GROUP && op->in_channels <= FEW_IN &&
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
    for (; p + 4 <= pixels; p += 4)
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

NOINLINE void conv_op(const tile_t *t, const bam_op *op) {
    const int in_stride = stride_of(op->in_channels), out_stride = stride_of(op->out_channels);
    const int dense = in_stride == op->in_channels; /* else the zeros behind each pixel are passed over */
    const uint8_t *rows[MAX_KERNEL];
    conv_t k = {.kernel = op->kernel, .count = t->count, .weights = op->p0, .out_stride = out_stride};
    k.pixel = locate_rows(t, op->in0, op->kernel, 4 * in_stride, rows) / 4;
    for (int i = 0; i < op->kernel; i++) k.rows[i] = (const float *)rows[i];
    k.column = in_stride;
    k.columns = dense ? 1 : op->kernel;
    k.run = dense ? op->kernel * in_stride : op->in_channels;
    float *out = locate(t, op->out0);
    const int64_t steps = (int64_t)op->kernel * op->kernel * op->in_channels;
    for (int block = 0, blocks = blocks_of(op->out_channels), vectors; block < blocks; block += vectors) {
        vectors = blocks - block < BAM_MAX_VECTORS ? blocks - block : BAM_MAX_VECTORS;
        k.bias = (const float *)op->p1 + block * BAM_LANES;
        k.out = out + block * BAM_LANES;
        k.lanes = out_stride - block * BAM_LANES;
        switch (vectors) {
        case 1: conv_chunk_1(&k); break;
        case 2: conv_chunk_2(&k); break;
#if BAM_MAX_VECTORS >= 4
        case 3: conv_chunk_3(&k); break;
        case 4: conv_chunk_4(&k); break;
#endif
        }
        k.weights += steps * vectors * BAM_LANES;
    }
}

/* ---- pointwise ---- */

NOINLINE void relu_tile(const float *x, float *out, int n) {
    for (int i = 0; i < n; i++) out[i] = x[i] > 0 ? x[i] : 0.0f;
}

NOINLINE void leaky_relu_tile(const float *x, float *out, int n, float slope) {
    for (int i = 0; i < n; i++) out[i] = x[i] > 0 ? x[i] : x[i] * slope;
}

NOINLINE void scale_tile(const float *x, float *out, int n, float factor) {
    for (int i = 0; i < n; i++) out[i] = x[i] * factor;
}

NOINLINE void clamp_tile(const float *x, float *out, int n, float low, float high) {
    for (int i = 0; i < n; i++) {
        const float bounded = x[i] < low ? low : x[i];
        out[i] = bounded > high ? high : bounded;
    }
}

NOINLINE void prelu_tile(const float *x, float *out, int count, int stride, const float *slope) {
    for (int p = 0; p < count; p++, x += stride, out += stride)
        for (int c = 0; c < stride; c++) out[c] = x[c] > 0 ? x[c] : x[c] * slope[c];
}

NOINLINE void affine_tile(const float *x, float *out, int count, int stride, const float *scale, const float *shift) {
    for (int p = 0; p < count; p++, x += stride, out += stride)
        for (int c = 0; c < stride; c++) out[c] = x[c] * scale[c] + shift[c];
}

NOINLINE void add_tile(const float *x, const float *y, float *out, int n) {
    for (int i = 0; i < n; i++) out[i] = x[i] + y[i];
}

NOINLINE void mul_tile(const float *x, const float *y, float *out, int n) {
    for (int i = 0; i < n; i++) out[i] = x[i] * y[i];
}

/* With one number per pixel; channels beyond `channels` stay zero. */
NOINLINE void spread_tile(const float *x, const float *y, float *out, int count, int channels, int multiply) {
    const int stride = stride_of(channels);
    for (int p = 0; p < count; p++, x += stride, out += stride) {
        const float v = y[p];
        if (multiply)
            for (int c = 0; c < channels; c++) out[c] = x[c] * v;
        else
            for (int c = 0; c < channels; c++) out[c] = x[c] + v;
        for (int c = channels; c < stride; c++) out[c] = 0;
    }
}

/* The 16 lanes of a pixel's sum, before they are folded. */
INLINE void mean_lanes(const float *x, int stride, const int magnitude, VF *sum) {
    UNROLL for (int v = 0; v < GROUP / BAM_LANES; v++) sum[v] = vf_set1(0);
    for (int c = 0; c < stride; c += GROUP)
        UNROLL for (int v = 0; v < GROUP / BAM_LANES; v++) {
            const VF part = vf_load(x + c + v * BAM_LANES);
            sum[v] = vf_add(sum[v], magnitude ? vf_abs(part) : part);
        }
}

INLINE float fold_lanes(float *lanes) {
    for (int l = 0; l < 8; l++) lanes[l] += lanes[l + 8];
    for (int l = 0; l < 4; l++) lanes[l] += lanes[l + 4];
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

INLINE void mean_loop(const float *x, float *out, int count, int stride, const int magnitude, float inverse) {
    int p = 0;
#ifdef vf_fold_16 /* sixteen pixels at once */
    for (; stride >= GROUP && p + 16 <= count; p += 16) {
        VF sum[16];
        UNROLL for (int q = 0; q < 16; q++) mean_lanes(x + (p + q) * stride, stride, magnitude, sum + q);
        vf_store(out + p, vf_mul(vf_fold_16(sum), vf_set1(inverse)));
    }
#endif
    for (; p < count; p++) {
        float lanes[GROUP] = {0};
        const float *at = x + p * stride;
        if (stride < GROUP) {
            for (int c = 0; c < stride; c++) lanes[c] += magnitude ? fabsf(at[c]) : at[c];
        } else {
            VF sum[GROUP / BAM_LANES];
            mean_lanes(at, stride, magnitude, sum);
            UNROLL for (int v = 0; v < GROUP / BAM_LANES; v++) vf_store(lanes + v * BAM_LANES, sum[v]);
        }
        out[p] = fold_lanes(lanes) * inverse;
    }
}

NOINLINE void mean_tile(const float *x, float *out, int count, int channels, int magnitude, float inverse) {
    if (magnitude)
        mean_loop(x, out, count, stride_of(channels), 1, inverse);
    else
        mean_loop(x, out, count, stride_of(channels), 0, inverse);
}

/* A value times its spatial factor, onto `add` if there is one, and the signs of the result if they are wanted. */
NOINLINE void weigh_tile(const bam_op *op, const float *x, const float *add, float *out, uint64_t *signs, int count) {
    const int stride = stride_of(op->out_channels);
    float weights[MAX_TILE];
    mean_tile(x, weights, count, op->out_channels, op->i0, op->f0);
    for (int p = 0; p < count; p++) weights[p] = weights[p] * op->f1 + op->f2;
    for (int p = 0; p < count; p++) {
        const int64_t at = (int64_t)p * stride;
        if (stride < GROUP) {
            for (int c = 0; c < stride; c++)
                out[at + c] = add ? add[at + c] + x[at + c] * weights[p] : x[at + c] * weights[p];
            continue;
        }
        const VF factor = vf_set1(weights[p]);
        for (int c = 0; c < stride; c += BAM_LANES) {
            const VF product = vf_mul(vf_load(x + at + c), factor);
            vf_store(out + at + c, add ? vf_add(vf_load(add + at + c), product) : product);
        }
    }
    if (signs) threshold_tile(out, signs, count, op->out_channels, op->p5, op->p6);
}

/* ---- changes of size ---- */

NOINLINE void shuffle_op(const tile_t *t, const bam_op *op) {
    const int factor = op->i0, channels = op->out_channels, ordered = op->i1;
    const int in_stride = stride_of(op->in_channels), out_stride = stride_of(channels);
    const float *x = locate(t, op->in0);
    const bam_map *map = t->maps + op->out0.map;
    for (int i = 0; i < factor; i++) {
        float *row = (float *)row_of(map, t->y * factor + i) + (int64_t)(t->x * factor + map->pad) * out_stride;
        for (int p = 0; p < t->count; p++)
            for (int j = 0; j < factor; j++, row += out_stride) {
                const float *from = x + p * in_stride;
                const int place = i * factor + j;
                if (ordered)
                    memcpy(row, from + place * channels, sizeof(float) * channels);
                else
                    for (int c = 0; c < channels; c++) row[c] = from[c * factor * factor + place];
            }
    }
}

#define MAX_TAPS 4
#define RESIZE_CHUNK 256

/* Along x into one line per tap of y, then along y. */
NOINLINE void resize_op(const tile_t *t, const bam_op *op) {
    const int factor = op->i0, taps = op->i1, stride = stride_of(op->in_channels);
    const int32_t *offsets = op->p0;
    const float *weights = op->p1;
    const bam_map *map = t->maps + op->in0.map;
    float *out = locate(t, op->out0);
    const int q = t->y / factor, phase = t->y % factor;
    const float *lines[MAX_TAPS];
    for (int k = 0; k < taps; k++) {
        int row = q + offsets[phase] + k;
        row = row < 0 ? 0 : row >= map->height ? map->height - 1 : row;
        lines[k] = (const float *)row_of(map, row) + (int64_t)map->pad * stride;
    }
    for (int p = 0; p < t->count; p++, out += stride) {
        const int place = (t->x + p) / factor, part = (t->x + p) % factor;
        const float *across = weights + part * taps, *down = weights + phase * taps;
        int at[MAX_TAPS];
        for (int k = 0; k < taps; k++) {
            const int column = place + offsets[part] + k;
            at[k] = (column < 0 ? 0 : column >= map->width ? map->width - 1 : column) * stride;
        }
        for (int c = 0; c < stride; c++) {
            float total = 0;
            for (int k = 0; k < taps; k++) {
                float sum = lines[k][at[0] + c] * across[0];
                for (int m = 1; m < taps; m++) sum = sum + lines[k][at[m] + c] * across[m];
                total = k ? total + sum * down[k] : sum * down[k];
            }
            out[c] = total;
        }
    }
}

/* ---- the bound ---- */

/* `steps` times xor + popcount + add on registers alone, in eight independent chains: as fast as counting can be. */
static uint64_t count_steps(int64_t steps, uint64_t seed) {
    VC sum[8];
    for (int k = 0; k < 8; k++) sum[k] = vc_zero();
    VW a = vw_set1(seed);
    const VW b = vw_set1(~seed);
    VC total = vc_zero();
    for (int64_t done = 0; done < steps;) {
        for (int round = 0; round < 30; round++, done += 8) {
            UNROLL for (int k = 0; k < 8; k++) {
                __asm__ volatile("" : BAM_REGISTER(a)); /* a new operand each time, as far as the compiler knows */
                sum[k] = vc_count(sum[k], a, b);
            }
        }
        for (int k = 0; k < 8; k++) total = vc_flush(total, sum[k]), sum[k] = vc_zero();
    }
    uint64_t result;
    memcpy(&result, &total, sizeof result);
    return result;
}

/* ---- one tile through all operations ---- */

static void run_tile(const bam_stage *stage, const bam_map *maps, uint8_t *scratch, int y, int x, int count) {
    const tile_t tile = {maps, scratch, y, x, count}, *t = &tile;
    for (int k = 0; k < stage->op_count; k++) {
        const bam_op *op = stage->ops + k;
        const int stride = stride_of(op->out_channels), n = count * stride;
        if (op->code == BAM_BINARY_CONV) { binary_conv_op(t, op); continue; }
        if (op->code == BAM_CONV) { takes_few(op) ? conv_few(t, op) : conv_op(t, op); continue; }
        if (op->code == BAM_SHUFFLE) { shuffle_op(t, op); continue; }
        if (op->code == BAM_RESIZE) { resize_op(t, op); continue; }
        const float *in0 = locate(t, op->in0), *in1 = locate(t, op->in1);
        float *out = locate(t, op->out0);
        switch (op->code) {
        case BAM_THRESHOLD: threshold_tile(in0, (uint64_t *)out, count, op->in_channels, op->p5, op->p6); break;
        case BAM_RELU: relu_tile(in0, out, n); break;
        case BAM_LEAKY_RELU: leaky_relu_tile(in0, out, n, op->f0); break;
        case BAM_PRELU: prelu_tile(in0, out, count, stride, op->p0); break;
        case BAM_AFFINE: affine_tile(in0, out, count, stride, op->p0, op->p1); break;
        case BAM_ADD: op->i0 ? spread_tile(in0, in1, out, count, op->out_channels, 0) : add_tile(in0, in1, out, n); break;
        case BAM_MUL: op->i0 ? spread_tile(in0, in1, out, count, op->out_channels, 1) : mul_tile(in0, in1, out, n); break;
        case BAM_SCALE: scale_tile(in0, out, n, op->f0); break;
        case BAM_CLAMP: clamp_tile(in0, out, n, op->f0, op->f1); break;
        case BAM_MEAN: mean_tile(in0, out, count, op->in_channels, op->i0, op->f0); break;
        case BAM_WEIGH: weigh_tile(op, in0, in1, out, locate(t, op->out1), count); break;
        }
    }
}
