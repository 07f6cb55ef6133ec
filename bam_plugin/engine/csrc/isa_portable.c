/* Portable C11: 4 output channels in an array; the library's fmaf and a bit count by masks. */
#include "bam.h"

#include <math.h>
#include <string.h>

/* One line an operation. */
/* clang-format off */
#define BAM_LANES 4
typedef struct { float v[4]; } VF;
typedef struct { int32_t v[4]; } VI;
typedef struct { uint32_t v[4]; } VW;
typedef VI VC;
#define FN static inline
FN VF vf_load(const float *p) { VF r; memcpy(r.v, p, sizeof r.v); return r; }
FN void vf_store(float *p, VF a) { memcpy(p, a.v, sizeof a.v); }
FN VF vf_set1(float x) { VF r = {{x, x, x, x}}; return r; }
FN VF vf_add(VF a, VF b) { for (int l = 0; l < 4; l++) a.v[l] += b.v[l]; return a; }
FN VF vf_mul(VF a, VF b) { for (int l = 0; l < 4; l++) a.v[l] *= b.v[l]; return a; }
FN VF vf_abs(VF a) { for (int l = 0; l < 4; l++) a.v[l] = fabsf(a.v[l]); return a; }
FN VF vf_fma(VF a, VF b, VF c) { for (int l = 0; l < 4; l++) c.v[l] = fmaf(a.v[l], b.v[l], c.v[l]); return c; }
FN unsigned vf_ge_bits(VF x, VF t) {
    unsigned bits = 0;
    for (int l = 0; l < 4; l++) bits |= (unsigned)(x.v[l] >= t.v[l]) << l;
    return bits;
}
#define vf_bits_load(p) 0u
#define vf_bits_store(p, b) ((void)(p), (void)(b))
FN VI vi_load(const int32_t *p) { VI r; memcpy(r.v, p, sizeof r.v); return r; }
FN VI vi_sub(VI a, VI b) { for (int l = 0; l < 4; l++) a.v[l] -= b.v[l]; return a; }
FN VF vi_to_vf(VI a) { VF r; for (int l = 0; l < 4; l++) r.v[l] = (float)a.v[l]; return r; }
FN VI vi_add(VI a, VI b) {
    for (int l = 0; l < 4; l++) a.v[l] = (int32_t)((uint32_t)a.v[l] + (uint32_t)b.v[l]);
    return a;
}
FN VI vi_set1(int32_t x) { VI r = {{x, x, x, x}}; return r; }
FN VF vf_limit(VF a, VF l) {
    for (int i = 0; i < 4; i++) {
        const float low = a.v[i] > -l.v[i] ? a.v[i] : -l.v[i];
        a.v[i] = low < l.v[i] ? low : l.v[i];
    }
    return a;
}
FN VI vf_round(VF a) { /* small numbers only: the sum with 1.5 * 2^23 has no bits behind the point */
    VI r;
    for (int l = 0; l < 4; l++) r.v[l] = (int32_t)((a.v[l] + 12582912.0f) - 12582912.0f);
    return r;
}
FN void vi_store_halves(uint8_t *p, VI a) {
    for (int l = 0; l < 4; l++) {
        const uint16_t low = (uint16_t)a.v[l];
        memcpy(p + 2 * l, &low, sizeof low);
    }
}
FN VI vi_dot_halves(VI sum, VI a, VI w) {
    int16_t x[8], y[8];
    memcpy(x, &a, sizeof x), memcpy(y, &w, sizeof y);
    for (int l = 0; l < 4; l++) {
        const uint32_t dot = (uint32_t)(x[2 * l] * y[2 * l]) + (uint32_t)(x[2 * l + 1] * y[2 * l + 1]);
        sum.v[l] = (int32_t)((uint32_t)sum.v[l] + dot);
    }
    return sum;
}
#define vi_store_bytes(p, a) vi_store_halves(p, a)
#define vi_dot_bytes(sum, a, w) vi_dot_halves(sum, a, w)
#define BAM_DOT_BYTES 0
FN VF vf_plus_times(VF a, VF b, VF c) { for (int l = 0; l < 4; l++) a.v[l] += b.v[l] * c.v[l]; return a; }
FN VW vw_load(const VW *p) { return *p; }
FN VW vw_set1(uint32_t x) { VW r = {{x, x, x, x}}; return r; }
FN VW vw_xor(VW a, VW b) { for (int l = 0; l < 4; l++) a.v[l] ^= b.v[l]; return a; }
FN VW vw_carry(VW x0, VW x1, VW x2, VW w0, VW w1, VW w2) {
    for (int l = 0; l < 4; l++) x0.v[l] ^= w0.v[l] ^ ((x1.v[l] ^ w1.v[l]) & (x2.v[l] ^ w2.v[l]));
    return x0;
}
FN VC vc_zero(void) { VC r = {{0, 0, 0, 0}}; return r; }
FN int32_t popcount(uint32_t x) {
    x -= x >> 1 & 0x55555555u;
    x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
    return (int32_t)(((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}
FN VC vc_add(VC c, VW a) { for (int l = 0; l < 4; l++) c.v[l] += popcount(a.v[l]); return c; }
/* clang-format on */
#define vc_total(c) (c)
#define BAM_REGISTERS 16
#define VC_STEPS (1 << 30)
#define BAM_REGISTER(a) "+m"(a)
#define BAM_MAX_VECTORS 2
#define BAM_PIXELS(v) 2
#include "tile_ops.h"

static int supported(void) { return 1; }
const bam_isa bam_isa_portable = {"portable", BAM_LANES, BAM_MAX_VECTORS, BAM_DOT_BYTES,
                                  supported,  RUN_TILE,  count_steps};
