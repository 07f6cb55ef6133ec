/* Patches: all signs under a kernel, packed without gaps, and made ready for a carry-save adder; for tile_binary.h.
 *
 * The signs under a kernel of k x k taps over C channels are one string of k k C bits, in the order of the filters in the
 * file, so 3x3 taps of 48 channels take 7 words and not 9. Its words are then rewritten in the way of carry_save(): a full
 * adder of three words that differ from three filter words, (a ^ p) + (b ^ q) + (c ^ r), has
 *
 *   sum   = (a ^ b ^ c) ^ (p ^ q ^ r)
 *   carry = (a ^ p) ^ (((a ^ b) ^ (p ^ q)) & ((a ^ c) ^ (p ^ r)))
 *
 * The sum is again a pixel's word against a filter's word. So it costs nothing here, goes into a later adder, and after all
 * (n - 1) / 2 adders the differing bits of n words are popcount(last sum) + 2 popcount(all carries). What depends on the
 * pixel alone is made once and serves all output channels; each carry takes three operations of AVX-512.
 */
#include "tile.h"

#define MAX_PATCH 31 /* words; also in kernels.py. Odd, as are all numbers of words. */

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

INLINE void gather_signs(patch_t patch, const uint64_t *const *rows, int count, int kernel, int channels, int64_t step) {
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

/* Fills `patch` for the pixels of a tile; `rows`: first tap of the first pixel in each row, `step`: words of a pixel. */
NOINLINE void make_patch(patch_t patch, const uint64_t *const *rows, int count, int kernel, int channels, int64_t step,
                         int words) {
    if (step == 1)
        gather_signs(patch, rows, count, kernel, channels, 1);
    else
        gather_signs(patch, rows, count, kernel, channels, step);
    carry_save(patch, words, count);
}
