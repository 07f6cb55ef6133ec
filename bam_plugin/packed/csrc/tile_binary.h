/* Signs and the binary convolution of a tile; included by tile_ops.h. */
#include "tile.h"

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
