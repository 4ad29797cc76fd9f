// Depthwise convolutions, also fused with the convolution before them.
//
// One tile of channels at a time: what the producer yields (or the input) lies as an image of these channels in the
// second-level cache, float32, with zeros around it, or a band of that image where it is large. The depthwise convolution
// reads it there, without cases for the edges. So what a block expands never goes to memory.
#include "mixing.h"
#include "patches.h"
#include "product.h"

enum {
    BAND_BYTES = 256 << 10,
    PATCH_BYTES = 128 << 10,
    AHEAD = 24, // pixels: so far in advance the input is fetched into the cache
};

typedef struct {
    const cc_conv *producer, *conv; // producer: or NULL
    int band;                       // rows of output that are computed from one image
    int rows, width;                // of the image
    int kept;                       // rows of the image that the next band needs, too
    int patches;                    // whether the producer needs patches
    float *image, *weights, *done;
    char *mixed, *patch, *halo;
    int32_t *places;
    size_t mixed_pitch, patch_pitch, halo_pitch;
} work;

cc_extent CC_NAME(cc_depthwise_extent)(const cc_conv *producer, const cc_conv *conv) {
    (void)producer;
    return (cc_extent){.tiles = conv->bank->tiles, .pixels = 1};
}

// --- the depthwise convolution of one vector of channels of one row ---------------------------------------------------

CC_INLINE void some_outputs(const float *in, size_t pitch, const float *weights, float *done, const int kernel,
                            const int stride, const int count) {
    vf sum[14];
    CC_UNROLL for (int i = 0; i < count; i++) sum[i] = (vf){0};
    for (int ky = 0; ky < kernel; ky++, in += pitch, weights += kernel * CC_VL) {
        vf w[5];
        CC_UNROLL for (int kx = 0; kx < kernel; kx++) w[kx] = load(weights + kx * CC_VL);
        CC_UNROLL for (int ix = 0; ix < (count - 1) * stride + kernel; ix++) {
            vf v = load(in + ix * CC_TILE);
            CC_UNROLL for (int kx = 0; kx < kernel; kx++) {
                const int ox = (ix - kx) / stride;
                if (ix >= kx && (ix - kx) % stride == 0 && ox < count) sum[ox] += v * w[kx];
            }
        }
    }
    CC_UNROLL for (int i = 0; i < count; i++) store(done + i * CC_VL, sum[i]);
}

typedef void (*row_fn)(const cc_bank_spec *, const float *in, size_t pitch, const float *weights, float *done,
                       int count);
// Of the row functions: COUNT outputs from x on.
#define OUTPUTS_OF(K, S, COUNT) some_outputs(in + x * S * CC_TILE, pitch, weights, done + x * CC_VL, K, S, COUNT)
#define ROW_FN(K, S) \
    static void row_##K##_##S(const cc_bank_spec *spec, const float *in, size_t pitch, const float *weights, \
                              float *done, int count) { \
        (void)spec; \
        int x = 0; \
        for (; CC_VL == 16 && x + 14 <= count; x += 14) OUTPUTS_OF(K, S, 14); \
        for (; x + 7 <= count; x += 7) OUTPUTS_OF(K, S, 7); \
        for (; x + 3 <= count; x += 3) OUTPUTS_OF(K, S, 3); \
        for (; x < count; x++) OUTPUTS_OF(K, S, 1); \
    }
ROW_FN(3, 1)
ROW_FN(3, 2)
ROW_FN(5, 1)
ROW_FN(5, 2)

static void row_any(const cc_bank_spec *s, const float *in, size_t pitch, const float *weights, float *done,
                    int count) {
    for (int x = 0; x < count; x++) {
        vf sum = {0};
        for (int ky = 0; ky < s->kernel_height; ky++)
            for (int kx = 0; kx < s->kernel_width; kx++)
                sum += load(in + (size_t)ky * s->dilation_height * pitch +
                            (x * s->stride_width + kx * s->dilation_width) * CC_TILE) *
                       load(weights + (ky * s->kernel_width + kx) * CC_VL);
        store(done + x * CC_VL, sum);
    }
}

static row_fn row_for(const cc_bank_spec *s) {
    const int k = s->kernel_width, stride = s->stride_width;
    if (s->kernel_height != k || s->dilation_width != 1 || s->dilation_height != 1 || stride > 2) return row_any;
    if (k == 3) return stride == 1 ? row_3_1 : row_3_2;
    if (k == 5) return stride == 1 ? row_5_1 : row_5_2;
    return row_any;
}

// Scales, adds the bias, activates, stores `count` pixels and adds them to `pooled`.
static void finish_row(const float *done, int count, vf factor, vf bias, const cc_conv *c, size_t at, int columns,
                       vf *pooled) {
    const size_t pitch = c->bank->spec.out_channels;
    const int bf16 = c->out_type == CC_BFLOAT16;
    vf total = *pooled;
    int at_once = 0;
    if (!bf16 && columns >= CC_VL) {
        float *out = (float *)c->out + at;
#define FINISH_FOUR \
    for (; at_once + 4 <= count; at_once += 4, out += 4 * pitch) { \
        vf v[4]; \
        CC_UNROLL for (int i = 0; i < 4; i++) v[i] = load(done + (at_once + i) * CC_VL) * factor + bias; \
        activate_some(v, 4, A, 0); \
        CC_UNROLL for (int i = 0; i < 4; i++) store(out + i * pitch, v[i]); \
        total += (v[0] + v[1]) + (v[2] + v[3]); \
    }
        CC_EACH_ACTIVATION(c->activation, FINISH_FOUR)
    }
#define FINISH(BFLOAT16) \
    for (int i = at_once; i < count; i++) { \
        vf v = activate(load(done + i * CC_VL) * factor + bias, A, BFLOAT16); \
        total += v; \
        store_some(c->out, at + i * pitch, v, columns, BFLOAT16); \
    }
    if (bf16) CC_EACH_ACTIVATION(c->activation, FINISH(1))
    else CC_EACH_ACTIVATION(c->activation, FINISH(0))
#undef FINISH
#undef FINISH_FOUR
    // What lies beyond the columns was computed of zeros; store_some leaves it out of `pooled`, too.
    *pooled = total;
}

// --- the image --------------------------------------------------------------------------------------------------------

static int extent_of(int kernel, int dilation) { return (kernel - 1) * dilation + 1; }

static int plan(work *k) {
    const cc_conv *c = k->conv, *p = k->producer;
    const cc_bank_spec *s = &c->bank->spec;
    const int reach = extent_of(s->kernel_height, s->dilation_height), B = c->batch;
    k->width = max_of((c->out_width - 1) * s->stride_width + extent_of(s->kernel_width, s->dilation_width), c->pad_left + c->width);
    const size_t line = (size_t)k->width * CC_TILE * 4;
    k->patches = p && !CC_NAME(cc_is_direct)(p);
    k->patch_pitch = k->patches ? (size_t)p->bank->depth * (p->bank->spec.type == CC_BANK_BFLOAT16 ? 2 : 4) : 0;
    k->band = c->out_height;
    for (; k->band > 1; k->band = (k->band + 1) / 2) {
        const size_t rows = (k->band - 1) * s->stride_height + reach;
        if (rows * line <= BAND_BYTES && rows * c->width * k->patch_pitch <= PATCH_BYTES) break;
    }
    k->rows = (k->band - 1) * s->stride_height + reach;
    k->kept = k->band < c->out_height ? max_of(reach - s->stride_height, 0) : 0;
    k->halo_pitch = k->kept * line;
    k->mixed_pitch = p && p->bank->spec.mixed ? (size_t)p->bank->depth / step_channels(p->bank) * CC_TILE * 4 + 64 : 0;
    k->image = cc_scratch(CC_SCRATCH_IMAGE, k->rows * line);
    k->places = cc_scratch(CC_SCRATCH_TABLE, (size_t)k->rows * c->width * sizeof *k->places);
    k->weights = cc_scratch(CC_SCRATCH_WEIGHTS, (size_t)B * CC_NR * c->bank->taps * CC_VL * 4);
    k->done = cc_scratch(CC_SCRATCH_DONE, (size_t)c->out_width * CC_VL * 4);
    k->mixed = cc_scratch(CC_SCRATCH_MIXED, B * k->mixed_pitch + 64);
    k->patch = cc_scratch(CC_SCRATCH_PATCHES, B * k->rows * c->width * k->patch_pitch + CC_PATCH_SLACK);
    k->halo = cc_scratch(CC_SCRATCH_HALO, k->halo_pitch * c->bank->tiles * B + 64);
    return k->image && k->places && k->weights && k->done && k->mixed && k->patch && k->halo ? 0 : -1;
}

// The rows of one band: `top` is the input's row (of the depthwise convolution) that the image's first row stands for;
// rows `low` to `high` - 1 of the input have to be made, those before lie there already.
typedef struct { int first, count, top, low, high, kept; } band;

static band band_at(const work *k, int first) {
    const cc_conv *c = k->conv;
    const cc_bank_spec *s = &c->bank->spec;
    band b = {.first = first, .count = min_of(c->out_height - first, k->band)};
    b.top = first * s->stride_height - c->pad_top;
    b.kept = first ? k->kept : 0;
    const int rows = (b.count - 1) * s->stride_height + extent_of(s->kernel_height, s->dilation_height);
    b.high = max_of(min_of(b.top + rows, c->height), 0);
    b.low = min_of(max_of(b.top + b.kept, 0), b.high);
    return b;
}

// Zeros around the image, and the places of its pixels.
static void frame(const work *k, const band *b) {
    const cc_conv *c = k->conv;
    const size_t line = (size_t)k->width * CC_TILE;
    for (int r = b->kept; r < k->rows; r++) {
        float *at = k->image + r * line;
        if (b->top + r < 0 || b->top + r >= c->height) memset(at, 0, line * 4);
        else {
            memset(at, 0, (size_t)c->pad_left * CC_TILE * 4);
            memset(at + (size_t)(c->pad_left + c->width) * CC_TILE, 0, (size_t)(k->width - c->pad_left - c->width) * CC_TILE * 4);
        }
    }
    int32_t *place = k->places;
    for (int y = b->low; y < b->high; y++)
        for (int x = 0; x < c->width; x++) *place++ = ((y - b->top) * k->width + c->pad_left + x) * CC_TILE;
}

static void copy_input(const work *k, const band *b, int tile, int example) {
    const cc_conv *c = k->conv;
    const int C = c->bank->spec.in_channels, pixels = (b->high - b->low) * c->width, bf16 = c->type == CC_BFLOAT16;
    const size_t from = ((size_t)example * c->height + b->low) * c->width * C + (size_t)tile * CC_TILE;
    const size_t size = bf16 ? 2 : 4;
    for (int p = 0; p < pixels; p++) {
        // Pixels are too far apart for the CPU to see what comes next.
        __builtin_prefetch((const char *)c->x + (from + (size_t)(p + AHEAD) * C) * size);
        for (int n = 0; n < CC_NR; n++) {
            const int count = C - tile * CC_TILE - n * CC_VL;
            if (count <= 0) break;
            store(k->image + k->places[p] + n * CC_VL, load_some(c->x, from + (size_t)p * C + n * CC_VL, count, bf16));
        }
    }
}

static int gather_patches(const work *k, const band *b) {
    const cc_conv *p = k->producer;
    const int pixels = (b->high - b->low) * p->out_width;
    const size_t example = (size_t)p->height * p->width * p->bank->spec.in_channels * size_of_type(p->type);
    for (int i = 0; i < p->batch; i++)
        if (CC_NAME(cc_patches)(p, (const char *)p->x + i * example, b->low * p->out_width, b->high * p->out_width,
                                k->patch + i * (size_t)pixels * k->patch_pitch)) return -1;
    return 0;
}

// What all examples of a tile share: the producer's work, with mixed kernels, and the depthwise kernels.
static cc_tile_work start_tile(const work *k, const band *b, int tile) {
    const cc_conv *c = k->conv, *p = k->producer;
    for (int n = 0; n < CC_NR && tile * CC_NR + n < (c->bank->spec.out_channels + CC_VL - 1) / CC_VL; n++)
        CC_NAME(cc_mix_depthwise)(c->bank, tile * CC_NR + n, c->batch, c->routing,
                                  k->weights + (size_t)n * c->bank->taps * CC_VL, (size_t)CC_NR * c->bank->taps * CC_VL);
    if (!p) return (cc_tile_work){0};
    const cc_bank *bank = p->bank;
    const size_t step_bytes = CC_NAME(cc_step_bytes)(bank);
    const int steps = bank->depth / step_channels(bank), columns = min_of(bank->spec.out_channels - tile * CC_TILE, CC_TILE);
    const char *kernel = (const char *)bank->data + (size_t)tile * steps * step_bytes, *next = kernel + steps * step_bytes;
    cc_tile_work w = {
        .x_pitch = (ptrdiff_t)bank->depth * (bank->spec.type == CC_BANK_BFLOAT16 ? 2 : 4),
        .kernel = kernel,
        .steps = steps,
        .first = 1,
        .last = 1,
        .factor = bank->factor + (size_t)tile * CC_TILE,
        .activation = p->activation,
        .vectors = (columns + CC_VL - 1) / CC_VL,
        .bfloat16 = bank->spec.type == CC_BANK_BFLOAT16,
        .places = k->places,
    };
    w.columns = w.vectors * CC_VL; // whole vectors fit the image
    const size_t left = (const char *)bank->data + bank->bytes - next;
    fetch_meanwhile(&w, next, min_size(left, steps * step_bytes), (size_t)p->batch * (b->high - b->low) * p->out_width);
    if (bank->spec.mixed)
        CC_NAME(cc_mix)(bank, kernel, steps, p->batch, p->routing, 0, 0, k->mixed, k->mixed_pitch);
    return w;
}

static void produce(const work *k, const band *b, cc_tile_work *w, int tile, int example) {
    const cc_conv *p = k->producer;
    const int pixels = (b->high - b->low) * p->out_width, E = p->bank->spec.num_experts;
    float own[CC_TILE];
    w->bias = mixed_bias(p->bank, tile, p->routing ? p->routing + (size_t)example * E : 0, own);
    if (k->mixed_pitch) w->kernel = k->mixed + example * k->mixed_pitch;
    const char *x = k->patches ? k->patch + (size_t)example * pixels * k->patch_pitch
                               : (const char *)p->x + ((size_t)example * p->height + b->low) * p->width * w->x_pitch;
    CC_NAME(cc_product)(w, pixels, x, 0, k->image, 0);
}

static void convolve(const work *k, const band *b, int tile, int example) {
    const cc_conv *c = k->conv;
    const cc_bank *bank = c->bank;
    const cc_bank_spec *s = &bank->spec;
    const row_fn row = row_for(s);
    const size_t line = (size_t)k->width * CC_TILE;
    float own[CC_TILE];
    const float *bias = mixed_bias(bank, tile, c->routing ? c->routing + (size_t)example * s->num_experts : 0, own);
    for (int n = 0; n < CC_NR; n++) {
        const int channel = tile * CC_TILE + n * CC_VL, columns = s->out_channels - channel;
        if (columns <= 0) break;
        const float *weights = k->weights + ((size_t)example * CC_NR + n) * bank->taps * CC_VL;
        float *pooled = c->pooled ? c->pooled + (size_t)example * s->out_channels : 0;
        vf total = pooled && b->first ? load_some(pooled, channel, columns, 0) : (vf){0};
        for (int y = 0; y < b->count; y++) {
            row(s, k->image + (size_t)y * s->stride_height * line + n * CC_VL, line, weights, k->done, c->out_width);
            finish_row(k->done, c->out_width, load(bank->factor + channel), load(bias + n * CC_VL), c,
                       (((size_t)example * c->out_height + b->first + y) * c->out_width) * s->out_channels + channel,
                       columns, &total);
        }
        if (pooled) {
            const int last = b->first + b->count == c->out_height;
            if (last) total /= (float)(c->out_height * c->out_width);
            store_some(pooled, channel, total, columns, 0);
        }
    }
}

int CC_NAME(cc_depthwise)(const cc_conv *producer, const cc_conv *conv, cc_part part) {
    work k = {.producer = producer, .conv = conv};
    if (plan(&k)) return -1;
    const size_t line = (size_t)k.width * CC_TILE * 4, below = (size_t)k.band * conv->bank->spec.stride_height * line;
    for (int first = 0; first < conv->out_height; first += k.band) {
        const band b = band_at(&k, first);
        frame(&k, &b);
        if (k.patches && gather_patches(&k, &b)) return -1;
        for (int tile = part.tile_begin; tile < part.tile_end; tile++) {
            cc_tile_work w = start_tile(&k, &b, tile);
            for (int i = 0; i < conv->batch; i++) {
                char *halo = k.halo + ((size_t)tile * conv->batch + i) * k.halo_pitch;
                if (b.kept) memcpy(k.image, halo, k.halo_pitch);
                if (producer) produce(&k, &b, &w, tile, i);
                else copy_input(&k, &b, tile, i);
                if (k.kept && first + k.band < conv->out_height) memcpy(halo, (char *)k.image + below, k.halo_pitch);
                convolve(&k, &b, tile, i);
            }
        }
    }
    return 0;
}
