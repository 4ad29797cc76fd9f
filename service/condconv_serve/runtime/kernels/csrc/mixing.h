// Mixing kernels: one per example, the sum of the experts by its routing weights.
#pragma once
#include "simd.h"

// Bytes that a bank takes for one input channel (float32, float16) or a pair of them (bfloat16) of one tile.
size_t CC_NAME(cc_step_bytes)(const cc_bank *bank);

// Input channels per step: 1, or 2 where the bank is of bfloat16.
CC_INLINE int step_channels(const cc_bank *bank) { return bank->spec.type == CC_BANK_BFLOAT16 ? 2 : 1; }

// Mixes `steps` steps of one tile, from `experts` on, for each example: out [batch][out_pitch bytes]. `scale` (or NULL)
// [batch][scale_pitch] begins at these input channels. A shared kernel is only scaled.
void CC_NAME(cc_mix)(const cc_bank *bank, const char *experts, int steps, int batch, const float *routing,
                     const float *scale, size_t scale_pitch, char *out, size_t out_pitch);

// Mixes one vector of a depthwise kernel for each example: out [batch][taps][CC_VL] at `out_pitch` numbers.
void CC_NAME(cc_mix_depthwise)(const cc_bank *bank, int vector, int batch, const float *routing, float *out,
                               size_t out_pitch);

// The biases of one tile for one example: of the bank, and of the experts times their factor, if they have any.
CC_INLINE const float *mixed_bias(const cc_bank *bank, int tile, const float *routing, float own[CC_TILE]) {
    const float *bias = bank->bias + (size_t)tile * CC_TILE;
    if (!bank->expert_bias) return bias;
    for (int n = 0; n < CC_TILE; n += CC_VL) {
        vf sum = {0};
        for (int e = 0; e < bank->spec.num_experts; e++)
            sum += load(bank->expert_bias + ((size_t)e * bank->tiles + tile) * CC_TILE + n) * routing[e];
        store(own + n, load(bias + n) + sum * load(bank->factor + (size_t)tile * CC_TILE + n));
    }
    return own;
}
