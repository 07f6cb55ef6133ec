/* AVX2 with FMA: 8 output channels per register; bits are counted with a table of nibbles in a byte shuffle. */
#include "bam.h"

#ifdef BAM_BUILD_AVX2
#include <immintrin.h>
#include <string.h>

#define BAM_LANES 8
typedef __m256 VF;
typedef __m256i VI, VW, VC;
#define vf_load(p) _mm256_loadu_ps(p)
#define vf_store(p, v) _mm256_storeu_ps(p, v)
#define vf_set1(x) _mm256_set1_ps(x)
#define vf_add(a, b) _mm256_add_ps(a, b)
#define vf_mul(a, b) _mm256_mul_ps(a, b)
#define vf_abs(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a)
#define vf_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vf_ge_bits(x, t) ((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x, t, _CMP_GE_OQ)))
#define vi_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define vi_add(a, b) _mm256_add_epi32(a, b)
#define vi_sub(a, b) _mm256_sub_epi32(a, b)
#define vi_to_vf(a) _mm256_cvtepi32_ps(a)
#define vi_set1(x) _mm256_set1_epi32(x)
#define vf_round(a) _mm256_cvtps_epi32(a)
#define vf_limit(a, l) _mm256_min_ps(_mm256_max_ps(a, _mm256_xor_ps(l, _mm256_set1_ps(-0.0f))), l)
#define vi_dot_halves(sum, a, w) _mm256_add_epi32(sum, _mm256_madd_epi16(a, w))
#define vi_dot_bytes(sum, a, w) vi_dot_halves(sum, a, w)
#define BAM_DOT_BYTES 0
#define vf_plus_times(a, b, c) _mm256_fmadd_ps(b, c, a)
#define vw_load(p) _mm256_loadu_si256(p)
#define vw_set1(x) _mm256_set1_epi32((int)(x))
#define vw_xor(a, b) _mm256_xor_si256(a, b)
#define vc_zero() _mm256_setzero_si256()
#define vc_total(c) _mm256_madd_epi16(_mm256_maddubs_epi16(c, _mm256_set1_epi8(1)), _mm256_set1_epi16(1))
#define VC_STEPS 31 /* a byte of a count grows by at most 8 in a step */
#define BAM_REGISTERS 16

static inline __attribute__((always_inline)) void vi_store_halves(uint8_t *p, __m256i a) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, a), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}
#define vi_store_bytes(p, a) vi_store_halves(p, a)

static inline __attribute__((always_inline)) __m256i vw_carry(__m256i x0, __m256i x1, __m256i x2, __m256i w0,
                                                              __m256i w1, __m256i w2) {
    const __m256i differ = _mm256_and_si256(_mm256_xor_si256(x1, w1), _mm256_xor_si256(x2, w2));
    return _mm256_xor_si256(_mm256_xor_si256(differ, x0), w0);
}
static inline __attribute__((always_inline)) __m256i vc_add(__m256i counts, __m256i x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
    const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
    counts = _mm256_add_epi8(_mm256_add_epi8(counts, low), high);
    __asm__("" : "+x"(counts)); /* or the compiler adds in a tree, which sixteen registers cannot hold */
    return counts;
}
#define BAM_REGISTER(a) "+x"(a)
#define BAM_MAX_VECTORS 2
#define BAM_PIXELS(v) ((v) == 1 ? 10 : 6)
static inline unsigned vf_bits_load(const uint8_t *p) {
    uint8_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}
static inline void vf_bits_store(uint8_t *p, unsigned value) {
    const uint8_t bits = (uint8_t)value;
    memcpy(p, &bits, sizeof bits);
}
#include "tile_ops.h"

static int supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
const bam_isa bam_isa_avx2 = {"avx2", BAM_LANES, BAM_MAX_VECTORS, BAM_DOT_BYTES, supported, RUN_TILE, count_steps};
#endif
