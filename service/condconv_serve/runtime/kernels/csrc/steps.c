// Runs one step over some rows: finds its values, and splits it into parts where threads are free.
#include "runtime.h"
#include <string.h>

enum {
    TASKS_PER_THREAD = 3,
    BYTES_OF_WORK = 4,      // multiply-adds in the time of a byte, where nothing is multiplied
    PIXELS = 42,            // parts of pixels are multiples of what the kernels take at once: 6 or 14
    BAND = 4,               // a band of an image has so many times the rows that it shares with the next one
};

static atomic_llong least_work = 1 << 18;

void cc_set_least_work(int64_t multiply_adds) { atomic_store(&least_work, multiply_adds < 1 ? 1 : multiply_adds); }

static const cc_value *value(const cc_frame *f, int number) { return &f->program->values[number]; }

// The step's first row of a value; NULL for none.
static void *at(const cc_frame *f, int number) {
    if (number < 0) return NULL;
    const cc_value *v = value(f, number);
    size_t bytes = cc_value_bytes(v), row = (size_t)(f->start + f->first);
    if (v->place == CC_INPUT) return (char *)f->inputs[v->number] + row * bytes;
    if (v->place == CC_OUTPUT) return (char *)f->outputs[v->number] + row * bytes;
    if (v->row_by_row) return f->row_scratch + v->offset;
    return f->chunk_scratch + v->offset * f->chunk + (size_t)f->first * bytes;
}

static int threads_for(const cc_frame *f) { return f->alone ? 1 : cc_team_size(); }

// A convolution's parts: tiles of output channels times pixels, or times bands of one row's image (depthwise).
typedef struct {
    const struct cc_isa *isa;
    const cc_conv *producer, *conv; // producer: depthwise only
    int depthwise;
    int tiles, pixels;          // in all
    int tile_parts, pixel_unit; // parts of about as many tiles; pixels of one part
    int pixel_parts;            // or bands
    float *pooled;              // [bands][channels], where there are several
} split;

static int first_of(int number, int parts, int all) { return (int)((int64_t)all * number / parts); }

// A band is an image of its own. It reads the rows above it instead of padding: the padding is negative.
static int run_band(const split *s, cc_part part, int number) {
    cc_conv band = *s->conv;
    const int first = first_of(number, s->pixel_parts, band.out_height), channels = band.bank->spec.out_channels;
    band.out_height = first_of(number + 1, s->pixel_parts, band.out_height) - first;
    band.pad_top -= first * band.bank->spec.stride_height;
    const size_t before = (size_t)first * (size_t)band.out_width * (size_t)channels;
    band.out = (char *)band.out + before * cc_type_size(band.out_type);
    if (s->pooled) band.pooled = s->pooled + (size_t)number * (size_t)channels;
    return s->isa->depthwise(s->producer, &band, part);
}

static int run_part(void *context, int number) {
    const split *s = context;
    int t = number / s->pixel_parts, p = number % s->pixel_parts;
    cc_part part = {
        .tile_begin = first_of(t, s->tile_parts, s->tiles),
        .tile_end = first_of(t + 1, s->tile_parts, s->tiles),
        .pixel_begin = p * s->pixel_unit,
        .pixel_end = p + 1 == s->pixel_parts ? s->pixels : (p + 1) * s->pixel_unit,
    };
    if (!s->depthwise) return s->isa->conv(s->conv, part);
    part.pixel_begin = 0;
    part.pixel_end = s->pixels;
    return s->pixel_parts > 1 ? run_band(s, part, p) : s->isa->depthwise(s->producer, s->conv, part);
}

// The whole image's means from those of its bands.
static void join_pooled(const split *s) {
    const cc_conv *conv = s->conv;
    const int channels = conv->bank->spec.out_channels, height = conv->out_height;
    memset(conv->pooled, 0, (size_t)channels * sizeof *conv->pooled);
    for (int band = 0; band < s->pixel_parts; band++) {
        int rows = first_of(band + 1, s->pixel_parts, height) - first_of(band, s->pixel_parts, height);
        const float share = (float)rows / (float)height, *from = s->pooled + (size_t)band * (size_t)channels;
        for (int c = 0; c < channels; c++) conv->pooled[c] += from[c] * share;
    }
}

// Whether each row has a kernel of its own.
static int has_own_kernels(const cc_conv *conv) { return conv->bank->spec.mixed || conv->scale; }

static double work_of(const cc_conv *conv) {
    double out = (double)conv->bank->spec.out_channels * conv->bank->depth * conv->batch;
    double mixing = has_own_kernels(conv) ? conv->bank->spec.num_experts : 0;
    return out * ((double)conv->out_height * conv->out_width + mixing);
}

// Bands where tiles are too few, or where each part of the tiles would gather the same patches for its producer.
static int choose_bands(split *s, int threads, int wanted) {
    const cc_bank_spec *b = &s->conv->bank->spec;
    const cc_conv *p = s->producer;
    const int shared = (b->kernel_height - 1) * b->dilation_height + 1 - b->stride_height, rows = s->conv->out_height;
    int64_t most = shared > 0 ? (int64_t)rows * b->stride_height / (BAND * shared) : rows;
    if (most > rows) most = rows;
    const int patches = p && (p->pixels || p->bank->taps > 1);
    if (s->conv->batch != 1 || most < 2 || (s->tiles >= 2 * threads && !patches)) return 0;
    int bands = patches ? wanted : (wanted + s->tiles - 1) / s->tiles;
    if (bands > most) bands = (int)most;
    int parts = (wanted + bands - 1) / bands;
    s->tile_parts = parts < s->tiles ? parts : s->tiles;
    s->pixel_parts = bands;
    return 1;
}

// Tiles first: each kernel is then read, and mixed, once. Pixels where tiles are too few.
static void choose_parts(split *s, int threads) {
    double work = work_of(s->conv) + (s->producer ? work_of(s->producer) : 0);
    int wanted = threads * TASKS_PER_THREAD;
    const double least = (double)atomic_load_explicit(&least_work, memory_order_relaxed);
    if (work < least * wanted) wanted = (int)(work / least);
    if (threads < 2 || wanted < 2 || (s->depthwise && choose_bands(s, threads, wanted))) return;
    s->tile_parts = s->tiles < 2 * wanted ? s->tiles : wanted;
    if (s->depthwise || s->tiles >= 2 * threads || s->tiles == threads || s->tiles >= wanted) return;
    int parts = (wanted + s->tiles - 1) / s->tiles, unit = PIXELS;
    // A row's kernel is mixed again for each part of it.
    if (has_own_kernels(s->conv) && parts <= s->conv->batch) unit = s->pixels / s->conv->batch;
    int units = (s->pixels + unit - 1) / unit;
    if (parts > units) parts = units;
    s->pixel_unit = (units + parts - 1) / parts * unit;
    s->pixel_parts = (s->pixels + s->pixel_unit - 1) / s->pixel_unit;
}

static int run_split(const cc_frame *f, const cc_conv *producer, const cc_conv *conv, int depthwise) {
    const struct cc_isa *isa = f->program->isa;
    cc_extent extent = depthwise ? isa->depthwise_extent(producer, conv) : isa->conv_extent(conv);
    split s = {isa, producer, conv, depthwise, extent.tiles, extent.pixels, 1, extent.pixels, 1, NULL};
    choose_parts(&s, threads_for(f));
    int parts = s.tile_parts * s.pixel_parts;
    if (depthwise && s.pixel_parts > 1 && conv->pooled) {
        size_t numbers = (size_t)s.pixel_parts * (size_t)conv->bank->spec.out_channels;
        if (!(s.pooled = cc_scratch(CC_SCRATCH_POOLED, numbers * sizeof *s.pooled))) return -1;
    }
    int failed = parts == 1 ? run_part(&s, 0) : cc_team_run(run_part, &s, parts);
    if (s.pooled && !failed) join_pooled(&s);
    return failed;
}

// Of a kernel of 1 x 1, all pixels are one row's, so that its numbers are read once for all rows.
static void join_rows(cc_conv *c) {
    const cc_bank_spec *b = &c->bank->spec;
    int single = b->kernel_height == 1 && b->kernel_width == 1 && b->stride_height == 1 && b->stride_width == 1;
    if (!single || b->mixed || c->scale || c->out_height != c->height || c->out_width != c->width) return;
    c->width = c->out_width = c->batch * c->height * c->width;
    c->batch = c->height = c->out_height = 1;
}

static cc_conv convolution(const cc_frame *f, const cc_step *s, int bank) {
    return (cc_conv){
        .bank = f->program->banks[bank],
        .pixels = s->normalise ? &f->program->pixels : NULL,
        .type = value(f, s->input)->type,
        .out_type = value(f, s->output)->type,
        .batch = f->rows,
        .height = s->height,
        .width = s->width,
        .out_height = s->out_height,
        .out_width = s->out_width,
        .pad_top = s->pad_top,
        .pad_left = s->pad_left,
        .activation = s->activation,
        .x = at(f, s->input),
        .routing = f->program->banks[bank]->spec.mixed ? at(f, s->routing) : NULL,
        .scale = at(f, s->scale),
        .residual = at(f, s->residual),
        .out = at(f, s->output),
        .pooled = at(f, s->pooled),
    };
}

static int run_conv(const cc_frame *f, const cc_step *s) {
    cc_conv conv = convolution(f, s, s->bank);
    join_rows(&conv);
    return run_split(f, NULL, &conv, 0);
}

static int run_depthwise(const cc_frame *f, const cc_step *s) {
    cc_conv conv = convolution(f, s, s->bank);
    if (s->producer < 0) return run_split(f, NULL, &conv, 1);
    cc_conv producer = convolution(f, s, s->producer);
    producer.out_type = CC_FLOAT32;
    producer.out_height = s->producer_height;
    producer.out_width = s->producer_width;
    producer.pad_top = s->producer_pad_top;
    producer.pad_left = s->producer_pad_left;
    producer.activation = s->producer_activation;
    producer.residual = producer.out = NULL;
    producer.pooled = NULL;
    conv.pixels = NULL;
    conv.type = CC_FLOAT32;
    conv.height = s->producer_height;
    conv.width = s->producer_width;
    conv.x = NULL;
    conv.scale = NULL;
    return run_split(f, &producer, &conv, 1);
}

// A step number by number, cut into blocks of pixels.
typedef struct {
    const cc_frame *frame;
    const cc_step *step;
    int blocks, pixels; // of each row; pixels of a block
} blockwise;

static const char *shifted(const void *p, size_t numbers, int type) {
    return p ? (const char *)p + numbers * cc_type_size(type) : NULL;
}

static int run_block(void *context, int number) {
    const blockwise *b = context;
    const cc_frame *f = b->frame;
    const cc_step *s = b->step;
    const struct cc_isa *isa = f->program->isa;
    const cc_type type = value(f, s->input)->type, out_type = value(f, s->output)->type;
    const int all = s->height * s->width, row = number / b->blocks, first = number % b->blocks * b->pixels;
    const int pixels = first + b->pixels < all ? b->pixels : all - first;
    const size_t begin = ((size_t)row * (size_t)all + (size_t)first) * (size_t)s->channels;
    const size_t count = (size_t)pixels * (size_t)s->channels;
    const void *x = shifted(at(f, s->input), begin, type), *y = shifted(at(f, s->residual), begin, type);
    void *out = (char *)shifted(at(f, s->output), begin, out_type);
    const float *scale = s->scale < 0 ? NULL : (const float *)at(f, s->scale) + (size_t)row * (size_t)s->channels;
    switch (s->kind) {
    case CC_STEP_SCALE: isa->scale(type, x, scale, pixels, s->channels, out); break;
    case CC_STEP_ADD: isa->add(type, x, y, count, s->activation, out); break;
    case CC_STEP_MULTIPLY: isa->multiply(type, x, y, count, out); break;
    case CC_STEP_ACTIVATE: isa->activate(type, x, count, s->activation, out); break;
    case CC_STEP_CONVERT: isa->convert(type, x, out_type, count, out); break;
    default: break;
    }
    return 0;
}

static int run_pool(void *context, int row) {
    const cc_frame *f = ((const blockwise *)context)->frame;
    const cc_step *s = ((const blockwise *)context)->step;
    const cc_value *in = value(f, s->input);
    const char *x = (const char *)at(f, s->input) + (size_t)row * cc_value_bytes(in);
    f->program->isa->pool(in->type, x, s->height * s->width, s->channels,
                          (float *)at(f, s->output) + (size_t)row * (size_t)s->channels);
    return 0;
}

static int run_max_pool(void *context, int row) {
    const cc_frame *f = ((const blockwise *)context)->frame;
    const cc_step *s = ((const blockwise *)context)->step;
    const cc_value *in = value(f, s->input), *out = value(f, s->output);
    const cc_windows windows = {
        .height = s->height,
        .width = s->width,
        .channels = s->channels,
        .out_height = s->out_height,
        .out_width = s->out_width,
        .window_height = s->window_height,
        .window_width = s->window_width,
        .stride_height = s->window_stride_height,
        .stride_width = s->window_stride_width,
        .pad_top = s->pad_top,
        .pad_left = s->pad_left,
    };
    f->program->isa->max_pool(in->type, &windows, (const char *)at(f, s->input) + (size_t)row * cc_value_bytes(in),
                              (char *)at(f, s->output) + (size_t)row * cc_value_bytes(out));
    return 0;
}

static int run_elementwise(const cc_frame *f, const cc_step *s) {
    const int pixels = s->height * s->width;
    const size_t bytes = cc_value_bytes(value(f, s->input));
    const size_t least = (size_t)atomic_load_explicit(&least_work, memory_order_relaxed) / BYTES_OF_WORK + 1;
    const int shared = bytes * (size_t)f->rows / 4 >= least && threads_for(f) > 1;
    size_t blocks = shared ? bytes / least : 1;
    if (blocks > (size_t)pixels) blocks = (size_t)pixels;
    const int whole = s->kind == CC_STEP_POOL || s->kind == CC_STEP_MAX_POOL; // rows
    if (whole || blocks < 1) blocks = 1;
    blockwise b = {f, s, 1, (pixels + (int)blocks - 1) / (int)blocks};
    b.blocks = (pixels + b.pixels - 1) / b.pixels;
    int (*task)(void *, int) = !whole ? run_block : s->kind == CC_STEP_POOL ? run_pool : run_max_pool;
    int tasks = f->rows * b.blocks;
    if (shared) return cc_team_run(task, &b, tasks);
    for (int i = 0; i < tasks; i++) task(&b, i);
    return 0;
}

int cc_step_run(const cc_frame *frame, const cc_step *step) {
    if (step->kind == CC_STEP_CONV) return run_conv(frame, step);
    if (step->kind == CC_STEP_DEPTHWISE) return run_depthwise(frame, step);
    return run_elementwise(frame, step);
}
