/* The C side of the packed engine: what Python fills in and what every instruction set implements.
 *
 * A network runs as a list of stages. A stage makes some rows of its results from maps that earlier stages made whole; it
 * walks over each row in tiles of a few dozen pixels and runs a short list of operations on each tile, so everything
 * between two spatial operations stays in the cache. Nothing here checks shapes: kernels.py and program.py do.
 *
 * Layouts. A pixel of a float map holds `stride(C)` floats: C if C < 8, else C rounded up to 16, the rest zeros. A pixel
 * of a sign map holds ceil(C / 64) words, bit 1 = negative, padding bits 0; one of an integer map C rounded up to 16
 * integers, see tile_int.h. Maps have `pad` zero pixels at both ends of
 * each row; rows above and below the picture are `zeros`. Results are exactly those of the reference (packed/ops).
 */
#ifndef BAM_H
#define BAM_H

#include <stddef.h>
#include <stdint.h>

/* Numbers of the layouts. Python reads them by name (engine.c), and has none of them written down again. */
enum {
    BAM_GROUP = 16,      /* floats: wide pixels are padded to a multiple; also the lanes of a channel mean */
    BAM_NARROW = 8,      /* pixels of fewer channels are stored without padding */
    BAM_MAX_KERNEL = 31, /* edge of a kernel */
    BAM_MAX_TILE = 48,   /* pixels of a tile */
    BAM_MAX_PATCH = 31,  /* words of a patch, see tile_patch.h; odd, as are all numbers of words */
    BAM_MAX_THREADS = 256,
    BAM_BYTE_ZERO = 128,   /* what a byte of an integer map holds for 0, see tile_int.h */
    BAM_SLACK_PIXELS = 16, /* pixels behind an integer map that the last group of a row may read */
    BAM_FLOAT_SLACK = 16   /* bytes behind a float map: a register of colours reads one number too many */
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
    int64_t offset;
    int32_t map;
} bam_ref;

/* `code` is the place of the operation in the table at the end of tile_ops.h; the function there says which fields it
 * reads. in0 and in1 are read, out0 (floats, or integers) and out1 (signs, or integers) are written. */
typedef struct {
    int32_t code, in_channels, out_channels, kernel;
    bam_ref in0, in1, out0, out1;
    float f0, f1, f2;
    int32_t i0, i1, i2;
    const void *p0, *p1, *p2, *p3, *p4, *p5, *p6;
} bam_op;

typedef struct {
    const bam_op *ops;
    int32_t op_count, width, row_begin, row_end, tile;
} bam_stage;

/* A tile at work: pixels x .. x + count of row y. */
typedef struct {
    const bam_map *maps;
    uint8_t *scratch;
    int y, x, count;
} bam_tile;

/* What runs on a tile, by the name that Python knows it by. */
typedef struct {
    const char *name;
    void (*run)(const bam_tile *tile, const bam_op *op);
} bam_operation;

/* Runs the operations of a stage on the pixels x .. x + count of row y. */
typedef void bam_tile_function(const bam_stage *stage, const bam_map *maps, uint8_t *scratch, int y, int x, int count);

typedef struct {
    const char *name;
    int lanes;       /* output channels of one register: the block size of repacked weights */
    int max_vectors; /* registers of output channels that the float convolution keeps at once */
    int dot_bytes;   /* whether 8-bit integers are stored as bytes */
    int (*supported)(void);
    bam_tile_function *tile;
    const bam_operation *operations; /* the same names in the same order for all */
    int operation_count;
    uint64_t (*count_steps)(int64_t steps, uint64_t seed); /* the fastest counting that is possible, for bam bench */
} bam_isa;

extern const bam_isa bam_isa_portable, bam_isa_avx2, bam_isa_avx512, bam_isa_neon;

#endif
