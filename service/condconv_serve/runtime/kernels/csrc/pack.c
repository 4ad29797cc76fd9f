// Packs a convolution's weights in the order in which its kernels read them.
//
// Dense: [tile][step][num_experts][CC_TILE], where a step is an input channel of one tap, or a pair of them for products in
// bfloat16 (see mixing.c); steps go by tap, then by input channel. Depthwise: [vector][tap][num_experts][CC_VL].
#include "mixing.h"

static uint16_t to_float16(float f) { // of numbers that it holds exactly
    union { float f; uint32_t u; } v = {f};
    const uint32_t sign = (v.u >> 16) & 0x8000, size = v.u & 0x7fffffff;
    if (size < 0x38800000) { // below the smallest normal number
        union { uint32_t u; float f; } s = {size};
        return (uint16_t)(sign | (uint32_t)lrintf(s.f * 0x1p24f));
    }
    return (uint16_t)(sign | ((size - 0x38000000) >> 13));
}

static int steps_of(const cc_bank *bank) { return bank->depth / step_channels(bank); }

size_t CC_NAME(cc_bank_bytes)(const cc_bank *bank) {
    if (bank->spec.depthwise)
        return (size_t)((bank->spec.out_channels + CC_VL - 1) / CC_VL) * bank->taps * bank->spec.num_experts * CC_VL * 4;
    return CC_NAME(cc_step_bytes)(bank) * steps_of(bank) * bank->tiles;
}

static void pack_depthwise(const cc_bank *bank, const float *experts, float *to) {
    const int E = bank->spec.num_experts, C = bank->spec.out_channels;
    for (int c = 0; c < (C + CC_VL - 1) / CC_VL * CC_VL; c++)
        for (int tap = 0; tap < bank->taps; tap++)
            for (int e = 0; e < E; e++)
                to[(((size_t)(c / CC_VL) * bank->taps + tap) * E + e) * CC_VL + c % CC_VL] =
                    c < C ? experts[((size_t)e * bank->taps + tap) * C + c] : 0;
}

void CC_NAME(cc_pack)(const cc_bank *bank, const float *experts, void *data) {
    if (bank->spec.depthwise) {
        pack_depthwise(bank, experts, data);
        return;
    }
    const int E = bank->spec.num_experts, C = bank->spec.out_channels, real = bank->taps * bank->spec.in_channels;
    const int pairs = (E + 1) / 2, mixed = bank->spec.mixed;
    memset(data, 0, bank->bytes);
    for (int tile = 0; tile < bank->tiles; tile++)
        for (int k = 0; k < real; k++)
            for (int e = 0; e < E; e++)
                for (int n = 0; n < CC_TILE && tile * CC_TILE + n < C; n++) {
                    const float v = experts[((size_t)e * real + k) * C + tile * CC_TILE + n];
                    const size_t row = (size_t)tile * bank->depth + k;
                    if (bank->spec.type == CC_BANK_FLOAT32) ((float *)data)[(row * E + e) * CC_TILE + n] = v;
                    else if (bank->spec.type == CC_BANK_FLOAT16)
                        ((uint16_t *)data)[(row * E + e) * CC_TILE + n] = to_float16(v);
                    else if (mixed)
                        ((uint16_t *)data)[(((row / 2 * pairs + e / 2) * CC_TILE + n) * 2 + k % 2) * 2 + e % 2] =
                            to_bfloat16(v);
                    else ((uint16_t *)data)[(row / 2 * CC_TILE + n) * 2 + k % 2] = to_bfloat16(v);
                }
}
