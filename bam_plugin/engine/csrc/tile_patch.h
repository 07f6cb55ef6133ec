/* Patches: all signs under a kernel, packed without gaps, and made ready for a carry-save adder; for tile_binary.h.
 *
 * The signs under a kernel of k x k taps over C channels are one string of k k C bits, in the order of the filters in
 * the file, so 3x3 taps of 48 channels take 7 words and not 9. Its words are then rewritten by carry_save(): a full adder
 * of three words that differ from three filter words, (a ^ p) + (b ^ q) + (c ^ r), has
 *
 *   sum   = (a ^ b ^ c) ^ (p ^ q ^ r)
 *   carry = (a ^ p) ^ (((a ^ b) ^ (p ^ q)) & ((a ^ c) ^ (p ^ r)))
 *
 * The sum is again a pixel's word against a filter's word. So it costs nothing here, goes into a later adder, and after
 * all (n - 1) / 2 adders the differing bits of n words are popcount(last sum) + 2 popcount(all carries). What depends on
 * the pixel alone is made once and serves all output channels; each carry takes three operations of AVX-512.
 */
#include "tile.h"

#define MAX_PATCH BAM_MAX_PATCH

/* Words of all pixels of a tile, one plane per word of the patch; after carry_save() also the sums. */
typedef uint64_t patch_t[MAX_PATCH + MAX_PATCH / 2][MAX_TILE];

INLINE void add_bits(uint64_t *restrict words, const uint64_t *restrict signs, int count, int64_t step, int shift) {
    if (shift == 0)
        for (int p = 0; p < count; p++) words[p] = signs[p * step];
    else if (shift > 0)
        for (int p = 0; p < count; p++) words[p] |= signs[p * step] << shift;
    else
        for (int p = 0; p < count; p++) words[p] = signs[p * step] >> -shift;
}

INLINE void gather_signs(patch_t patch, const uint64_t *const *rows, int count, int kernel, int channels,
                         int64_t step) {
    const int words = words_of(channels);
    int at = 0; /* bits */
    for (int i = 0; i < kernel; i++)
        for (int j = 0; j < kernel * words; j++) {
            const int left = channels - j % words * 64, length = left < 64 ? left : 64, shift = at % 64;
            add_bits(patch[at / 64], rows[i] + j, count, step, shift);
            if (shift + length > 64) add_bits(patch[at / 64 + 1], rows[i] + j, count, step, shift - 64);
            at += length;
        }
    if ((at + 63) / 64 % 2 == 0) memset(patch[at / 64 + (at % 64 > 0)], 0, sizeof *patch);
}

INLINE void carry_save(patch_t patch, int words, int count) {
    for (int k = 0; k < words / 2; k++) {
        uint64_t *restrict a = patch[3 * k], *restrict b = patch[3 * k + 1], *restrict c = patch[3 * k + 2];
        uint64_t *restrict sum = patch[words + k];
        for (int p = 0; p < count; p++) {
            b[p] ^= a[p];
            sum[p] = b[p] ^ c[p];
            c[p] ^= a[p];
        }
    }
}

/* The three words a, b, c of an adder and their sum, in place of the words. */
#define ADD_UP(K, A, B, C)                                                      \
    const uint64_t a##K = A, b##K = a##K ^ (B), c##K = C, sum##K = b##K ^ c##K; \
    patch[3 * K][p] = a##K, patch[3 * K + 1][p] = b##K, patch[3 * K + 2][p] = a##K ^ c##K

/* 3x3 of 64 channels in one pass: a word is a tap. */
INLINE void patch_3x3_64(uint64_t (*restrict patch)[MAX_TILE], const uint64_t *r0, const uint64_t *r1,
                         const uint64_t *r2, int count) {
    for (int p = 0; p < count; p++) {
        ADD_UP(0, r0[p], r0[p + 1], r0[p + 2]);
        ADD_UP(1, r1[p], r1[p + 1], r1[p + 2]);
        ADD_UP(2, r2[p], r2[p + 1], r2[p + 2]);
        ADD_UP(3, sum0, sum1, sum2);
        patch[12][p] = sum3;
    }
}

/* 3x3 of 48 channels in one pass: four taps are three words. */
#define THREE_WORDS(A, B, C, D) (A) | (B) << 48, (B) >> 16 | (C) << 32, (C) >> 32 | (D) << 16
#define ADD_UP_TAPS(K, WORDS) ADD_UP(K, WORDS)
INLINE void patch_3x3_48(uint64_t (*restrict patch)[MAX_TILE], const uint64_t *r0, const uint64_t *r1,
                         const uint64_t *r2, int count) {
    for (int p = 0; p < count; p++) {
        ADD_UP_TAPS(0, THREE_WORDS(r0[p], r0[p + 1], r0[p + 2], r1[p]));
        ADD_UP_TAPS(1, THREE_WORDS(r1[p + 1], r1[p + 2], r2[p], r2[p + 1]));
        ADD_UP(2, r2[p + 2], sum0, sum1);
        patch[9][p] = sum2;
    }
}

/* Fills `patch` for the pixels of a tile; `rows`: first tap of the first pixel in each row, `step`: words of a pixel. */
NOINLINE void make_patch(patch_t patch, const uint64_t *const *rows, int count, int kernel, int channels, int64_t step,
                         int words) {
    if (kernel == 3 && channels == 64) {
        patch_3x3_64(patch, rows[0], rows[1], rows[2], count);
        return;
    }
    if (kernel == 3 && channels == 48) {
        patch_3x3_48(patch, rows[0], rows[1], rows[2], count);
        return;
    }
    if (step == 1)
        gather_signs(patch, rows, count, kernel, channels, 1);
    else
        gather_signs(patch, rows, count, kernel, channels, step);
    carry_save(patch, words, count);
}
