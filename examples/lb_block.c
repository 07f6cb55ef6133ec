/* One LB block in plain C: what the packed engine computes, without what makes it fast. Read it before
 * bam_plugin/engine/csrc/tile_ops.h.
 *
 * The block maps a float map of 64 channels to another one. Three binary convolutions decide by signs alone, and the
 * values that they add to run beside them in float:
 *
 *   a1  = x + conv3x3(sign(x))              the identity path
 *   w1  = a1 * (f1 * mean|a1| + o1)         a weight per pixel
 *   a2  = w1 + conv1x1(sign(a1))
 *   out = (w1 + conv1x1(sign(a2))) + a2 * (f2 * mean|a2| + o2)
 *
 * Results equal the engine's in every bit. So every float operation is rounded once, in the order written here: compile
 * with -ffp-contract=off, or the compiler fuses a product and a sum.
 *
 *   cc -O2 -std=c11 -ffp-contract=off -shared -fPIC examples/lb_block.c -lm -o lb_block.so
 *
 * tests/engine/test_lb_block.py calls lb_block() and compares. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define CHANNELS 64 /* the signs of a pixel are one word */
#define LANES 16    /* partial sums of a mean */

/* A binary convolution with the sign in front of it. A weight or sign of -1 is a bit 1, one of +1 is a bit 0; channel i
 * is bit i of a word. */
typedef struct {
    const float *threshold;  /* (CHANNELS): where BatchNorm and sign change from one value to the other */
    uint64_t flip;           /* channels in which the sign is +1 below the threshold, those of negative gamma */
    const uint64_t *filters; /* (CHANNELS, kernel, kernel): the 64 weights of each output channel and tap */
    const float *scale;      /* (CHANNELS): what a filter's whole number is multiplied by */
    int kernel;
} layer_t;

/* A float map (height, width, CHANNELS) and its size. */
typedef struct {
    const float *values;
    int height, width;
} map_t;

static int count_ones(uint64_t word) {
    int count = 0;
    for (; word; word &= word - 1) count++; /* clears the lowest 1 */
    return count;                           /* the engine counts 16 words with one instruction */
}

/* 64 floats become one word. BatchNorm is in the threshold, so that no multiplication is needed. */
static uint64_t signs_of_pixel(const float *x, const layer_t *layer) {
    uint64_t negative = 0;
    for (int c = 0; c < CHANNELS; c++) {
        const int above = x[c] >= layer->threshold[c];
        const int flipped = (int)(layer->flip >> c & 1);
        if (above == flipped) negative |= (uint64_t)1 << c;
    }
    return negative;
}

static void signs_of_map(map_t map, const layer_t *layer, uint64_t *words) {
    const int pixels = map.height * map.width;
    for (int p = 0; p < pixels; p++) words[p] = signs_of_pixel(map.values + (int64_t)p * CHANNELS, layer);
}

/* The dot product of one filter with the signs around a pixel, a whole number. Two signs that are equal give +1, two
 * that differ give -1: 64 products are 64 - 2 * (number of differing bits). A tap outside the picture gives nothing. */
static int dot_product(const uint64_t *words, int height, int width, int y, int x, const layer_t *layer, int out) {
    const int kernel = layer->kernel, half = kernel / 2;
    const uint64_t *filter = layer->filters + (int64_t)out * kernel * kernel;
    int dot = 0;
    for (int row = 0; row < kernel; row++)
        for (int column = 0; column < kernel; column++) {
            const int at_y = y + row - half, at_x = x + column - half;
            if (at_y < 0 || at_y >= height || at_x < 0 || at_x >= width) continue;
            dot += CHANNELS - 2 * count_ones(words[at_y * width + at_x] ^ filter[row * kernel + column]);
        }
    return dot;
}

/* out = scale * dot + add, for all pixels and channels. `out` may be `add`. */
static void binary_conv(const uint64_t *words, int height, int width, const layer_t *layer, const float *add,
                        float *out) {
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < CHANNELS; c++) {
                const int64_t at = ((int64_t)y * width + x) * CHANNELS + c;
                const float product = layer->scale[c] * (float)dot_product(words, height, width, y, x, layer, c);
                out[at] = product + add[at];
            }
}

/* The mean of |x| over the channels of a pixel. The order of the sum is part of the result: lane j adds the channels
 * j, j + 16, j + 32, ...; then the upper half of the lanes is added to the lower half until one is left. That is how a
 * vector register does it. */
static float mean_magnitude(const float *x) {
    float lanes[LANES] = {0};
    for (int c = 0; c < CHANNELS; c++) lanes[c % LANES] += fabsf(x[c]);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
    return lanes[0] * (1.0f / CHANNELS);
}

/* out = x * (factor * mean|x| + offset), pixel by pixel. */
static void weigh(const float *x, int pixels, float factor, float offset, float *out) {
    for (int p = 0; p < pixels; p++, x += CHANNELS, out += CHANNELS) {
        const float scaled = mean_magnitude(x) * factor;
        const float weight = scaled + offset;
        for (int c = 0; c < CHANNELS; c++) out[c] = x[c] * weight;
    }
}

/* The block. `layers`: the 3x3 convolution and the two of 1x1. `factors`: f1, o1, f2, o2. Returns 1 without memory.
 *
 * The engine never holds a1, w1 and a2 whole: it takes 48 pixels of a row through all of this while they are in the
 * nearest cache, writes `out` over x, and the signs that the next block needs beside it. Only the 3x3 convolution reads
 * neighbours, so only the signs of x must be there before. */
int lb_block(const float *x, int height, int width, const layer_t *layers, const float *factors, float *out) {
    const int pixels = height * width;
    const size_t bytes = sizeof(float) * CHANNELS * (size_t)pixels;
    uint64_t *words = malloc(sizeof *words * (size_t)pixels);
    float *a1 = malloc(bytes), *w1 = malloc(bytes), *a2 = malloc(bytes);
    const int failed = !words || !a1 || !w1 || !a2;
    if (!failed) {
        signs_of_map((map_t){x, height, width}, layers + 0, words);
        binary_conv(words, height, width, layers + 0, x, a1);
        weigh(a1, pixels, factors[0], factors[1], w1);

        signs_of_map((map_t){a1, height, width}, layers + 1, words);
        binary_conv(words, height, width, layers + 1, w1, a2);

        signs_of_map((map_t){a2, height, width}, layers + 2, words);
        binary_conv(words, height, width, layers + 2, w1, out);
        weigh(a2, pixels, factors[2], factors[3], a2);
        for (int64_t i = 0; i < (int64_t)pixels * CHANNELS; i++) out[i] = out[i] + a2[i];
    }
    free(words), free(a1), free(w1), free(a2);
    return failed;
}
