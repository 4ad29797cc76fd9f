// Gathers the inputs of a convolution's outputs; pixels are normalised on the way.
#include "patches.h"

int CC_NAME(cc_is_direct)(const cc_conv *c) {
    const cc_bank_spec *s = &c->bank->spec;
    const int same = c->out_height == c->height && c->out_width == c->width;
    return s->kernel_height == 1 && s->kernel_width == 1 && s->stride_height == 1 && s->stride_width == 1 && same &&
           !c->pad_top && !c->pad_left && !c->pixels && c->bank->depth == s->in_channels;
}

// One row of pixels, normalised, with `pad` pixels of zeros in front and zeros up to `width` pixels in all.
static void normalise(const cc_conv *c, const char *row, int pad, int width, void *out) {
    const int C = c->bank->spec.in_channels, bf16 = c->bank->spec.type == CC_BANK_BFLOAT16;
    const size_t size = bf16 ? 2 : 4;
    const int shown = min_of(c->width, max_of(width - pad, 0));
    memset(out, 0, (size_t)width * C * size);
    float mean[CC_VL * 4], scale[CC_VL * 4]; // repeats itself after lcm(channels, CC_VL) numbers; channels <= 4
    for (int i = 0; i < C * CC_VL; i++) {
        mean[i] = c->pixels->mean[i % C];
        scale[i] = c->pixels->scale[i % C];
    }
    const size_t start = (size_t)pad * C;
    const int count = shown * C;
    for (int i = 0; i < count; i += CC_VL) {
        const int some = min_of(count - i, CC_VL), at = i % (C * CC_VL);
        vf v;
        if (c->type == CC_FLOAT32) v = load_some(row, i, some, 0);
        else if (some == CC_VL) v = load_uint8((const uint8_t *)row + i);
        else {
            uint8_t rest[CC_VL] = {0};
            memcpy(rest, row + i, some);
            v = load_uint8(rest);
        }
        store_some(out, start + i, (v - load(mean + at)) * load(scale + at), some, bf16);
    }
}

// Copies some bytes and up to 15 more: calling memcpy for so few would take longer.
CC_INLINE void copy_some(char *to, const char *from, size_t bytes) {
    typedef char part __attribute__((vector_size(16), aligned(1), may_alias));
    for (size_t i = 0; i < bytes; i += 16) *(part *)(to + i) = *(const part *)(from + i);
}

// Patches of outputs (y, x0) to (y, x1 - 1) from lines [kernel_height][width] of normalised pixels.
static void copy_patches(const cc_conv *c, const char *lines, int width, int x0, int x1, char *out) {
    const cc_bank_spec *s = &c->bank->spec;
    const size_t size = s->type == CC_BANK_BFLOAT16 ? 2 : 4, pixel = s->in_channels * size;
    const size_t part = s->kernel_width * pixel, patch = c->bank->depth * size, used = s->kernel_height * part;
    for (int x = x0; x < x1; x++, out += patch) {
        const char *from = lines + (size_t)x * s->stride_width * pixel;
        for (int ky = 0; ky < s->kernel_height; ky++, from += width * pixel) {
            // What is too much is overwritten by the next copy.
            if (s->dilation_width == 1) copy_some(out + ky * part, from, part);
            else
                for (int kx = 0; kx < s->kernel_width; kx++)
                    copy_some(out + ky * part + kx * pixel, from + (size_t)kx * s->dilation_width * pixel, pixel);
        }
        if (used < patch) memset(out + used, 0, patch - used);
    }
}

static int pixel_patches(const cc_conv *c, const char *x, int first, int last, char *out) {
    const cc_bank_spec *s = &c->bank->spec;
    const size_t size = s->type == CC_BANK_BFLOAT16 ? 2 : 4, pixel = s->in_channels * size;
    const size_t in_pixel = s->in_channels * size_of_type(c->type);
    const int width = (c->out_width - 1) * s->stride_width + (s->kernel_width - 1) * s->dilation_width + 1;
    char *lines = cc_scratch(CC_SCRATCH_LINE, s->kernel_height * width * pixel + CC_PATCH_SLACK);
    if (!lines) return -1;
    for (int at = first; at < last;) {
        const int y = at / c->out_width, x0 = at % c->out_width, x1 = min_of(c->out_width, x0 + last - at);
        for (int ky = 0; ky < s->kernel_height; ky++) {
            const int iy = y * s->stride_height + ky * s->dilation_height - c->pad_top;
            char *line = lines + ky * width * pixel;
            if (iy < 0 || iy >= c->height) memset(line, 0, width * pixel);
            else normalise(c, x + (size_t)iy * c->width * in_pixel, c->pad_left, width, line);
        }
        copy_patches(c, lines, width, x0, x1, out);
        out += (size_t)(x1 - x0) * c->bank->depth * size;
        at += x1 - x0;
    }
    return 0;
}

// Of one row of the image, or of zeros (NULL): the pixels that a row of the kernel reads from column `left` on.
CC_INLINE char *copy_row(const cc_conv *c, const char *row, int left, size_t pixel, char *to) {
    const int K = c->bank->spec.kernel_width, step = c->bank->spec.dilation_width;
    if (row && step == 1) { // all that lie in the image at once
        const int begin = max_of(-left, 0), end = max_of(min_of(K, c->width - left), begin);
        if (begin) memset(to, 0, begin * pixel);
        memcpy(to + begin * pixel, row + (ptrdiff_t)(left + begin) * (ptrdiff_t)pixel, (end - begin) * pixel);
        if (end < K) memset(to + end * pixel, 0, (K - end) * pixel);
    } else if (row) {
        for (int k = 0; k < K; k++) {
            const int at = left + k * step;
            if (at < 0 || at >= c->width) memset(to + k * pixel, 0, pixel);
            else memcpy(to + k * pixel, row + at * pixel, pixel);
        }
    } else memset(to, 0, K * pixel);
    return to + K * pixel;
}

int CC_NAME(cc_patches)(const cc_conv *c, const char *x, int first, int last, void *out) {
    if (c->pixels) return pixel_patches(c, x, first, last, out);
    const cc_bank_spec *s = &c->bank->spec;
    const size_t size = s->type == CC_BANK_BFLOAT16 ? 2 : 4, pixel = s->in_channels * size;
    char *to = out;
    for (int at = first; at < last; at++) {
        const int y = at / c->out_width, ox = at % c->out_width, left = ox * s->stride_width - c->pad_left;
        for (int ky = 0; ky < s->kernel_height; ky++) {
            const int iy = y * s->stride_height + ky * s->dilation_height - c->pad_top;
            const int there = iy >= 0 && iy < c->height;
            to = copy_row(c, there ? x + (size_t)iy * c->width * pixel : 0, left, pixel, to);
        }
        const size_t rest = (c->bank->depth - (size_t)c->bank->taps * s->in_channels) * size;
        memset(to, 0, rest);
        to += rest;
    }
    return 0;
}
