// Means, sums and products of single numbers: memory sets their pace.
#include "activations.h"
#include <float.h>

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

// The larger one; `a` where either is NaN.
CC_INLINE vf larger(vf a, vf b) {
#if CC_INTRINSICS && CC_VL == 16
    return (vf)_mm512_max_ps((__m512)b, (__m512)a);
#elif CC_INTRINSICS
    return (vf)_mm256_max_ps((__m256)b, (__m256)a);
#else
    const vi less = a < b;
    return (vf)(((vi)b & less) | ((vi)a & ~less));
#endif
}

// A window of an image, without what lies beyond the image: rows y0 to y1 - 1, columns x0 to x1 - 1.
typedef struct { int y0, y1, x0, x1; } window;

// The largest numbers of some vectors of channels, each with `count` of them. NaN are left out, as TensorFlow does.
CC_INLINE void largest(const cc_windows *w, const window *in, const void *x, int c, const int vectors, int count,
                       const int bf16, void *out, size_t to) {
    vf most[4];
    CC_UNROLL for (int n = 0; n < vectors; n++) most[n] = splat(-FLT_MAX);
    for (int py = in->y0; py < in->y1; py++)
        for (int px = in->x0; px < in->x1; px++) {
            const size_t at = ((size_t)py * (size_t)w->width + (size_t)px) * (size_t)w->channels + (size_t)c;
            CC_UNROLL for (int n = 0; n < vectors; n++)
                most[n] = larger(most[n], load_some(x, at + n * CC_VL, count, bf16));
        }
    CC_UNROLL for (int n = 0; n < vectors; n++) store_some(out, to + n * CC_VL, most[n], count, bf16);
}

void CC_NAME(cc_max_pool)(cc_type type, const cc_windows *w, const void *x, void *out) {
    const int bf16 = type == CC_BFLOAT16, channels = w->channels;
    size_t to = 0;
    for (int oy = 0; oy < w->out_height; oy++) {
        const int top = oy * w->stride_height - w->pad_top;
        for (int ox = 0; ox < w->out_width; ox++, to += (size_t)channels) {
            const int left = ox * w->stride_width - w->pad_left;
            const window in = {max_of(top, 0), min_of(top + w->window_height, w->height),
                               max_of(left, 0), min_of(left + w->window_width, w->width)};
            int c = 0;
            for (; c + 4 * CC_VL <= channels; c += 4 * CC_VL) largest(w, &in, x, c, 4, CC_VL, bf16, out, to + (size_t)c);
            for (; c < channels; c += CC_VL)
                largest(w, &in, x, c, 1, min_of(channels - c, CC_VL), bf16, out, to + (size_t)c);
        }
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
