/* AVX-512 with VPOPCNTDQ and VNNI: 16 output channels per register. */
#include "bam.h"

#ifdef BAM_BUILD_AVX512
#include <immintrin.h>
#include <string.h>

#define BAM_LANES 16
typedef __m512 VF;
typedef __m512i VI, VW, VC;
#define vf_load(p) _mm512_loadu_ps(p)
#define vf_store(p, v) _mm512_storeu_ps(p, v)
#define vf_set1(x) _mm512_set1_ps(x)
#define vf_add(a, b) _mm512_add_ps(a, b)
#define vf_mul(a, b) _mm512_mul_ps(a, b)
#define vf_abs(a) _mm512_abs_ps(a)
#define vf_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vf_ge_bits(x, t) ((unsigned)_mm512_cmp_ps_mask(x, t, _CMP_GE_OQ))
#define vi_load(p) _mm512_loadu_si512(p)
#define vi_add(a, b) _mm512_add_epi32(a, b)
#define vi_sub(a, b) _mm512_sub_epi32(a, b)
#define vi_to_vf(a) _mm512_cvtepi32_ps(a)
#define vi_set1(x) _mm512_set1_epi32(x)
#define vf_round(a) _mm512_cvtps_epi32(a)
#define vf_limit(a, l) _mm512_min_ps(_mm512_max_ps(a, _mm512_xor_ps(l, _mm512_set1_ps(-0.0f))), l)
#define vi_store_bytes(p, a) _mm_storeu_si128((__m128i *)(p), _mm512_cvtepi32_epi8(a))
#define vi_store_halves(p, a) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtepi32_epi16(a))
/* With intrinsics GCC 12 copies the sums from register to register in every step. */
static inline __attribute__((always_inline)) __m512i vi_dot_halves(__m512i sum, __m512i a, __m512i w) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
    return sum;
}
static inline __attribute__((always_inline)) __m512i vi_dot_bytes(__m512i sum, __m512i a, __m512i w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
    return sum;
}
#define BAM_DOT_BYTES 1
#define vf_plus_times(a, b, c) _mm512_fmadd_ps(b, c, a)
#define vw_load(p) _mm512_loadu_si512(p)
#define vw_set1(x) _mm512_set1_epi32((int)(x))
#define vw_xor(a, b) _mm512_xor_si512(a, b)
#define vc_zero() _mm512_setzero_si512()
#define vc_add(c, a) _mm512_add_epi32(c, _mm512_popcnt_epi32(a))
#define vc_total(c) (c)
#define VC_STEPS (1 << 30)
#define BAM_REGISTERS 32
#define BAM_REGISTER(a) "+v"(a)
#define BAM_MAX_VECTORS 4
#define BAM_PIXELS(v) ((v) == 1 ? 16 : (v) == 2 ? 12 : (v) == 3 ? 8 : 6)
static inline __attribute__((always_inline)) __m512i vw_carry(__m512i x0, __m512i x1, __m512i x2, __m512i w0,
                                                              __m512i w1, __m512i w2) {
    const __m512i differ = _mm512_ternarylogic_epi32(_mm512_xor_si512(x1, w1), x2, w2, 0x60); /* a & (b ^ c) */
    return _mm512_ternarylogic_epi32(differ, x0, w0, 0x96);                                   /* a ^ b ^ c */
}
static inline unsigned vf_bits_load(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}
static inline void vf_bits_store(uint8_t *p, unsigned value) {
    const uint16_t bits = (uint16_t)value;
    memcpy(p, &bits, sizeof bits);
}

/* Folds sixteen pixels in one tree: each level adds the halves of two registers side by side. */
static inline __attribute__((always_inline)) __m512 vf_fold_16(const __m512 *s) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) /* lanes j + 8 onto j: eight lanes of pixel 2i, eight of 2i + 1 */
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(s[2 * i], s[2 * i + 1], 0x44),
                             _mm512_shuffle_f32x4(s[2 * i], s[2 * i + 1], 0xEE));
    for (int i = 0; i < 4; i++) /* j + 4 onto j: four lanes of each of the pixels 4i .. 4i + 3 */
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xDD));
    for (int i = 0; i < 2; i++) /* j + 2 onto j */
        c[i] = _mm512_add_ps(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xEE));
    /* j + 1 onto j; element k of quarter q is pixel 4k + q */
    const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xDD));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, sums);
}
#define vf_fold_16 vf_fold_16
#include "tile_ops.h"

static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni");
}
const bam_isa bam_isa_avx512 = {"avx512", BAM_LANES, BAM_MAX_VECTORS, BAM_DOT_BYTES, supported, RUN_TILE, count_steps};
#endif
