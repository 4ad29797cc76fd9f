// Mixing kernels, for up to four examples at once, so that the experts are read from memory once.
#include "mixing.h"

enum { TOGETHER = 4 };

size_t CC_NAME(cc_step_bytes)(const cc_bank *bank) {
    const size_t experts = bank->spec.num_experts;
    if (!bank->spec.mixed) return CC_TILE * 4;
    switch (bank->spec.type) {
    case CC_BANK_FLOAT16: return experts * CC_TILE * 2;
    case CC_BANK_BFLOAT16: return (experts + 1) / 2 * CC_TILE * 2 * 4;
    default: return experts * CC_TILE * 4;
    }
}

// Steps are [num_experts][CC_TILE]. Several steps at once where registers allow it.
CC_INLINE void mix_floats(const char *experts, const int half, const int E, const int steps, const float *routing,
                          const float *scale, size_t scale_pitch, float *out, size_t out_pitch, const int rows,
                          const int together) {
    const int size = half ? 2 : 4;
    for (int k = 0; k + together <= steps; k += together) {
        vf sum[TOGETHER][2][CC_NR];
#define EACH(CODE) CC_UNROLL for (int u = 0; u < together; u++) { CC_UNROLL for (int n = 0; n < CC_NR; n++) { CODE; } }
        CC_UNROLL for (int b = 0; b < rows; b++) { EACH(sum[b][u][n] = (vf){0}) }
        const char *at = experts + (size_t)k * E * CC_TILE * size;
        for (int e = 0; e < E; e++) {
            vf v[2][CC_NR];
            EACH(const char *p = at + ((size_t)(u * E + e) * CC_TILE + n * CC_VL) * size;
                 v[u][n] = half ? load_float16((const uint16_t *)p) : load((const float *)p))
            CC_UNROLL for (int b = 0; b < rows; b++) {
                vf r = splat(routing[b * E + e]);
                EACH(sum[b][u][n] += v[u][n] * r)
            }
        }
        CC_UNROLL for (int b = 0; b < rows; b++) {
            if (scale) { EACH(sum[b][u][n] *= splat(scale[b * scale_pitch + k + u])) }
            EACH(store(out + b * out_pitch + (size_t)(k + u) * CC_TILE + n * CC_VL, sum[b][u][n]))
        }
#undef EACH
    }
}

static void mix_rows(const cc_bank *bank, const char *experts, int steps, const float *routing, const float *scale,
                     size_t scale_pitch, float *out, size_t out_pitch, int rows) {
    enum { UNROLLED = CC_VL == 16 ? 2 : 1 };
    const int E = bank->spec.num_experts, even = steps / UNROLLED * UNROLLED, half = bank->spec.type == CC_BANK_FLOAT16;
    const char *rest = experts + (size_t)even * E * CC_TILE * (half ? 2 : 4);
#define MIX(HALF, ROWS) { \
        mix_floats(experts, HALF, E, even, routing, scale, scale_pitch, out, out_pitch, ROWS, UNROLLED); \
        if (even < steps) \
            mix_floats(rest, HALF, E, steps - even, routing, scale ? scale + even : 0, scale_pitch, \
                       out + (size_t)even * CC_TILE, out_pitch, ROWS, 1); \
    } break;
    if (half) switch (rows) { case 1: MIX(1, 1) case 2: MIX(1, 2) case 3: MIX(1, 3) default: MIX(1, 4) }
    else switch (rows) { case 1: MIX(0, 1) case 2: MIX(0, 2) case 3: MIX(0, 3) default: MIX(0, 4) }
#undef MIX
}

#if CC_BFLOAT16_DOT
// Steps are [pairs of experts][CC_TILE][2 channels][2 experts]: dot products over pairs of experts. Mixed steps are
// [CC_TILE][2 channels], rounded.
CC_INLINE void mix_pairs(const char *experts, int pairs, int steps, const uint32_t *routing, const float *scale,
                         size_t scale_pitch, char *out, size_t out_pitch, const int rows) {
    enum { VECTORS = 2 * CC_NR };
    for (int k = 0; k < steps; k++) {
        vf sum[TOGETHER][VECTORS];
        CC_UNROLL for (int b = 0; b < rows; b++) { CC_UNROLL for (int n = 0; n < VECTORS; n++) sum[b][n] = (vf){0}; }
        for (int e = 0; e < pairs; e++, experts += VECTORS * CC_VL * 4) {
            vf v[VECTORS];
            CC_UNROLL for (int n = 0; n < VECTORS; n++) v[n] = load((const float *)experts + n * CC_VL);
            CC_UNROLL for (int b = 0; b < rows; b++) {
                vf r = splat(((const union { uint32_t u; float f; } *)(routing + b * pairs + e))->f);
                CC_UNROLL for (int n = 0; n < VECTORS; n++) sum[b][n] = multiply_add(sum[b][n], v[n], r, 1);
            }
        }
        CC_UNROLL for (int b = 0; b < rows; b++) {
            vf two;
            for (int i = 0; i < CC_VL; i++) two[i] = scale ? scale[b * scale_pitch + 2 * k + i % 2] : 1.0f;
            CC_UNROLL for (int n = 0; n < VECTORS; n++)
                store_bfloat16((uint16_t *)(out + b * out_pitch) + ((size_t)k * VECTORS + n) * CC_VL, sum[b][n] * two);
        }
    }
}

static uint32_t pair_of(const float *routing, int e, int E) {
    return to_bfloat16(routing[e]) | (uint32_t)(e + 1 < E ? to_bfloat16(routing[e + 1]) : 0) << 16;
}

static void mix_rows_pairs(const cc_bank *bank, const char *experts, int steps, const float *routing, const float *scale,
                           size_t scale_pitch, char *out, size_t out_pitch, int rows) {
    const int E = bank->spec.num_experts, pairs = (E + 1) / 2;
    uint32_t packed[TOGETHER * pairs];
    for (int b = 0; b < rows; b++)
        for (int e = 0; e < pairs; e++) packed[b * pairs + e] = pair_of(routing + (size_t)b * E, 2 * e, E);
    switch (rows) {
    case 1: mix_pairs(experts, pairs, steps, packed, scale, scale_pitch, out, out_pitch, 1); break;
    case 2: mix_pairs(experts, pairs, steps, packed, scale, scale_pitch, out, out_pitch, 2); break;
    case 3: mix_pairs(experts, pairs, steps, packed, scale, scale_pitch, out, out_pitch, 3); break;
    default: mix_pairs(experts, pairs, steps, packed, scale, scale_pitch, out, out_pitch, 4);
    }
}
#endif

// A shared kernel times each example's scale. Pairs of bfloat16 are taken apart and put together again.
static void scale_kernel(const cc_bank *bank, const char *kernel, int steps, const float *scale, char *out) {
    for (int k = 0; k < steps; k++, kernel += CC_TILE * 4, out += CC_TILE * 4)
        for (int n = 0; n < CC_TILE; n += CC_VL) {
            if (bank->spec.type == CC_BANK_BFLOAT16) {
                const uint16_t *from = (const uint16_t *)kernel + 2 * n;
                uint16_t *to = (uint16_t *)out + 2 * n;
                vf two;
                for (int i = 0; i < CC_VL; i++) two[i] = scale[2 * k + i % 2];
                store_bfloat16(to, load_bfloat16(from) * two);
                store_bfloat16(to + CC_VL, load_bfloat16(from + CC_VL) * two);
            } else store((float *)out + n, load((const float *)kernel + n) * scale[k]);
        }
}

void CC_NAME(cc_mix)(const cc_bank *bank, const char *experts, int steps, int batch, const float *routing,
                     const float *scale, size_t scale_pitch, char *out, size_t out_pitch) {
    if (!bank->spec.mixed) {
        for (int b = 0; b < batch; b++)
            scale_kernel(bank, experts, steps, scale + b * scale_pitch, out + b * out_pitch);
        return;
    }
    for (int b = 0; b < batch; b += TOGETHER) {
        const int rows = min_of(batch - b, TOGETHER);
        const float *r = routing + (size_t)b * bank->spec.num_experts, *s = scale ? scale + b * scale_pitch : 0;
#if CC_BFLOAT16_DOT
        if (bank->spec.type == CC_BANK_BFLOAT16) {
            mix_rows_pairs(bank, experts, steps, r, s, scale_pitch, out + b * out_pitch, out_pitch, rows);
            continue;
        }
#endif
        mix_rows(bank, experts, steps, r, s, scale_pitch, (float *)(out + b * out_pitch), out_pitch / 4, rows);
    }
}

void CC_NAME(cc_mix_depthwise)(const cc_bank *bank, int vector, int batch, const float *routing, float *out,
                               size_t out_pitch) {
    const int E = bank->spec.num_experts, taps = bank->taps;
    const float *from = (const float *)bank->data + (size_t)vector * taps * E * CC_VL;
    for (int b = 0; b < batch; b++)
        for (int tap = 0; tap < taps; tap++) {
            const float *at = from + (size_t)tap * E * CC_VL;
            vf sum = {0};
            if (bank->spec.mixed)
                for (int e = 0; e < E; e++) sum += load(at + e * CC_VL) * routing[(size_t)b * E + e];
            else sum = load(at);
            store(out + b * out_pitch + (size_t)tap * CC_VL, sum);
        }
}
