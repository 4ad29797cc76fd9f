// Checks a program's parts one by one, so that running it can't read or write what isn't there: numbers, values,
// stages, and each step's values and geometry. program_flow.c then checks that they fit together in time.
#include "runtime.h"
#include <limits.h>

enum {
    MOST_PARTS = 1 << 12,
    MOST_CHUNK = 1 << 12,
    MOST_WINDOW = 1 << 12,
    MOST_PIXELS = INT_MAX / 64, // of an image with its padding: kernels count these times their tile in int
};

static const char *const kinds[CC_STEPS] = {
    "conv", "depthwise", "pool", "scale", "add", "activate", "convert", "multiply", "max pool",
};

// A step under check, with the sentence's beginning for its failures.
typedef struct {
    const cc_program *program;
    const cc_step *step;
    int number;
} checked;

#define FAIL(c, format, ...) cc_fail("Step %d (%s) " format, (c)->number, kinds[(c)->step->kind], __VA_ARGS__)

static int is_float(int type) { return type == CC_FLOAT32 || type == CC_BFLOAT16; }

int cc_program_check_spec(const cc_program_spec *spec) {
    if (spec->version != CC_VERSION) return cc_fail("The program is of version %d, not %d.", spec->version, CC_VERSION);
    if (spec->size_of_step != sizeof(cc_step) || spec->size_of_value != sizeof(cc_value))
        return cc_fail("The program's steps and values have other sizes than the library's.");
    const struct {
        const char *name;
        int32_t value, least, most;
    } all[] = {
        {"values", spec->values, 2, MOST_PARTS},   {"steps", spec->steps, 1, MOST_PARTS},
        {"stages", spec->stages, 1, MOST_PARTS},   {"banks", spec->banks, 0, MOST_PARTS},
        {"inputs", spec->inputs, 1, MOST_PARTS},   {"outputs", spec->outputs, 1, MOST_PARTS},
        {"rows per chunk", spec->chunk, 1, MOST_CHUNK},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].value < all[i].least || all[i].value > all[i].most)
            return cc_fail("A program has %d to %d %s, not %d.", all[i].least, all[i].most, all[i].name, all[i].value);
    if (spec->row_bytes < 0 || spec->chunk_bytes < 0 || spec->row_bytes > CC_MOST_NUMBERS ||
        spec->chunk_bytes > CC_MOST_NUMBERS / spec->chunk)
        return cc_fail("A program's scratch has 0 to 2^40 bytes.");
    return 0;
}

static int check_value(const cc_program *program, int number) {
    const cc_value *v = &program->values[number];
    if (v->place < CC_SCRATCH || v->place > CC_OUTPUT) return cc_fail("Value %d is in no place that there is.", number);
    if (v->type < CC_UINT8 || v->type > CC_BFLOAT16) return cc_fail("Value %d has no type that there is.", number);
    if (v->type == CC_UINT8 && v->place != CC_INPUT) return cc_fail("Value %d is uint8, and no input.", number);
    if (v->type == CC_BFLOAT16 && !program->isa->bfloat16)
        return cc_fail("Value %d is bfloat16, which the instruction set %s doesn't multiply.", number,
                       program->isa->name);
    if (v->rank != 1 && v->rank != 3) return cc_fail("Value %d has 1 or 3 dimensions, not %d.", number, v->rank);
    if (v->row_by_row & ~1) return cc_fail("Value %d is row by row or not: 1 or 0.", number);
    int64_t most = INT_MAX / program->spec.chunk;
    for (int i = 0; i < v->rank; i++) {
        if (v->shape[i] < 1 || v->shape[i] > most)
            return cc_fail("Value %d can't have %d numbers in dimension %d, or not so many in a chunk.", number,
                           v->shape[i], i);
        most /= v->shape[i];
    }
    if (v->place != CC_SCRATCH) return 0;
    int64_t room = v->row_by_row ? program->spec.row_bytes : program->spec.chunk_bytes;
    if (v->offset < 0 || v->offset % 4 || v->offset > room || cc_value_bytes(v) > (size_t)(room - v->offset))
        return cc_fail("Value %d, %zu bytes at %lld, isn't inside its %lld bytes of scratch, or at no multiple of 4.",
                       number, cc_value_bytes(v), (long long)v->offset, (long long)room);
    return 0;
}

// Every input and output once.
static int check_places(const cc_program *program, cc_place place, int count) {
    const char *name = place == CC_INPUT ? "input" : "output";
    int found = 0;
    for (int i = 0; i < program->spec.values; i++) {
        if (program->values[i].place != (int)place) continue;
        int number = program->values[i].number;
        if (number < 0 || number >= count) return cc_fail("Value %d is %s %d of %d.", i, name, number, count);
        if (cc_program_value(program, place, number) != &program->values[i])
            return cc_fail("Two values are %s %d.", name, number);
        found++;
    }
    return found == count ? 0 : cc_fail("The program has %d values for %d %ss.", found, count, name);
}

static int check_stages(const cc_program *program) {
    int next = 0;
    for (int i = 0; i < program->spec.stages; i++) {
        const cc_stage *s = &program->stages[i];
        if (s->first != next || s->last <= s->first || s->last > program->spec.steps || (s->row_by_row & ~1))
            return cc_fail("Stage %d has the steps from %d to %d: stages follow each other without gaps.", i, s->first,
                           s->last);
        next = s->last;
    }
    return next == program->spec.steps ? 0 : cc_fail("The stages have %d of %d steps.", next, program->spec.steps);
}

// The value of a step's field, or NULL with the error kept.
static const cc_value *value_of(const checked *c, const char *name, int number) {
    if (number >= 0 && number < c->program->spec.values) return &c->program->values[number];
    FAIL(c, "has value %d as %s, of %d values.", number, name, c->program->spec.values);
    return NULL;
}

static int check_shape(const checked *c, const char *name, int number, int height, int width, int channels) {
    const cc_value *v = value_of(c, name, number);
    if (!v) return -1;
    const int32_t wanted[3] = {height, width, channels};
    int fits = v->rank == 3 ? v->shape[0] == height && v->shape[1] == width && v->shape[2] == channels
                            : wanted[0] == 1 && wanted[1] == 1 && v->shape[0] == channels;
    return fits ? 0 : FAIL(c, "wants its %s to be %d x %d x %d.", name, height, width, channels);
}

// A vector of float32, or none: -1.
static int check_vector(const checked *c, const char *name, int number, int count) {
    if (number == -1) return 0;
    const cc_value *v = value_of(c, name, number);
    if (!v) return -1;
    if (v->type != CC_FLOAT32 || cc_value_count(v) != count)
        return FAIL(c, "wants its %s to be %d float32, not %lld %s.", name, count, (long long)cc_value_count(v),
                    cc_type_name(v->type));
    return 0;
}

static int check_type(const checked *c, const char *name, int number, int type) {
    int found = c->program->values[number].type;
    return found == type ? 0 : FAIL(c, "wants its %s to be %s, not %s.", name, cc_type_name(type), cc_type_name(found));
}

static const cc_bank *bank_of(const checked *c, const char *name, int number, int depthwise) {
    if (number < 0 || number >= c->program->spec.banks) {
        FAIL(c, "has bank %d as %s, of %d banks.", number, name, c->program->spec.banks);
        return NULL;
    }
    const cc_bank *bank = c->program->banks[number];
    if (bank->spec.depthwise == depthwise) return bank;
    FAIL(c, "has a bank as %s that is %s.", name, depthwise ? "not depthwise" : "depthwise");
    return NULL;
}

// Each window touches its image, so there are fewer numbers of padding than the kernel reaches over.
static int check_window(const checked *c, const char *name, int size, int kernel, int stride, int dilation, int pad,
                        int out) {
    int64_t reach = (int64_t)(kernel - 1) * dilation + 1, last = ((int64_t)out - 1) * stride - pad;
    if (out < 1 || pad < 0 || pad >= reach || last >= size)
        return FAIL(c, "can't make a %s of %d from %d: kernel %d, stride %d, dilation %d, padding %d.", name, out, size,
                    kernel, stride, dilation, pad);
    return 0;
}

typedef struct {
    int height, width, pad_top, pad_left, out_height, out_width;
} windows;

// From the first number that a window reads to the last one, or the image's.
static int64_t padded(int size, int kernel, int stride, int dilation, int pad, int out) {
    int64_t windows = (int64_t)(out - 1) * stride + (int64_t)(kernel - 1) * dilation + 1, image = (int64_t)pad + size;
    return windows > image ? windows : image;
}

static int check_windows(const checked *c, const cc_bank *bank, windows w) {
    const cc_bank_spec *b = &bank->spec;
    if (check_window(c, "height", w.height, b->kernel_height, b->stride_height, b->dilation_height, w.pad_top,
                     w.out_height) ||
        check_window(c, "width", w.width, b->kernel_width, b->stride_width, b->dilation_width, w.pad_left,
                     w.out_width))
        return -1;
    int64_t height = padded(w.height, b->kernel_height, b->stride_height, b->dilation_height, w.pad_top, w.out_height);
    int64_t width = padded(w.width, b->kernel_width, b->stride_width, b->dilation_width, w.pad_left, w.out_width);
    int64_t most = c->program->spec.chunk > 64 ? INT_MAX / c->program->spec.chunk : MOST_PIXELS;
    return height <= most && width <= most / height
               ? 0
               : FAIL(c, "has an image of %lld x %lld with padding, too large.", (long long)height, (long long)width);
}

static int check_routing(const checked *c, const cc_bank *bank, const cc_bank *producer) {
    int mixed = bank->spec.mixed ? bank->spec.num_experts : 0, before = 0;
    if (producer && producer->spec.mixed) before = producer->spec.num_experts;
    if (mixed && before && mixed != before)
        return FAIL(c, "has one routing for %d and %d experts.", before, mixed);
    if ((mixed || before) != (c->step->routing != -1))
        return FAIL(c, "%s", mixed || before ? "has no routing for its bank." : "has a routing, and no mixed bank.");
    return check_vector(c, "routing", c->step->routing, mixed ? mixed : before);
}

// What the first convolution reads: pixels, or numbers in the type that it multiplies.
static int check_read(const checked *c, const cc_bank *first) {
    const cc_step *s = c->step;
    int type = c->program->values[s->input].type;
    if (s->normalise & ~1) return FAIL(c, "normalises or not: %d isn't 1 or 0.", s->normalise);
    if (s->normalise) {
        if (first->spec.depthwise) return FAIL(c, "can't normalise its %s.", "input");
        if (type == CC_BFLOAT16) return FAIL(c, "can't normalise an input of %s.", cc_type_name(type));
        return s->channels <= 4 ? 0 : FAIL(c, "normalises at most 4 channels, not %d.", s->channels);
    }
    if (!is_float(type)) return FAIL(c, "must normalise an input of %s.", cc_type_name(type));
    int wanted = first->spec.type == CC_BANK_BFLOAT16 ? CC_BFLOAT16 : CC_FLOAT32;
    return first->spec.depthwise ? 0 : check_type(c, "input", s->input, wanted);
}

// Only a kernel of 1 x 1 takes its input's scale with it.
static int check_scale(const checked *c, const cc_bank *bank) {
    if (c->step->scale == -1) return 0;
    if (bank->spec.depthwise || bank->taps != 1)
        return FAIL(c, "can't have scale %d: its bank is not of 1 x 1.", c->step->scale);
    return check_vector(c, "scale", c->step->scale, c->step->channels);
}

static int check_convolution(const checked *c, int depthwise) {
    const cc_step *s = c->step;
    const cc_bank *bank = bank_of(c, "bank", s->bank, depthwise), *producer = NULL;
    if (!bank || (s->producer != -1 && !(producer = bank_of(c, "producer", s->producer, 0)))) return -1;
    if (producer && !depthwise) return FAIL(c, "can't have a producer: %d.", s->producer);
    if (s->pooled != -1 && !depthwise) return FAIL(c, "can't pool its output into value %d.", s->pooled);
    const cc_bank *first = producer ? producer : bank;
    int out = bank->spec.out_channels;
    if (first->spec.in_channels != s->channels)
        return FAIL(c, "has %d channels, and its bank wants %d.", s->channels, first->spec.in_channels);
    windows w = {s->height, s->width, s->pad_top, s->pad_left, s->out_height, s->out_width};
    if (producer) {
        windows before = {s->height, s->width, s->producer_pad_top, s->producer_pad_left, s->producer_height,
                          s->producer_width};
        if (producer->spec.out_channels != bank->spec.in_channels)
            return FAIL(c, "has a producer of %d channels for %d.", producer->spec.out_channels,
                        bank->spec.in_channels);
        if (check_windows(c, producer, before)) return -1;
        if ((int64_t)s->producer_height * s->producer_width > INT_MAX / c->program->spec.chunk)
            return FAIL(c, "has a producer of %d x %d, too many.", s->producer_height, s->producer_width);
        w.height = s->producer_height;
        w.width = s->producer_width;
    } else if (s->producer_activation) return FAIL(c, "has no producer for activation %d.", s->producer_activation);
    if (check_windows(c, bank, w) || check_routing(c, bank, producer) || check_read(c, first) || check_scale(c, bank) ||
        check_shape(c, "output", s->output, s->out_height, s->out_width, out) ||
        check_vector(c, "pooled", s->pooled, out))
        return -1;
    if (s->residual == -1) return 0;
    if (depthwise) return FAIL(c, "can't have residual %d.", s->residual);
    return check_shape(c, "residual", s->residual, s->out_height, s->out_width, out) ||
                   check_type(c, "residual", s->residual, c->program->values[s->output].type)
               ? -1
               : 0;
}

// Of one pooled row; windows are no larger than MOST_WINDOW, so that nothing overflows where a kernel counts them.
static int check_max_pool(const checked *c) {
    const cc_step *s = c->step;
    const int32_t all[4] = {s->window_height, s->window_width, s->window_stride_height, s->window_stride_width};
    for (int i = 0; i < 4; i++)
        if (all[i] < 1 || all[i] > MOST_WINDOW)
            return FAIL(c, "has windows of %d x %d, stride %d and %d: each is 1 to %d.", all[0], all[1], all[2], all[3],
                        MOST_WINDOW);
    if (check_window(c, "height", s->height, s->window_height, s->window_stride_height, 1, s->pad_top, s->out_height) ||
        check_window(c, "width", s->width, s->window_width, s->window_stride_width, 1, s->pad_left, s->out_width) ||
        check_shape(c, "output", s->output, s->out_height, s->out_width, s->channels))
        return -1;
    return check_type(c, "output", s->output, c->program->values[s->input].type);
}

static int check_elementwise(const checked *c) {
    const cc_step *s = c->step;
    const int type = c->program->values[s->input].type, kind = s->kind;
    const int two = kind == CC_STEP_ADD || kind == CC_STEP_MULTIPLY;
    const int active = kind == CC_STEP_ADD || kind == CC_STEP_ACTIVATE;
    if (s->bank != -1 || s->producer != -1 || s->routing != -1 || s->pooled != -1 || s->normalise ||
        s->producer_activation)
        return FAIL(c, "has %s.", "a bank, producer, routing, pooled value or normalisation, and can't");
    if (!is_float(type)) return FAIL(c, "can't have an input of %s.", cc_type_name(type));
    if (s->activation && !active) return FAIL(c, "has activation %d, and can't.", s->activation);
    if ((s->residual != -1) != two) return FAIL(c, "%s", two ? "lacks its residual." : "has a residual, and can't.");
    if ((s->scale != -1) != (kind == CC_STEP_SCALE))
        return FAIL(c, "%s", s->scale == -1 ? "lacks its scale." : "has a scale, and can't.");
    if (kind == CC_STEP_POOL) return check_vector(c, "output", s->output, s->channels);
    if (kind == CC_STEP_MAX_POOL) return check_max_pool(c);
    if (check_shape(c, "output", s->output, s->height, s->width, s->channels) ||
        check_vector(c, "scale", s->scale, s->channels))
        return -1;
    const int out_type = c->program->values[s->output].type;
    if (kind == CC_STEP_CONVERT)
        return out_type != type ? 0 : FAIL(c, "converts from %s to the same.", cc_type_name(type));
    if (check_type(c, "output", s->output, type)) return -1;
    if (!two) return 0;
    return check_shape(c, "residual", s->residual, s->height, s->width, s->channels) ||
                   check_type(c, "residual", s->residual, type)
               ? -1
               : 0;
}

static int check_step(const cc_program *program, int number) {
    const cc_step *s = &program->steps[number];
    if (s->kind < 0 || s->kind >= CC_STEPS) return cc_fail("Step %d is of no kind that there is: %d.", number, s->kind);
    const checked c = {program, s, number};
    if (s->activation < 0 || s->activation >= CC_ACTIVATIONS || s->producer_activation < 0 ||
        s->producer_activation >= CC_ACTIVATIONS)
        return FAIL(&c, "has activations %d and %d, of %d.", s->activation, s->producer_activation, CC_ACTIVATIONS);
    if (s->kind != CC_STEP_MAX_POOL &&
        (s->window_height || s->window_width || s->window_stride_height || s->window_stride_width))
        return FAIL(&c, "has a window of %d x %d, and can't.", s->window_height, s->window_width);
    if (!value_of(&c, "output", s->output) || check_shape(&c, "input", s->input, s->height, s->width, s->channels))
        return -1;
    return s->kind <= CC_STEP_DEPTHWISE ? check_convolution(&c, s->kind == CC_STEP_DEPTHWISE) : check_elementwise(&c);
}

int cc_program_check(const cc_program *program) {
    const cc_program_spec *spec = &program->spec;
    for (int i = 0; i < spec->banks; i++)
        if (program->banks[i]->isa != program->isa)
            return cc_fail("Bank %d is packed for %s, and the program is for %s.", i, program->banks[i]->isa->name,
                           program->isa->name);
    for (int i = 0; i < spec->values; i++)
        if (check_value(program, i)) return -1;
    if (check_places(program, CC_INPUT, spec->inputs) || check_places(program, CC_OUTPUT, spec->outputs) ||
        check_stages(program))
        return -1;
    for (int i = 0; i < spec->steps; i++)
        if (check_step(program, i)) return -1;
    return cc_program_check_flow(program);
}
