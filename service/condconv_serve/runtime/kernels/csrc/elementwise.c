// Means, sums and products of single numbers: memory sets their pace.
#include "activations.h"

void CC_NAME(cc_pool)(cc_type type, const void *x, int pixels, int channels, float *out) {
    const int bf16 = type == CC_BFLOAT16;
    for (int c = 0; c < channels; c += CC_VL) {
        const int count = min_of(channels - c, CC_VL);
        vf sum[4] = {{0}};
        int p = 0;
        for (; p + 4 <= pixels; p += 4)
            for (int i = 0; i < 4; i++) sum[i] += load_some(x, (size_t)(p + i) * channels + c, count, bf16);
        for (; p < pixels; p++) sum[0] += load_some(x, (size_t)p * channels + c, count, bf16);
        store_some(out, c, ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)pixels, count, 0);
    }
}

void CC_NAME(cc_scale)(cc_type type, const void *x, const float *scale, int pixels, int channels, void *out) {
    const int bf16 = type == CC_BFLOAT16;
    for (int p = 0; p < pixels; p++)
        for (int c = 0; c < channels; c += CC_VL) {
            const size_t at = (size_t)p * channels + c;
            const int count = channels - c;
            store_some(out, at, load_some(x, at, count, bf16) * load_some(scale, c, count, 0), count, bf16);
        }
}

// Each number by itself; `v` is the number, `i` its place.
#define EACH(COUNT, BFLOAT16, X, CODE) \
    for (size_t i = 0; i < COUNT; i += CC_VL) { \
        const int some = (int)min_size(COUNT - i, CC_VL); \
        vf v = load_some(X, i, some, BFLOAT16); \
        CODE \
    }

void CC_NAME(cc_add)(cc_type type, const void *x, const void *y, size_t count, cc_activation activation, void *out) {
    const int bf16 = type == CC_BFLOAT16;
    CC_EACH_ACTIVATION(activation, EACH(count, bf16, x, {
        store_some(out, i, activate(v + load_some(y, i, some, bf16), A, 0), some, bf16);
    }))
}

void CC_NAME(cc_multiply)(cc_type type, const void *x, const void *y, size_t count, void *out) {
    const int bf16 = type == CC_BFLOAT16;
    EACH(count, bf16, x, store_some(out, i, v * load_some(y, i, some, bf16), some, bf16);)
}

void CC_NAME(cc_activate)(cc_type type, const void *x, size_t count, cc_activation activation, void *out) {
    const int bf16 = type == CC_BFLOAT16;
    CC_EACH_ACTIVATION(activation, EACH(count, bf16, x, store_some(out, i, activate(v, A, 0), some, bf16);))
}

void CC_NAME(cc_convert)(cc_type from, const void *x, cc_type to, size_t count, void *out) {
    const int narrow = to == CC_BFLOAT16;
    EACH(count, from == CC_BFLOAT16, x, store_some(out, i, v, some, narrow);)
}
