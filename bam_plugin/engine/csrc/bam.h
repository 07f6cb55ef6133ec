/* The C side of the packed engine: what Python fills in and what every instruction set implements.
 *
 * A network runs as a list of stages. A stage makes some rows of its results from maps that earlier stages made whole; it
 * walks over each row in tiles of a few dozen pixels and runs a short list of operations on each tile, so everything
 * between two spatial operations stays in the cache. Nothing here checks shapes: kernels.py and program.py do.
 *
 * Layouts. A pixel of a float map holds `stride(C)` floats: C if C < 8, else C rounded up to 16, the rest zeros. A pixel
 * of a sign map holds ceil(C / 64) words, bit 1 = negative, padding bits 0; one of an integer map C rounded up to 16
 * integers, see tile_int.h. Maps have `pad` zero pixels at both ends of
 * each row; rows above and below the picture are `zeros`. Results are exactly those of reference.py.
 */
#ifndef BAM_H
#define BAM_H

#include <stddef.h>
#include <stdint.h>

/* Results on tiles; the number is shared with program.py. */
enum bam_code {
    BAM_BINARY_CONV = 0, /* in0 signs, in1 floats to add (optional), out0 floats (optional), out1 signs (optional) */
    BAM_CONV = 1,        /* in0 floats, out0 floats */
    BAM_THRESHOLD = 2,   /* in0 floats, out0 signs */
    BAM_RELU = 3,
    BAM_LEAKY_RELU = 4, /* f0 slope */
    BAM_PRELU = 5,      /* p0 slope */
    BAM_AFFINE = 6,     /* p0 scale, p1 shift */
    BAM_ADD = 7,        /* in1 may have one channel (i0 = 1) */
    BAM_MUL = 8,        /* in1 may have one channel (i0 = 1) */
    BAM_SCALE = 9,      /* f0 factor */
    BAM_CLAMP = 10,     /* f0 low, f1 high */
    BAM_MEAN = 11,      /* i0 = 1: of magnitudes; f0 = 1 / C */
    BAM_SHUFFLE = 12,   /* i0 factor; i1 = 1: channels already stand in the order (row, column, channel); i2 bytes each */
    BAM_RESIZE = 13,    /* i0 factor, i1 taps, p0 offsets int32 (factor), p1 weights (factor, taps) */
    BAM_WEIGH = 14,     /* in0 * fl(fl(mean * f1) + f2), the mean as in BAM_MEAN; in1 added, out1 signs (both optional) */
    BAM_QUANTIZE = 15,  /* in0 floats, out0 integers (i0 = 1: bytes); p0 inverse, f0 limit */
    BAM_INT_CONV = 16   /* in0 integers (i0 = 1: bytes), out0 floats or out1 integers by p4 inverse and f0 limit; i1 group;
                           p0 weights, p1 scale, p2 start, p3 bias */
};

/* A whole map, or a window of its rows that starts at picture row `row0`. Strides in bytes. */
typedef struct {
    uint8_t *data;
    const uint8_t *zeros; /* one padded row of zeros */
    int64_t row_stride, pixel_stride;
    int32_t row0, height, width, pad; /* height, width: of the picture at this magnification */
} bam_map;

/* Where an operand lives: map >= 0: in that map; -1: at `offset` in the tile's scratch memory; -2: nowhere. */
typedef struct {
    int32_t map, offset;
} bam_ref;

typedef struct {
    int32_t code, in_channels, out_channels, kernel;
    bam_ref in0, in1, out0, out1;
    float f0, f1, f2;
    int32_t i0, i1, i2;
    /* binary_conv: p0 weights, p1 scale, p2 base (row classes, column classes, out), p3 row class of each row, p4 column
     * class of each column, p5 thresholds, p6 flips as words; i0 = column classes, i1 = words of a patch (tile_patch.h)
     * or 0. conv: p0 weights, p1 bias.
     * threshold: p5, p6. */
    const void *p0, *p1, *p2, *p3, *p4, *p5, *p6;
} bam_op;

typedef struct {
    const bam_op *ops;
    int32_t op_count, width, row_begin, row_end, tile;
} bam_stage;

/* Runs the operations of a stage on the pixels x .. x + count of row y. */
typedef void bam_tile_function(const bam_stage *stage, const bam_map *maps, uint8_t *scratch, int y, int x, int count);

typedef struct {
    const char *name;
    int lanes; /* output channels of one register: the block size of repacked weights */
    int max_vectors; /* registers of output channels that the float convolution keeps at once */
    int dot_bytes; /* whether 8-bit integers are stored as bytes */
    int (*supported)(void);
    bam_tile_function *tile;
    uint64_t (*count_steps)(int64_t steps, uint64_t seed); /* the fastest counting that is possible, for bam bench */
} bam_isa;

extern const bam_isa bam_isa_portable, bam_isa_avx2, bam_isa_avx512, bam_isa_neon;

#endif
