/* Signs and the binary convolution of a tile; included by tile_ops.h. */
#include "tile_patch.h"

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

/* Pixels [first, last) of a tile whose taps lie inside the picture in the same way. */
typedef struct {
    int first, last;
    const int32_t *base;
} segment_t;

typedef struct {
    const uint64_t *rows[MAX_KERNEL];
    int64_t pixel_words;
    int kernel, run;                                     /* run: words of a row of taps */
    int segment_count, count, blocks, stride, out_bytes; /* out_bytes: of a pixel's signs */
    int once;                                            /* differing bits count once: signs are 0 and 1 */
    const uint32_t *weights;
    const float *scale, *add, *limits;
    const uint8_t *flips;
    float *out;
    uint8_t *signs;
    int adders, block_vectors; /* block_vectors: registers of a block's filters */
    segment_t segments[2 * MAX_KERNEL + 1];
    patch_t patch;
} binary_conv_t;

enum { ADDS = 1, STORES = 2, SIGNS = 4 };                     /* what a convolution does with its sums */
enum { ANY = -1, POINT = 0, PATCH = 99 /* PATCH or 1 .. */ }; /* how it counts; a number of adders is that patch */

/* One half of a word for all lanes. */
INLINE VW half_of(const uint64_t *word, int half) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    half = 1 - half;
#endif
    uint32_t bits;
    memcpy(&bits, (const uint8_t *)word + 4 * half, sizeof bits);
    return vw_set1(bits);
}

INLINE VC add_carries(VC carries, const uint64_t (*patch)[MAX_TILE], int adder, int64_t p, const VW *w) {
    UNROLL for (int h = 0; h < 2; h++)
        carries = vc_add(carries, vw_carry(half_of(patch[3 * adder] + p, h), half_of(patch[3 * adder + 1] + p, h),
                                           half_of(patch[3 * adder + 2] + p, h), w[3 * h], w[3 * h + 1], w[3 * h + 2]));
    return carries;
}

/* popcount(pixel xor filter) over a whole kernel for one block of output channels. */
INLINE VI count_differing(const binary_conv_t *b, const VW *w, const int how, int64_t p) {
    VC sum = vc_zero();
    if (how == ANY || how == POINT) {
        VI total = vc_total(sum);
        int left = VC_STEPS / 2;
        for (int i = 0; i < (how == POINT ? 1 : b->kernel); i++) {
            const uint64_t *row = b->rows[i] + p * b->pixel_words;
            for (int j = 0; j < (how == POINT ? 1 : b->run); j++, w += 2) {
                UNROLL for (int h = 0; h < 2; h++) sum = vc_add(sum, vw_xor(half_of(row + j, h), w[h]));
                if (how == ANY && --left == 0)
                    total = vi_add(total, vc_total(sum)), sum = vc_zero(), left = VC_STEPS / 2;
            }
        }
        return how == ANY ? vi_add(total, vc_total(sum)) : vc_total(sum);
    }
    const int adders = how == PATCH ? b->adders : how;
    VC carries = vc_zero();
    if (how == PATCH)
        for (int k = 0; k < adders; k++) carries = add_carries(carries, b->patch, k, p, w + 6 * k);
    else
        UNROLL for (int k = 0; k < how; k++) carries = add_carries(carries, b->patch, k, p, w + 6 * k);
    UNROLL for (int h = 0; h < 2; h++)
        sum = vc_add(sum, vw_xor(half_of(b->patch[3 * adders] + p, h), w[6 * adders + h]));
    const VI twice = vc_total(carries);
    return vi_add(vi_add(twice, twice), vc_total(sum));
}

/* The dot product from its base and the differing bits, of which each takes 1 away where signs are 0 and 1, else 2. */
INLINE VI take_away(const binary_conv_t *b, VI base, VI differing) {
    const VI rest = vi_sub(base, differing);
    return b->once ? rest : vi_sub(rest, differing);
}

/* One block of output channels for all pixels. The filters are kept in registers where there are enough. The map that
 * is added comes from far away: each step asks for a line of the next tile, in the order of addresses. */
INLINE void binary_conv_block(const binary_conv_t *b, int block, const int how, const int mode) {
    const int first = block * BAM_LANES, vectors = how == POINT ? 2 : 6 * how + 2;
    const int keep = how == POINT || (how > 0 && how != PATCH && vectors + 5 <= BAM_REGISTERS);
    const int64_t stride = b->stride, out_bytes = b->out_bytes;
    const VW *memory = (const VW *)b->weights + (int64_t)block * b->block_vectors;
    VW kept[6 * 4 + 2];
    if (keep) UNROLL for (int s = 0; s < vectors; s++) kept[s] = vw_load(memory + s);
    const VF scale = vf_load(b->scale + first);
    const VF minus = vf_set1(b->once ? -1.0f : -2.0f);
    const VF limits = mode & SIGNS ? vf_load(b->limits + first) : scale;
    const unsigned flips = mode & SIGNS ? vf_bits_load(b->flips + first / 8) : 0;
    const float *next = b->add + (int64_t)b->count * (stride + first);
    for (int k = 0; k < b->segment_count; k++) {
        const segment_t *segment = b->segments + k;
        const VI base = vi_load(segment->base + first);
        const VF base_f = vi_to_vf(base);
        const float *add = b->add + first;
        float *out = b->out + first;
        uint8_t *signs = b->signs + first / 8;
        for (int64_t p = segment->first, last = segment->last; p < last; p++) {
            const VI differing = count_differing(b, keep ? kept : memory, how, p);
            /* Beyond 2^24 only integers are exact. */
            const VF dot = how == ANY ? vi_to_vf(take_away(b, base, differing))
                                      : vf_plus_times(base_f, vi_to_vf(differing), minus);
            VF value = vf_mul(scale, dot);
            if (mode & ADDS) {
                __builtin_prefetch(next + p * BAM_LANES);
                value = vf_add(value, vf_load(add + p * stride));
            }
            if (mode & STORES) vf_store(out + p * stride, value);
            if (mode & SIGNS) vf_bits_store(signs + p * out_bytes, vf_ge_bits(value, limits) ^ flips);
        }
    }
}

/* The last block of fewer than 8 output channels, whose pixels are narrower than a register. */
INLINE void binary_conv_narrow(const binary_conv_t *b, int block, const int how) {
    const int first = block * BAM_LANES;
    const VW *memory = (const VW *)b->weights + (int64_t)block * b->block_vectors;
    const VF scale = vf_load(b->scale + first);
    for (int k = 0; k < b->segment_count; k++)
        for (int p = b->segments[k].first; p < b->segments[k].last; p++) {
            const VI differing = count_differing(b, memory, how, p);
            const VI dot = take_away(b, vi_load(b->segments[k].base + first), differing);
            float lanes[BAM_LANES];
            vf_store(lanes, vf_mul(scale, vi_to_vf(dot)));
            for (int c = first; c < b->stride; c++) {
                const int64_t at = (int64_t)p * b->stride + c;
                b->out[at] = b->add ? lanes[c - first] + b->add[at] : lanes[c - first];
            }
        }
}

#define NARROW 0 /* a mode of its own: without any of the bits */
#define BINARY_CONV(NAME, HOW)                                                                             \
    NOINLINE void NAME(const binary_conv_t *b, int block, int mode) {                                      \
        switch (mode) {                                                                                    \
        case NARROW: binary_conv_narrow(b, block, HOW); break;                                             \
        case STORES: binary_conv_block(b, block, HOW, STORES); break;                                      \
        case ADDS | STORES: binary_conv_block(b, block, HOW, ADDS | STORES); break;                        \
        case SIGNS: binary_conv_block(b, block, HOW, SIGNS); break;                                        \
        case ADDS | SIGNS: binary_conv_block(b, block, HOW, ADDS | SIGNS); break;                          \
        case STORES | SIGNS: binary_conv_block(b, block, HOW, STORES | SIGNS); break;                      \
        default: binary_conv_block(b, block, HOW, ADDS | STORES | SIGNS);                                  \
        }                                                                                                  \
    }
BINARY_CONV(binary_conv_point, POINT)
BINARY_CONV(binary_conv_patch_7, 3) /* 3x3 of 36 to 49 channels */
BINARY_CONV(binary_conv_patch_9, 4) /* 3x3 of 50 to 64 channels */
BINARY_CONV(binary_conv_patch, PATCH)
BINARY_CONV(binary_conv_any, ANY)

/* Cuts a tile into runs of pixels of one border class; there are at most two borders of `kernel` classes, and the
 * columns of a class stand together. */
INLINE int cut_segments(segment_t *segments, const int32_t *classes, const int32_t *base, int64_t class_stride,
                        int count) {
    if (classes[0] == classes[count - 1]) {
        segments[0] = (segment_t){0, count, base + classes[0] * class_stride};
        return 1;
    }
    int found = 0;
    for (int p = 0; p < count; found++) {
        const int first = p, class = classes[p];
        while (p < count && classes[p] == class) p++;
        segments[found] = (segment_t){first, p, base + class * class_stride};
    }
    return found;
}

/* in0 signs, in1 floats to add (optional), out0 floats (optional), out1 signs (optional). p0 weights, p1 scale, p2 base
 * (row classes, column classes, out), p3 row class of each row, p4 column class of each column, p5 thresholds, p6 flips as
 * words; i0 = column classes, i1 = words of a patch (tile_patch.h) or 0, i2 = 1: the signs stand for 0 and 1. */
NOINLINE void binary_conv_op(const tile_t *t, const bam_op *op) {
    const int words = words_of(op->in_channels), patch_words = op->i1;
    const uint8_t *rows[MAX_KERNEL];
    binary_conv_t b;
    b.kernel = op->kernel, b.run = op->kernel * words, b.adders = patch_words / 2;
    b.block_vectors = patch_words ? 6 * b.adders + 2 : 2 * b.kernel * b.run;
    b.pixel_words = locate_rows(t, op->in0, b.kernel, 8 * words, rows) / 8;
    for (int i = 0; i < b.kernel; i++) b.rows[i] = (const uint64_t *)rows[i];
    b.count = t->count, b.blocks = blocks_of(op->out_channels), b.stride = stride_of(op->out_channels);
    b.out_bytes = 8 * words_of(op->out_channels);
    b.weights = op->p0, b.scale = op->p1, b.once = op->i2;
    const int64_t class_stride = (int64_t)b.blocks * BAM_LANES;
    const int32_t *base = (const int32_t *)op->p2 + ((const int32_t *)op->p3)[t->y] * op->i0 * class_stride;
    b.segment_count = cut_segments(b.segments, (const int32_t *)op->p4 + t->x, base, class_stride, b.count);
    b.add = locate(t, op->in1), b.out = locate(t, op->out0), b.signs = locate(t, op->out1);
    if (patch_words) make_patch(b.patch, b.rows, b.count, b.kernel, op->in_channels, b.pixel_words, patch_words);
    /* Otherwise program.py has given the sums a place, and a second pass makes the signs. */
    const int fused = b.signs && BAM_LANES >= 8 && b.stride >= GROUP;
    b.limits = op->p5, b.flips = op->p6;
    if (fused && b.stride % 64)
        for (int p = 0; p < b.count; p++) ((uint64_t *)b.signs)[(p + 1) * (b.out_bytes / 8) - 1] = 0;
    const int wide = (b.add ? ADDS : 0) | (b.out ? STORES : 0) | (fused ? SIGNS : 0);
    for (int block = 0; block < b.blocks; block++) {
        const int mode = (block + 1) * BAM_LANES > b.stride ? NARROW : wide;
        if (patch_words == 9)
            binary_conv_patch_9(&b, block, mode);
        else if (patch_words == 7)
            binary_conv_patch_7(&b, block, mode);
        else if (patch_words)
            binary_conv_patch(&b, block, mode);
        else if (b.kernel == 1 && words == 1)
            binary_conv_point(&b, block, mode);
        else
            binary_conv_any(&b, block, mode);
    }
    if (b.signs && !fused)
        threshold_tile(b.out, (uint64_t *)b.signs, b.count, op->out_channels, op->p5, op->p6);
}
