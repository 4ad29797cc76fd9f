// Convolutions, shared by all examples or mixed for each: products of patches (or of the input itself) with tiles of the
// kernel. Two orders for mixed kernels: a tile of all examples' kernels is mixed into the cache and used at once, which
// goes through all pixels for each tile; or, where pixels are so many that they leave the cache, whole kernels are mixed
// and each is used like a shared one.
#include "mixing.h"
#include "patches.h"
#include "product.h"

enum {
    MOST_STEPS = 192,             // of one block: what a tile of them takes stays in the first-level cache
    ROW_BYTES = 128 << 10,        // of a block of rows and steps, where the kernel is shared: in the second-level cache
    MOST_ROWS = 512,              // of one block
    MANY_PIXELS = 1000,           // of an example: from here on its kernel is mixed whole
    MIXED_TOGETHER = 4,           // examples whose kernels are mixed whole at once, so that experts are read once,
    MIXED_BYTES = 4 << 20,        // as far as their kernels stay in the last-level cache
};

// Whether each example has a kernel of its own: mixed, or at least scaled.
static int is_mixed(const cc_conv *c) { return c->bank->spec.mixed || c->scale; }

cc_extent CC_NAME(cc_conv_extent)(const cc_conv *c) {
    return (cc_extent){.tiles = c->bank->tiles, .pixels = c->batch * c->out_height * c->out_width};
}

// Steps per block: as even as may be.
static int steps_per_block(int steps) {
    const int blocks = (steps + MOST_STEPS - 1) / MOST_STEPS;
    return ((steps + blocks - 1) / blocks + 3) / 4 * 4;
}

static cc_tile_work work_for(const cc_conv *c, int tile, const void *residual) {
    const cc_bank *bank = c->bank;
    const int columns = min_of(bank->spec.out_channels - tile * CC_TILE, CC_TILE);
    const int bf16 = bank->spec.type == CC_BANK_BFLOAT16;
    return (cc_tile_work){
        .x_pitch = (ptrdiff_t)bank->depth * (bf16 ? 2 : 4),
        .factor = bank->factor + (size_t)tile * CC_TILE,
        .activation = c->activation,
        .columns = columns,
        .vectors = (columns + CC_VL - 1) / CC_VL,
        .bfloat16 = bf16,
        .out_pitch = bank->spec.out_channels,
        .residual = residual,
        .out_bfloat16 = c->out_type == CC_BFLOAT16,
    };
}

// A kernel's tiles, from the part's first one on: the bank's, or of an example's own.
typedef struct {
    const char *tiles, *end;
    size_t step_bytes;
    const float *routing; // [num_experts], of the experts' biases, or NULL
} kernel;

// The same kernel for `rows` rows of x, whose first one belongs to number `row` of out. A block of steps goes through all
// tiles, so that its part of x stays in the cache; `sums` [tiles][rows][CC_TILE] holds what is not finished.
static void shared_rows(const cc_conv *c, cc_part part, const kernel *own, const char *x, int rows, size_t row, float *sums) {
    const cc_bank *bank = c->bank;
    const int steps = bank->depth / step_channels(bank), block = steps_per_block(steps);
    for (int k = 0; k < steps; k += block) {
        for (int tile = part.tile_begin; tile < part.tile_end; tile++) {
            float bias[CC_TILE];
            cc_tile_work w = work_for(c, tile, c->residual);
            w.bias = mixed_bias(bank, tile, own->routing, bias);
            w.steps = min_of(block, steps - k);
            w.kernel = own->tiles + ((size_t)(tile - part.tile_begin) * steps + k) * own->step_bytes;
            w.first = k == 0;
            w.last = k + block >= steps;
            const char *next = w.kernel + (tile + 1 < part.tile_end ? steps : w.steps) * own->step_bytes;
            fetch_meanwhile(&w, next, min_size(next < own->end ? own->end - next : 0, w.steps * own->step_bytes), rows);
            float *unfinished = sums ? sums + (size_t)(tile - part.tile_begin) * rows * CC_TILE : 0;
            CC_NAME(cc_product)(&w, rows, x + (size_t)k * 4, unfinished, c->out, row * w.out_pitch + (size_t)tile * CC_TILE);
        }
    }
}

static int run_kernel(const cc_conv *c, cc_part part, const kernel *own) {
    const cc_bank *bank = c->bank;
    const int hw = c->out_height * c->out_width, steps = bank->depth / step_channels(bank);
    const int block = steps_per_block(steps), direct = CC_NAME(cc_is_direct)(c);
    const size_t pitch = (size_t)bank->depth * (bank->spec.type == CC_BANK_BFLOAT16 ? 2 : 4);
    const int fitting = max_of(min_of(ROW_BYTES / (block * 4), MOST_ROWS), CC_MR) / CC_MR * CC_MR;
    const int most = min_of(fitting, part.pixel_end - part.pixel_begin);
    const size_t unfinished = steps > block ? (size_t)(part.tile_end - part.tile_begin) * most * CC_TILE * 4 : 0;
    float *sums = 0;
    char *patches = 0;
    if (unfinished && !(sums = cc_scratch(CC_SCRATCH_SUMS, unfinished))) return -1;
    if (!direct && !(patches = cc_scratch(CC_SCRATCH_PATCHES, most * pitch + CC_PATCH_SLACK))) return -1;
    const size_t example = (size_t)c->height * c->width * bank->spec.in_channels * size_of_type(c->type);
    for (int at = part.pixel_begin, rows; at < part.pixel_end; at += rows) {
        rows = min_of(most, part.pixel_end - at);
        const char *x = (const char *)c->x + at * pitch;
        for (int done = 0, some; !direct && done < rows; done += some) { // example by example
            const int first = (at + done) % hw;
            const char *from = (const char *)c->x + (at + done) / hw * example;
            some = min_of(rows - done, hw - first);
            if (CC_NAME(cc_patches)(c, from, first, first + some, patches + done * pitch)) return -1;
            x = patches;
        }
        shared_rows(c, part, own, x, rows, at, sums);
    }
    return 0;
}

static int run_shared(const cc_conv *c, cc_part part) {
    const cc_bank *bank = c->bank;
    const size_t step_bytes = CC_NAME(cc_step_bytes)(bank), steps = bank->depth / step_channels(bank);
    const char *data = bank->data;
    const kernel k = {data + part.tile_begin * steps * step_bytes, data + bank->bytes, step_bytes, 0};
    return run_kernel(c, part, &k);
}

// Mixes whole kernels, those of some examples at once.
static int run_whole(const cc_conv *c, cc_part part) {
    const cc_bank *bank = c->bank;
    const int hw = c->out_height * c->out_width, E = bank->spec.num_experts, steps = bank->depth / step_channels(bank);
    const int tiles = part.tile_end - part.tile_begin, end = (part.pixel_end + hw - 1) / hw; // of examples
    const size_t step_bytes = CC_NAME(cc_step_bytes)(bank), tile_bytes = (size_t)steps * CC_TILE * 4;
    const size_t pitch = tiles * tile_bytes + 64;
    const char *experts = (const char *)bank->data + (size_t)part.tile_begin * steps * step_bytes;
    const int most = max_of(min_of(MIXED_TOGETHER, MIXED_BYTES / pitch), 1);
    char *mixed = cc_scratch(CC_SCRATCH_MIXED, most * pitch);
    if (!mixed) return -1;
    for (int first = part.pixel_begin / hw, count; first < end; first += count) {
        count = min_of(most, end - first);
        const float *routing = c->routing ? c->routing + (size_t)first * E : 0;
        const float *scale = c->scale ? c->scale + (size_t)first * bank->depth : 0;
        for (int tile = 0; tile < tiles; tile++)
            CC_NAME(cc_mix)(bank, experts + tile * steps * step_bytes, steps, count, routing, scale, bank->depth,
                            mixed + tile * tile_bytes, pitch);
        for (int b = 0; b < count; b++) {
            cc_part one = part;
            one.pixel_begin = max_of(part.pixel_begin, (first + b) * hw);
            one.pixel_end = min_of(part.pixel_end, (first + b + 1) * hw);
            const char *own = mixed + b * pitch;
            const kernel k = {own, own + tiles * tile_bytes, CC_TILE * 4, routing ? routing + (size_t)b * E : 0};
            if (run_kernel(c, one, &k)) return -1;
        }
    }
    return 0;
}

// Mixes a tile of all examples' kernels, block by block of its steps.
static int run_mixed(const cc_conv *c, cc_part part) {
    const cc_bank *bank = c->bank;
    const int hw = c->out_height * c->out_width, E = bank->spec.num_experts;
    const int first = part.pixel_begin / hw, B = (part.pixel_end + hw - 1) / hw - first; // examples
    const int per_step = step_channels(bank), steps = bank->depth / per_step, block = steps_per_block(steps);
    const size_t step_bytes = CC_NAME(cc_step_bytes)(bank), mixed_pitch = (size_t)block * CC_TILE * 4 + 64;
    const size_t pitch = (size_t)bank->depth * (bank->spec.type == CC_BANK_BFLOAT16 ? 2 : 4);
    const float *routing = c->routing ? c->routing + (size_t)first * E : 0;
    const float *scale = c->scale ? c->scale + (size_t)first * bank->depth : 0;
    const char *x = (const char *)c->x + first * hw * pitch, *end = (const char *)bank->data + bank->bytes;
    char *mixed = cc_scratch(CC_SCRATCH_MIXED, B * mixed_pitch);
    float *sums = block < steps ? cc_scratch(CC_SCRATCH_SUMS, (size_t)B * hw * CC_TILE * 4) : 0;
    if (!mixed || (block < steps && !sums)) return -1;
    if (!CC_NAME(cc_is_direct)(c)) {
        const size_t example = (size_t)c->height * c->width * bank->spec.in_channels * size_of_type(c->type);
        char *patches = cc_scratch(CC_SCRATCH_PATCHES, B * hw * pitch + CC_PATCH_SLACK);
        if (!patches) return -1;
        for (int b = 0; b < B; b++) {
            const char *from = (const char *)c->x + (first + b) * example;
            if (CC_NAME(cc_patches)(c, from, 0, hw, patches + b * hw * pitch)) return -1;
        }
        x = patches;
    }
    for (int tile = part.tile_begin; tile < part.tile_end; tile++) {
        const char *experts = (const char *)bank->data + (size_t)tile * steps * step_bytes;
        cc_tile_work w = work_for(c, tile, c->residual);
        for (int k = 0; k < steps; k += block, experts += block * step_bytes) {
            w.steps = min_of(block, steps - k);
            w.first = k == 0;
            w.last = k + block >= steps;
            CC_NAME(cc_mix)(bank, experts, w.steps, B, routing, scale ? scale + k * per_step : 0, bank->depth, mixed,
                            mixed_pitch);
            const char *next = experts + w.steps * step_bytes;
            fetch_meanwhile(&w, next, min_size(end - next, w.steps * step_bytes), part.pixel_end - part.pixel_begin);
            for (int b = 0; b < B; b++) {
                const int begin = max_of(part.pixel_begin - (first + b) * hw, 0);
                const int rows = min_of(part.pixel_end - (first + b) * hw, hw) - begin;
                const size_t row = (size_t)b * hw + begin;
                float own[CC_TILE];
                w.bias = mixed_bias(bank, tile, routing ? routing + (size_t)b * E : 0, own);
                w.kernel = mixed + b * mixed_pitch;
                CC_NAME(cc_product)(&w, rows, x + row * pitch + (size_t)k * 4, sums ? sums + row * CC_TILE : 0, c->out,
                                    (row + (size_t)first * hw) * w.out_pitch + (size_t)tile * CC_TILE);
            }
        }
    }
    return 0;
}

int CC_NAME(cc_conv)(const cc_conv *c, cc_part part) {
    if (!is_mixed(c)) return run_shared(c, part);
    cc_conv own = *c;
    const cc_bank *bank = c->bank;
    if (c->scale && bank->depth != bank->spec.in_channels) { // an odd number of channels, in pairs
        float *scale = cc_scratch(CC_SCRATCH_DONE, (size_t)c->batch * bank->depth * sizeof *scale);
        if (!scale) return -1;
        for (int b = 0; b < c->batch; b++)
            for (int k = 0; k < bank->depth; k++)
                scale[b * bank->depth + k] = k < bank->spec.in_channels ? c->scale[b * bank->spec.in_channels + k] : 0;
        own.scale = scale;
    }
    if (c->out_height * c->out_width >= MANY_PIXELS) return run_whole(&own, part);
    return run_mixed(&own, part);
}
