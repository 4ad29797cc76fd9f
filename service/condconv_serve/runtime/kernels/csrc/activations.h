// Activations of vectors. NaN stays NaN; infinities yield what the formula yields.
#pragma once
#include "simd.h"

// x / (1 + 2^t), relative error 2e-7; where it only becomes bfloat16 (`rough`), 1e-4. Beyond -127 and 128 the power is 0
// and infinity.
CC_INLINE vf over_one_and_power(vf x, vf t, const int rough) {
    t = at_least(-127.0f, at_most(128.0f, t));
#if CC_INTRINSICS && CC_VL == 16
    vf n = (vf)_mm512_roundscale_ps((__m512)t, 8), f = t - n;
#else
    vf shifted = t + 12582912.0f, n = shifted - 12582912.0f, f = t - n; // 1.5 * 2^23: rounds to a whole number
#endif
    vf p;
    if (rough) p = (f * 0.05500826f + 0.24220958f) * f + 0.69328285f;
    else p = (((f * 0.0013276469f + 0.0096755410f) * f + 0.0555071346f) * f + 0.2402212024f) * f + 0.6931469440f;
    p = p * f + 1.0f;
#if CC_INTRINSICS && CC_VL == 16
    vf d = (vf)_mm512_scalef_ps((__m512)p, (__m512)n) + 1.0f;
    return rough ? x * (vf)_mm512_rcp14_ps((__m512)d) : x / d;
#else
    return x / ((vf)((vi)p + ((vi)shifted << 23)) + 1.0f);
#endif
}

CC_INLINE vf activate(vf x, const cc_activation activation, const int rough) {
    switch (activation) {
    case CC_RELU: return at_least(0.0f, x);
    case CC_RELU6: return at_most(6.0f, at_least(0.0f, x));
    case CC_SWISH: return over_one_and_power(x, x * -1.44269504f, rough);
    case CC_SIGMOID: return over_one_and_power(splat(1.0f), x * -1.44269504f, rough);
    case CC_HARD_SIGMOID: return at_most(6.0f, at_least(0.0f, x + 3.0f)) * (1.0f / 6.0f);
    case CC_HARD_SWISH: return x * (at_most(6.0f, at_least(0.0f, x + 3.0f)) * (1.0f / 6.0f));
    default: return x;
    }
}

// Runs CODE with a constant A in the place of `activation`, so that each gets a loop of its own.
#define CC_EACH_ACTIVATION(activation, CODE) \
    switch (activation) { \
    case CC_RELU: { const cc_activation A = CC_RELU; CODE } break; \
    case CC_RELU6: { const cc_activation A = CC_RELU6; CODE } break; \
    case CC_SWISH: { const cc_activation A = CC_SWISH; CODE } break; \
    case CC_HARD_SWISH: { const cc_activation A = CC_HARD_SWISH; CODE } break; \
    case CC_SIGMOID: { const cc_activation A = CC_SIGMOID; CODE } break; \
    case CC_HARD_SIGMOID: { const cc_activation A = CC_HARD_SIGMOID; CODE } break; \
    default: { const cc_activation A = CC_LINEAR; CODE } break; \
    }
