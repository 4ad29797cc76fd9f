// Activations of vectors. NaN stays NaN; infinities yield what the formula yields.
#pragma once
#include "simd.h"

#define CC_EACH(CODE) CC_UNROLL for (int i = 0; i < count; i++) { CODE; }

// Makes x to x / (1 + 2^t), relative error 2e-7; where it only becomes bfloat16 (`rough`), 1e-4. Beyond -127 and 128 the
// power is 0 and infinity. Several vectors go side by side, since each step has to wait for the one before.
CC_INLINE void over_one_and_power(vf *x, vf *t, const int count, const int rough) {
    vf f[8], p[8];
    CC_EACH(t[i] = at_least(-127.0f, at_most(128.0f, t[i])))
#if CC_INTRINSICS && CC_VL == 16
    CC_EACH(f[i] = t[i]; t[i] = (vf)_mm512_roundscale_ps((__m512)t[i], 8); f[i] -= t[i])
#else
    CC_EACH(f[i] = t[i]; t[i] += 12582912.0f) // 1.5 * 2^23: rounds to a whole number
    CC_EACH(f[i] -= t[i] - 12582912.0f)
#endif
    if (rough) { CC_EACH(p[i] = (f[i] * 0.05500826f + 0.24220958f) * f[i] + 0.69328285f) }
    else {
        CC_EACH(p[i] = f[i] * 0.0013276469f + 0.0096755410f)
        CC_EACH(p[i] = p[i] * f[i] + 0.0555071346f)
        CC_EACH(p[i] = p[i] * f[i] + 0.2402212024f)
        CC_EACH(p[i] = p[i] * f[i] + 0.6931469440f)
    }
    CC_EACH(p[i] = p[i] * f[i] + 1.0f)
#if CC_INTRINSICS && CC_VL == 16
    CC_EACH(p[i] = (vf)_mm512_scalef_ps((__m512)p[i], (__m512)t[i]) + 1.0f)
    if (rough) { CC_EACH(x[i] *= (vf)_mm512_rcp14_ps((__m512)p[i])) }
    else { CC_EACH(x[i] /= p[i]) }
#else
    CC_EACH(p[i] = (vf)((vi)p[i] + ((vi)t[i] << 23)) + 1.0f)
    CC_EACH(x[i] /= p[i])
#endif
}

// Activates up to 8 vectors.
CC_INLINE void activate_some(vf *x, const int count, const cc_activation activation, const int rough) {
    vf t[8];
    switch (activation) {
    case CC_RELU: CC_EACH(x[i] = at_least(0.0f, x[i])) break;
    case CC_RELU6: CC_EACH(x[i] = at_most(6.0f, at_least(0.0f, x[i]))) break;
    case CC_SWISH:
        CC_EACH(t[i] = x[i] * -1.44269504f)
        over_one_and_power(x, t, count, rough);
        break;
    case CC_SIGMOID:
        CC_EACH(t[i] = x[i] * -1.44269504f; x[i] = splat(1.0f))
        over_one_and_power(x, t, count, rough);
        break;
    case CC_HARD_SIGMOID: CC_EACH(x[i] = at_most(6.0f, at_least(0.0f, x[i] + 3.0f)) * (1.0f / 6.0f)) break;
    case CC_HARD_SWISH: CC_EACH(x[i] *= at_most(6.0f, at_least(0.0f, x[i] + 3.0f)) * (1.0f / 6.0f)) break;
    default: break;
    }
}
CC_INLINE vf activate(vf x, const cc_activation activation, const int rough) {
    activate_some(&x, 1, activation, rough);
    return x;
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
