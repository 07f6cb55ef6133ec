/* NEON of 64-bit ARM: 4 output channels per register. */
#include "bam.h"

#ifdef BAM_BUILD_NEON
#include <arm_neon.h>

#define BAM_LANES 4
typedef float32x4_t VF;
typedef int32x4_t VI;
typedef uint32x4_t VW;
typedef uint8x16_t VC;
#define vf_load(p) vld1q_f32(p)
#define vf_store(p, v) vst1q_f32(p, v)
#define vf_set1(x) vdupq_n_f32(x)
#define vf_add(a, b) vaddq_f32(a, b)
#define vf_mul(a, b) vmulq_f32(a, b)
#define vf_abs(a) vabsq_f32(a)
#define vf_fma(a, b, c) vfmaq_f32(c, a, b)
#define vf_bits_load(p) 0u
#define vf_bits_store(p, b) ((void)(p), (void)(b))
#define vi_load(p) vld1q_s32(p)
#define vi_add(a, b) vaddq_s32(a, b)
#define vi_sub(a, b) vsubq_s32(a, b)
#define vi_to_vf(a) vcvtq_f32_s32(a)
#define vi_set1(x) vdupq_n_s32(x)
#define vf_round(a) vcvtnq_s32_f32(a)
#define vi_store_halves(p, a) vst1_s16((int16_t *)(p), vmovn_s32(a))
#define vi_store_bytes(p, a) vi_store_halves(p, a)
#define vi_dot_bytes(sum, a, w) vi_dot_halves(sum, a, w)
#define BAM_DOT_BYTES 0
#define vf_plus_times(a, b, c) vfmaq_f32(a, b, c)
#define vw_load(p) vld1q_u32((const uint32_t *)(p))
#define vw_set1(x) vdupq_n_u32(x)
#define vw_xor(a, b) veorq_u32(a, b)
#define vc_zero() vdupq_n_u8(0)
#define vc_add(c, a) vaddq_u8(c, vcntq_u8(vreinterpretq_u8_u32(a)))
#define vc_total(c) vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(c)))
#define VC_STEPS 31 /* a byte of a count grows by at most 8 in a step */
#define BAM_REGISTERS 32

static inline __attribute__((always_inline)) float32x4_t vf_limit(float32x4_t a, float32x4_t l) {
    const float32x4_t low = vnegq_f32(l), above = vbslq_f32(vcgtq_f32(a, low), a, low);
    return vbslq_f32(vcltq_f32(above, l), above, l);
}
static inline __attribute__((always_inline)) int32x4_t vi_dot_halves(int32x4_t sum, int32x4_t a, int32x4_t w) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(w);
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return vaddq_s32(sum, vpaddq_s32(low, high));
}

static inline __attribute__((always_inline)) uint32x4_t vw_carry(uint32x4_t x0, uint32x4_t x1, uint32x4_t x2,
                                                                 uint32x4_t w0, uint32x4_t w1, uint32x4_t w2) {
    const uint32x4_t differ = vandq_u32(veorq_u32(x1, w1), veorq_u32(x2, w2));
    return veorq_u32(veorq_u32(differ, x0), w0);
}
static inline __attribute__((always_inline)) unsigned vf_ge_bits(float32x4_t x, float32x4_t t) {
    const uint32_t weights[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(x, t), vld1q_u32(weights)));
}
#define BAM_REGISTER(a) "+w"(a)
#define BAM_MAX_VECTORS 4
#define BAM_PIXELS(v) ((v) == 1 ? 16 : (v) == 2 ? 12 : (v) == 3 ? 8 : 6)
#include "tile_ops.h"

static int supported(void) { return 1; }
const bam_isa bam_isa_neon = {"neon", BAM_LANES, BAM_MAX_VECTORS, BAM_DOT_BYTES, supported, RUN_TILE, count_steps};
#endif
