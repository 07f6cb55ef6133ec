/* What all operations on a tile share, see tile_ops.h. The file that includes that one has defined
 *
 *   BAM_LANES            lanes of a register: output channels of a block
 *   VF, VI               registers of BAM_LANES floats and int32: vf_load, vf_store, vf_set1, vf_add, vf_mul, vf_abs, vf_fma (one
 *                        rounding), vi_load, vi_add, vi_sub, vi_to_vf
 *   vf_plus_times(a, b, c) a + b c of whole numbers below 2^24, where every way of doing it is exact
 *   vf_ge_bits(x, t)     bit l set where x[l] >= t[l]
 *   VW, VC               registers of BAM_LANES words of 32 bits and of running counts of their bits: vw_load, vw_set1, vw_xor,
 *                        vw_carry(x0, x1, x2, w0, w1, w2) = x0 ^ w0 ^ ((x1 ^ w1) & (x2 ^ w2)), see tile_patch.h,
 *                        vc_zero, vc_add(VC, VW) adds popcounts, vc_total(VC) the counts as VI
 *   VC_STEPS             how many vc_add a count can take before it must be read
 *   vf_bits_load(p), vf_bits_store(p, bits)  BAM_LANES bits in memory; only used where BAM_LANES is 8 or 16
 *   vf_fold_16(sums)     optional: what fold_lanes makes of sixteen registers, as one
 *   BAM_REGISTER(a)      asm operand that rewrites a VW
 *   BAM_REGISTERS        how many there are
 *   vi_set1, vf_round (to even), vf_limit(x, l) (x limited to -l .. l, -l for NaN), vi_store_bytes(p, v) and
 *   vi_store_halves(p, v) (the low 8 or 16 bits of each lane), vi_dot_halves(sum, a, w) (sum + the two products of 16-bit
 *   integers in each lane)
 *   BAM_DOT_BYTES        1 if there is a vi_dot_bytes(sum, a, w), the same for four bytes, those of a unsigned; else 0
 *   BAM_MAX_VECTORS, BAM_PIXELS(v)  register block of the float convolution: up to that many registers of output
 *                        channels, for so many pixels at once
 *
 * Plain loops are left to the compiler, which may use the file's instruction set; -ffp-contract=off keeps it from fusing
 * what the reference does not fuse.
 */
#ifndef BAM_TILE_H
#define BAM_TILE_H

#include "bam.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define GROUP BAM_GROUP
#define MAX_KERNEL BAM_MAX_KERNEL
#define MAX_TILE BAM_MAX_TILE
#define UNROLL _Pragma("GCC unroll 16")

INLINE int stride_of(int channels) { return channels < BAM_NARROW ? channels : (channels + GROUP - 1) / GROUP * GROUP; }
INLINE int int_stride(int channels) { return (channels + GROUP - 1) / GROUP * GROUP; }
INLINE int words_of(int channels) { return (channels + 63) / 64; }
INLINE int blocks_of(int channels) { return (stride_of(channels) + BAM_LANES - 1) / BAM_LANES; }

typedef bam_tile tile_t;

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

#endif
