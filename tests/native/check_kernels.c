// Compares every instruction set of this machine with sums in double precision: convolutions and depthwise convolutions of
// random shapes, strides, experts and activations, through the library's public interface only.
//
//     check_kernels CASES THREADS SEED
//
// Each thread runs as many cases, all at the same time, and each case's rows are shared by the library's own threads.
// Python can't be had wherever the library can be compiled for; this runs under an emulator, too.
#include "condconv.h"
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NONE (-1)

// --- random numbers and memory ----------------------------------------------------------------------------------------

static _Thread_local uint64_t state;

static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static int between(int low, int high) { return low + (int)(next() % (uint32_t)(high - low + 1)); }

static int yes(void) { return between(0, 1); }

// Multiples of 1 / 256 from -2 to 2, which half floats hold exactly.
static float *numbers(float *to, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = (float)between(-512, 512) / 256;
    return to;
}

enum { MOST_BUFFERS = 16 };
static _Thread_local struct { void *at; size_t bytes; } buffers[MOST_BUFFERS];
static _Thread_local int used;

// Memory whose end is the end of what may be touched.
static void *guarded(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *at = mmap(0, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at + whole, page, PROT_NONE) || used == MOST_BUFFERS) abort();
    buffers[used].at = at;
    buffers[used++].bytes = whole + page;
    return at + whole - bytes;
}

static void release_all(void) {
    while (used > 0) {
        used--;
        munmap(buffers[used].at, buffers[used].bytes);
    }
}

// --- one convolution, and what it should yield ------------------------------------------------------------------------

typedef struct {
    cc_bank_spec spec;
    int64_t bank;
    int height, width, out_height, out_width, pad_top, pad_left;
    cc_activation activation;
    const float *experts, *factor, *bias, *expert_bias;
} layer;

static double activated(double x, cc_activation activation) {
    switch (activation) {
    case CC_RELU: return fmax(x, 0);
    case CC_RELU6: return fmin(fmax(x, 0), 6);
    case CC_SWISH: return x / (1 + exp(-x));
    case CC_SIGMOID: return 1 / (1 + exp(-x));
    case CC_HARD_SWISH: return x * fmin(fmax(x + 3, 0), 6) / 6;
    case CC_HARD_SIGMOID: return fmin(fmax(x + 3, 0), 6) / 6;
    default: return x;
    }
}

static layer random_layer(int depthwise, int in_channels, int height, int width) {
    layer l = {.height = height, .width = width, .activation = (cc_activation)between(0, CC_ACTIVATIONS - 1)};
    cc_bank_spec *s = &l.spec;
    s->depthwise = depthwise;
    s->mixed = yes();
    s->num_experts = s->mixed ? between(1, 9) : 1;
    s->type = !depthwise && s->mixed && yes() ? CC_BANK_FLOAT16 : CC_BANK_FLOAT32;
    s->in_channels = in_channels;
    s->out_channels = depthwise ? in_channels : between(1, 70);
    s->kernel_height = s->kernel_width = depthwise ? (int[]){3, 5, 3, 5, 2, 7}[between(0, 5)] : between(1, 3);
    if (!depthwise && yes()) s->kernel_height = s->kernel_width = 1;
    if (between(0, 9) == 0) s->kernel_height = between(1, 4);
    s->stride_height = s->stride_width = between(1, 2);
    s->dilation_height = s->dilation_width = between(0, 7) == 0 ? 2 : 1;
    const int reach_y = (s->kernel_height - 1) * s->dilation_height + 1, reach_x = (s->kernel_width - 1) * s->dilation_width + 1;
    // As TensorFlow pads for SAME.
    l.out_height = (height + s->stride_height - 1) / s->stride_height;
    l.out_width = (width + s->stride_width - 1) / s->stride_width;
    const int missing_y = (l.out_height - 1) * s->stride_height + reach_y - height;
    const int missing_x = (l.out_width - 1) * s->stride_width + reach_x - width;
    l.pad_top = missing_y > 0 ? missing_y / 2 : 0;
    l.pad_left = missing_x > 0 ? missing_x / 2 : 0;
    const size_t of_one = (size_t)s->kernel_height * s->kernel_width * (depthwise ? 1 : in_channels) * s->out_channels;
    l.experts = numbers(guarded(s->num_experts * of_one * 4), s->num_experts * of_one);
    l.factor = yes() ? numbers(guarded(s->out_channels * 4), s->out_channels) : 0;
    l.bias = yes() ? numbers(guarded(s->out_channels * 4), s->out_channels) : 0;
    const size_t biases = (size_t)s->num_experts * s->out_channels;
    l.expert_bias = yes() && s->mixed && !depthwise ? numbers(guarded(biases * 4), biases) : 0;
    l.bank = cc_bank_new(s, l.experts, l.factor, l.bias, l.expert_bias);
    return l;
}

static size_t in_size(const layer *l) { return (size_t)l->height * l->width * l->spec.in_channels; }

static size_t out_size(const layer *l) { return (size_t)l->out_height * l->out_width * l->spec.out_channels; }

// A row of numbers, and how large what was summed for each of them was, since that is what errors are measured by.
typedef struct {
    double *number, *size;
} exact;

static exact new_exact(size_t count) {
    exact x = {calloc(count, sizeof(double)), calloc(count, sizeof(double))};
    if (!x.number || !x.size) abort();
    return x;
}

static void free_exact(exact x) {
    free(x.number);
    free(x.size);
}

static void expect(const layer *l, exact x, const float *routing, const float *scale, const float *residual, exact out) {
    const cc_bank_spec *s = &l->spec;
    const int taps = s->kernel_height * s->kernel_width, in = s->depthwise ? 1 : s->in_channels, n = s->out_channels;
    for (int y = 0; y < l->out_height; y++)
        for (int z = 0; z < l->out_width; z++)
            for (int o = 0; o < n; o++) {
                double sum = 0, sizes = 0;
                for (int e = 0; e < s->num_experts; e++) {
                    const double weight = routing ? routing[e] : 1;
                    for (int t = 0; t < taps; t++) {
                        const int iy = y * s->stride_height - l->pad_top + t / s->kernel_width * s->dilation_height;
                        const int ix = z * s->stride_width - l->pad_left + t % s->kernel_width * s->dilation_width;
                        if (iy < 0 || ix < 0 || iy >= l->height || ix >= l->width) continue;
                        for (int c = 0; c < in; c++) {
                            const int channel = s->depthwise ? o : c;
                            const size_t from = ((size_t)iy * l->width + ix) * s->in_channels + channel;
                            const double w = (scale ? scale[channel] : 1) * weight *
                                             l->experts[(((size_t)e * taps + t) * in + c) * n + o];
                            sum += x.number[from] * w;
                            sizes += x.size[from] * fabs(w);
                        }
                    }
                    if (l->expert_bias) sum += weight * l->expert_bias[(size_t)e * n + o];
                }
                const double factor = l->factor ? l->factor[o] : 1;
                const size_t at = ((size_t)y * l->out_width + z) * n + o;
                sum = sum * factor + (l->bias ? l->bias[o] : 0) + (residual ? residual[at] : 0);
                out.number[at] = activated(sum, l->activation);
                out.size[at] = sizes * fabs(factor) + fabs(sum) + 1;
            }
}

// --- one case ---------------------------------------------------------------------------------------------------------

enum { MOST_VALUES = 8 };

typedef struct {
    cc_value values[MOST_VALUES];
    int count, inputs, outputs;
    const void *in[MOST_VALUES];
    void *out[MOST_VALUES];
} arguments;

static int add_value(arguments *a, cc_place place, cc_type type, int rank, int height, int width, int channels, void *data) {
    cc_value *v = &a->values[a->count];
    *v = (cc_value){.place = place, .type = type, .rank = rank, .shape = {rank == 3 ? height : channels, width, channels}};
    if (rank == 1) v->shape[1] = v->shape[2] = 0;
    v->number = place == CC_INPUT ? a->inputs : a->outputs;
    if (place == CC_INPUT) a->in[a->inputs++] = data;
    else a->out[a->outputs++] = data;
    return a->count++;
}

static int add_rows(arguments *a, int rows, int count, float **data) {
    *data = numbers(guarded((size_t)rows * count * 4), (size_t)rows * count);
    return add_value(a, CC_INPUT, CC_FLOAT32, 1, 1, 1, count, *data);
}

static _Thread_local double worst_of_all;

// The largest error, as a share of what may be lost in float32.
static void compare(const char *what, const float *found, exact expected, size_t count) {
    double worst = 0;
    for (size_t i = 0; i < count; i++) {
        const double off = fabs(found[i] - expected.number[i]) / expected.size[i];
        if (!(off <= worst)) worst = off; // NaN, too
    }
    if (!(worst <= worst_of_all)) worst_of_all = worst;
    if (worst <= 4e-6) return;
    printf("FAILED: %s with %s is off by %g\n", what, cc_isa(), worst);
    exit(1);
}

static void describe(char *to, size_t room, const char *kind, const layer *l, int rows) {
    const cc_bank_spec *s = &l->spec;
    snprintf(to, room, "%s %dx%d stride %d dilation %d of %dx%dx%d to %d, %d experts%s, bank %d, activation %d, %d rows", kind,
             s->kernel_height, s->kernel_width, s->stride_width, s->dilation_width, l->height, l->width, s->in_channels,
             s->out_channels, s->num_experts, s->mixed ? " mixed" : "", s->type, l->activation, rows);
}

static void run_case(void) {
    const int depthwise = yes(), rows = between(1, 5), fused = depthwise && yes(), pixels = !depthwise && between(0, 3) == 0;
    layer producer = {0}, l;
    const int height = between(1, 19), width = between(1, 19);
    int channels = between(1, 70);
    if (pixels) channels = between(1, 4);
    if (fused) {
        producer = random_layer(0, channels, height, width);
        l = random_layer(1, producer.spec.out_channels, producer.out_height, producer.out_width);
    } else {
        l = random_layer(depthwise, channels, height, width);
    }
    const layer *first = fused ? &producer : &l;
    if (l.bank < 0 || (fused && producer.bank < 0)) {
        printf("FAILED: %s\n", cc_error());
        exit(1);
    }

    arguments a = {0};
    cc_step step = {.kind = depthwise ? CC_STEP_DEPTHWISE : CC_STEP_CONV, .routing = NONE, .scale = NONE, .residual = NONE,
                    .pooled = NONE, .bank = 0, .producer = fused ? 1 : NONE, .activation = l.activation,
                    .producer_activation = producer.activation, .normalise = pixels, .height = height, .width = width,
                    .channels = channels, .pad_top = l.pad_top, .pad_left = l.pad_left, .out_height = l.out_height,
                    .out_width = l.out_width, .producer_pad_top = producer.pad_top, .producer_pad_left = producer.pad_left,
                    .producer_height = producer.out_height, .producer_width = producer.out_width};
    const size_t in = in_size(first), out = out_size(&l);
    float *x = 0;
    unsigned char *bytes = 0;
    if (pixels) {
        bytes = guarded(rows * in);
        for (size_t i = 0; i < rows * in; i++) bytes[i] = (unsigned char)next();
    } else {
        x = numbers(guarded(rows * in * 4), rows * in);
    }
    step.input = add_value(&a, CC_INPUT, pixels ? CC_UINT8 : CC_FLOAT32, 3, height, width, channels, pixels ? (void *)bytes : x);
    float *routing = 0, *scale = 0, *residual = 0, *pooled = 0;
    // The layers of a block share their routing, so the producer must have as many experts.
    if (fused && l.spec.mixed && producer.spec.mixed && l.spec.num_experts != producer.spec.num_experts) goto done;
    const cc_bank_spec *mixed = l.spec.mixed ? &l.spec : fused && producer.spec.mixed ? &producer.spec : 0;
    if (mixed) step.routing = add_rows(&a, rows, mixed->num_experts, &routing);
    if (!depthwise && mixed && l.spec.kernel_height * l.spec.kernel_width == 1 && yes()) step.scale = add_rows(&a, rows, channels, &scale);
    if (!depthwise && yes()) {
        residual = numbers(guarded(rows * out * 4), rows * out);
        step.residual = add_value(&a, CC_INPUT, CC_FLOAT32, 3, l.out_height, l.out_width, l.spec.out_channels, residual);
    }
    float *found = guarded(rows * out * 4);
    step.output = add_value(&a, CC_OUTPUT, CC_FLOAT32, 3, l.out_height, l.out_width, l.spec.out_channels, found);
    if (depthwise && yes()) {
        pooled = guarded((size_t)rows * l.spec.out_channels * 4);
        step.pooled = add_value(&a, CC_OUTPUT, CC_FLOAT32, 1, 1, 1, l.spec.out_channels, pooled);
    }
    cc_program_spec spec = {.version = CC_VERSION, .size_of_step = sizeof(cc_step), .size_of_value = sizeof(cc_value),
                            .values = a.count, .steps = 1, .stages = 1, .banks = fused ? 2 : 1, .inputs = a.inputs,
                            .outputs = a.outputs, .chunk = between(1, 6), .mean = {127, 100, 90, 0},
                            .scale = {1 / 128.0f, 1 / 64.0f, 1 / 32.0f, 1}};
    const cc_stage stage = {.first = 0, .last = 1, .row_by_row = yes()};
    const int64_t banks[] = {l.bank, producer.bank};
    const int64_t program = cc_program_new(&spec, a.values, &step, &stage, banks);
    char what[256];
    describe(what, sizeof what, fused ? "fused depthwise" : depthwise ? "depthwise" : pixels ? "stem" : "convolution", &l, rows);
    if (program < 0 || cc_program_run(program, rows, a.in, a.out)) {
        printf("FAILED: %s with %s: %s\n", what, cc_isa(), cc_error());
        exit(1);
    }
    cc_program_release(program);

    exact given = new_exact(in), between_them = new_exact(fused ? out_size(&producer) : 1), expected = new_exact(out);
    for (int row = 0; row < rows; row++) {
        for (size_t i = 0; i < in; i++) {
            const int c = (int)(i % (size_t)channels);
            given.number[i] = pixels ? ((double)bytes[row * in + i] - spec.mean[c]) * spec.scale[c] : x[row * in + i];
            given.size[i] = fabs(given.number[i]);
        }
        const float *own_routing = routing ? routing + (size_t)row * mixed->num_experts : 0;
        if (fused) expect(&producer, given, producer.spec.mixed ? own_routing : 0, 0, 0, between_them);
        expect(&l, fused ? between_them : given, l.spec.mixed ? own_routing : 0, scale ? scale + (size_t)row * channels : 0,
               residual ? residual + row * out : 0, expected);
        compare(what, found + row * out, expected, out);
        if (!pooled) continue;
        for (int c = 0; c < l.spec.out_channels; c++) {
            double sum = 0, sizes = 0, area = (double)l.out_height * l.out_width;
            for (size_t i = c; i < out; i += l.spec.out_channels) sum += expected.number[i], sizes += expected.size[i];
            sum /= area;
            sizes /= area;
            compare("the mean", pooled + (size_t)row * l.spec.out_channels + c, (exact){&sum, &sizes}, 1);
        }
    }
    free_exact(given);
    free_exact(between_them);
    free_exact(expected);
done:
    cc_bank_release(l.bank);
    if (fused) cc_bank_release(producer.bank);
    release_all();
}

// --- all cases --------------------------------------------------------------------------------------------------------

typedef struct {
    pthread_t thread;
    int cases;
    uint64_t seed;
    double worst;
} stream;

static void *run_stream(void *argument) {
    stream *own = argument;
    state = own->seed;
    for (int i = 0; i < own->cases; i++) run_case();
    own->worst = worst_of_all;
    return 0;
}

enum { MOST_STREAMS = 8 };

int main(int count, char **argv) {
    const int cases = count > 1 ? atoi(argv[1]) : 100, threads = count > 2 ? atoi(argv[2]) : 1;
    const uint64_t seed = count > 3 ? strtoull(argv[3], 0, 10) : 1;
    if (threads > MOST_STREAMS) return 2;
    char names[256], *rest = names;
    snprintf(names, sizeof names, "%s", cc_isas());
    cc_set_threads(threads + 1);
    for (char *name; (name = strsep(&rest, ","));) {
        if (cc_set_isa(name)) return 1;
        stream streams[MOST_STREAMS];
        double worst = 0;
        for (int i = 0; i < threads; i++) {
            streams[i] = (stream){.cases = cases, .seed = seed + (uint64_t)i};
            if (pthread_create(&streams[i].thread, 0, run_stream, &streams[i])) return 1;
        }
        for (int i = 0; i < threads; i++) {
            pthread_join(streams[i].thread, 0);
            worst = fmax(worst, streams[i].worst);
        }
        printf("%s: %d cases, off by %.1e at most\n", name, cases * threads, worst);
    }
    if (cc_banks_alive() || cc_programs_alive()) {
        printf("FAILED: %lld banks and %lld programs are left\n", (long long)cc_banks_alive(), (long long)cc_programs_alive());
        return 1;
    }
    return 0;
}
