/* The operations on a tile, once for all instruction sets: tile.h says what the file that includes this one has defined.
 * examples/lb_block.c shows in plain loops what they add up to. */
#include "tile_binary.h"
#include "tile_conv.h"
#include "tile_int.h"

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

/* Bounds that leave out 0 would move the zeros of padding channels, which a mean adds up. */
NOINLINE void clamp_tile(const float *x, float *out, int count, int channels, float low, float high) {
    const int stride = stride_of(channels), n = count * stride;
    for (int i = 0; i < n; i++) {
        const float bounded = x[i] < low ? low : x[i];
        out[i] = bounded > high ? high : bounded;
    }
    for (int p = 0; (low > 0 || high < 0) && p < count; p++)
        for (int c = channels; c < stride; c++) out[p * stride + c] = 0;
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

/* A value times its spatial factor, onto `add` if there is one, and the signs of the result if they are wanted. `out`
 * may be `x` or `add`. `stride` and `mode` are constants to the compiler; `first`: where in the tile to start. */
INLINE void weigh_pixels(const bam_op *op, const float *x, const float *add, float *out, uint8_t *signs, int first,
                         int count, const float *weights, const int stride, const int mode) {
    const int out_bytes = (stride + 63) / 64 * 8;
    const float *limits = op->p5;
    const uint8_t *flips = op->p6;
    (void)flips; /* where vf_bits_load reads nothing */
    for (int p = 0; p < count; p++) {
        const VF factor = vf_set1(weights[p]);
        const int64_t at = (int64_t)(first + p) * stride;
        uint8_t *bits = signs + (first + p) * out_bytes;
        UNROLL for (int c = 0; c < stride; c += BAM_LANES) {
            VF value = vf_mul(vf_load(x + at + c), factor);
            if (mode & ADDS) value = vf_add(vf_load(add + at + c), value);
            vf_store(out + at + c, value);
            if (mode & SIGNS)
                vf_bits_store(bits + c / 8, vf_ge_bits(value, vf_load(limits + c)) ^ vf_bits_load(flips + c / 8));
        }
    }
}

/* Sixteen pixels at a time: they are read twice, the second time from the nearest cache. */
INLINE void weigh_loop(const bam_op *op, const float *x, const float *add, float *out, uint8_t *signs, int count,
                       const int stride, const int mode) {
    float weights[16];
    for (int first = 0; first < count; first += 16) {
        const int some = count - first < 16 ? count - first : 16;
        if (op->i0)
            mean_loop(x + first * stride, weights, some, stride, 1, op->f0);
        else
            mean_loop(x + first * stride, weights, some, stride, 0, op->f0);
        for (int p = 0; p < some; p++) weights[p] = weights[p] * op->f1 + op->f2;
        weigh_pixels(op, x, add, out, signs, first, some, weights, stride, mode);
    }
}

INLINE void weigh_wide(const bam_op *op, const float *x, const float *add, float *out, uint8_t *signs, int count,
                       const int stride) {
    switch ((add ? ADDS : 0) | (signs ? SIGNS : 0)) {
    case 0: weigh_loop(op, x, add, out, signs, count, stride, 0); break;
    case ADDS: weigh_loop(op, x, add, out, signs, count, stride, ADDS); break;
    case SIGNS: weigh_loop(op, x, add, out, signs, count, stride, SIGNS); break;
    default: weigh_loop(op, x, add, out, signs, count, stride, ADDS | SIGNS);
    }
}

NOINLINE void weigh_tile(const bam_op *op, const float *x, const float *add, float *out, uint64_t *signs, int count) {
    const int stride = stride_of(op->out_channels), words = words_of(op->out_channels);
    if (stride < GROUP) {
        float weights[MAX_TILE];
        mean_tile(x, weights, count, op->out_channels, op->i0, op->f0);
        for (int p = 0; p < count; p++) weights[p] = weights[p] * op->f1 + op->f2;
        for (int i = 0; i < count * stride; i++) {
            const float product = x[i] * weights[i / stride];
            out[i] = add ? add[i] + product : product;
        }
    } else {
        uint8_t *bits = BAM_LANES >= 8 ? (uint8_t *)signs : NULL;
        if (bits && stride % 64)
            for (int p = 0; p < count; p++) signs[(p + 1) * words - 1] = 0;
        switch (stride) {
        case 48: weigh_wide(op, x, add, out, bits, count, 48); break;
        case 64: weigh_wide(op, x, add, out, bits, count, 64); break;
        default: weigh_wide(op, x, add, out, bits, count, stride);
        }
        if (bits) return;
    }
    if (signs) threshold_tile(out, signs, count, op->out_channels, op->p5, op->p6);
}

/* ---- changes of size ---- */

/* Spreads the channels of pixels of `size` bytes a channel; strides in bytes. */
INLINE void shuffle_pixels(const uint8_t *x, int64_t in_stride, uint8_t *row, int64_t out_stride, int count, int line,
                           const int factor, const int channels, const int ordered, const int size) {
    const int run = factor * channels * size; /* in order, and in one piece where pixels have no padding */
    if (ordered && out_stride == channels * size && run % 16 == 0) {
        x += line * run;
        for (int p = 0; p < count; p++, x += in_stride, row += run)
            for (int b = 0; b < run; b += 16) memcpy(row + b, x + b, 16);
        return;
    }
    for (int p = 0; p < count; p++, x += in_stride)
        for (int j = 0; j < factor; j++, row += out_stride) {
            const int place = line * factor + j;
            for (int c = 0; c < channels; c++)
                memcpy(row + c * size, x + (ordered ? place * channels + c : c * factor * factor + place) * size, size);
        }
}

/* i0 factor; i1 = 1: channels already stand in the order (row, column, channel); i2 bytes each */
NOINLINE void shuffle_op(const tile_t *t, const bam_op *op) {
    const int factor = op->i0, channels = op->out_channels, size = op->i2;
    const int64_t in_stride = size * (size == 4 ? stride_of(op->in_channels) : int_stride(op->in_channels));
    const bam_map *map = t->maps + op->out0.map;
    const uint8_t *x = locate(t, op->in0);
    for (int i = 0; i < factor; i++) {
        uint8_t *row = row_of(map, t->y * factor + i) + (int64_t)(t->x * factor + map->pad) * map->pixel_stride;
        const int64_t out_stride = map->pixel_stride;
        switch (size) {
        case 4: shuffle_pixels(x, in_stride, row, out_stride, t->count, i, factor, channels, op->i1, 4); break;
        case 2: shuffle_pixels(x, in_stride, row, out_stride, t->count, i, factor, channels, op->i1, 2); break;
        default: shuffle_pixels(x, in_stride, row, out_stride, t->count, i, factor, channels, op->i1, 1);
        }
    }
}

#define MAX_TAPS 4
#define RESIZE_CHUNK 256

/* Along x into one line per tap of y, then along y. i0 factor, i1 taps, p0 offsets int32 (factor), p1 weights (factor,
 * taps). */
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
    int place = t->x / factor, part = t->x % factor;
    for (int p = 0; p < t->count; p++, out += stride, part++) {
        if (part == factor) place++, part = 0;
        const float *across = weights + part * taps, *down = weights + phase * taps;
        int64_t at[MAX_TAPS];
        for (int k = 0; k < taps; k++) {
            const int column = place + offsets[part] + k;
            at[k] = (int64_t)(column < 0 ? 0 : column >= map->width ? map->width - 1 : column) * stride;
        }
        if (taps == 2 && stride == 3 && p + 1 < t->count) { /* a colour at once, and a fourth number that goes again */
            const four_t a = *(const four_t *)(lines[0] + at[0]), b = *(const four_t *)(lines[0] + at[1]);
            const four_t c = *(const four_t *)(lines[1] + at[0]), d = *(const four_t *)(lines[1] + at[1]);
            const four_t first = a * across[0] + b * across[1], second = c * across[0] + d * across[1];
            *(four_t *)out = first * down[0] + second * down[1];
            continue;
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
    VW a = vw_set1((uint32_t)seed);
    const VW b = vw_set1((uint32_t)~seed);
    VI total = vc_total(sum[0]);
    for (int64_t done = 0; done < steps;) {
        for (int round = 0; round < 30; round++, done += 8) {
            UNROLL for (int k = 0; k < 8; k++) {
                __asm__ volatile("" : BAM_REGISTER(a)); /* a new operand each time, as far as the compiler knows */
                sum[k] = vc_add(sum[k], vw_xor(a, b));
            }
        }
        for (int k = 0; k < 8; k++) total = vi_add(total, vc_total(sum[k])), sum[k] = vc_zero();
    }
    uint64_t result;
    memcpy(&result, &total, sizeof result);
    return result;
}

/* ---- one tile through all operations ---- */

/* What each operation reads besides its operands and channels. Maps of floats if nothing else is said. */
#define POINTWISE(NAME, ...)                                        \
    NOINLINE void NAME(const tile_t *t, const bam_op *op) {         \
        const float *x = locate(t, op->in0);                        \
        float *out = locate(t, op->out0);                           \
        const int stride = stride_of(op->out_channels), n = t->count * stride; \
        (void)stride, (void)n;                                      \
        __VA_ARGS__                                                 \
    }

POINTWISE(relu_op, relu_tile(x, out, n);)
/* f0 slope */
POINTWISE(leaky_relu_op, leaky_relu_tile(x, out, n, op->f0);)
/* p0 slope */
POINTWISE(prelu_op, prelu_tile(x, out, t->count, stride, op->p0);)
/* p0 scale, p1 shift */
POINTWISE(affine_op, affine_tile(x, out, t->count, stride, op->p0, op->p1);)
/* f0 factor */
POINTWISE(scale_op, scale_tile(x, out, n, op->f0);)
/* f0 low, f1 high */
POINTWISE(clamp_op, clamp_tile(x, out, t->count, op->out_channels, op->f0, op->f1);)
/* i0 = 1: of magnitudes; f0 = 1 / C */
POINTWISE(mean_op, mean_tile(x, out, t->count, op->in_channels, op->i0, op->f0);)
/* i0 = 1: in1 has one channel */
POINTWISE(add_op, const float *y = locate(t, op->in1);
          op->i0 ? spread_tile(x, y, out, t->count, op->out_channels, 0) : add_tile(x, y, out, n);)
POINTWISE(mul_op, const float *y = locate(t, op->in1);
          op->i0 ? spread_tile(x, y, out, t->count, op->out_channels, 1) : mul_tile(x, y, out, n);)
/* in0 * fl(fl(mean * f1) + f2), the mean as in mean_op; in1 is added and out1 are the signs, where they are */
POINTWISE(weigh_op, weigh_tile(op, x, locate(t, op->in1), out, locate(t, op->out1), t->count);)

/* The channels of in0, then the i0 channels of in1. */
NOINLINE void cat_op(const tile_t *t, const bam_op *op) {
    const float *x = locate(t, op->in0), *y = locate(t, op->in1);
    float *out = locate(t, op->out0);
    const int first = op->in_channels, second = op->i0, stride = stride_of(op->out_channels);
    for (int p = 0; p < t->count; p++) {
        memcpy(out + p * stride, x + p * stride_of(first), sizeof(float) * first);
        memcpy(out + p * stride + first, y + p * stride_of(second), sizeof(float) * second);
    }
    clear_padding(out, t->count, op->out_channels);
}

/* p5 thresholds, p6 flips as words; out0 signs */
NOINLINE void threshold_op(const tile_t *t, const bam_op *op) {
    threshold_tile(locate(t, op->in0), locate(t, op->out0), t->count, op->in_channels, op->p5, op->p6);
}

/* An operation's code is its place here. kernels.py reads the names. */
static const bam_operation operations[] = {
    {"binary_conv2d", binary_conv_op}, {"conv2d", conv_op},     {"int_conv2d", int_conv_op},
    {"threshold", threshold_op},       {"relu", relu_op},       {"leaky_relu", leaky_relu_op},
    {"prelu", prelu_op},               {"affine", affine_op},   {"add", add_op},
    {"mul", mul_op},                   {"scale", scale_op},     {"clamp", clamp_op},
    {"channel_mean", mean_op},         {"weigh", weigh_op},     {"quantize", quantize_op},
    {"pixel_shuffle", shuffle_op},     {"resize", resize_op},   {"cat", cat_op},
    {"grouped_conv2d", grouped_conv_op}, {"depthwise_conv2d", depthwise_conv_op},
};

static void run_tile(const bam_stage *stage, const bam_map *maps, uint8_t *scratch, int y, int x, int count) {
    const tile_t tile = {maps, scratch, y, x, count};
    for (int k = 0; k < stage->op_count; k++) operations[stage->ops[k].code].run(&tile, stage->ops + k);
}

/* The part of a bam_isa that this header makes. */
#define RUN_TILE run_tile, operations, sizeof operations / sizeof *operations
