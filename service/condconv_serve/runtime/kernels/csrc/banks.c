// A convolution's weights: checked, packed for the chosen instruction set, counted.
#include "runtime.h"
#include <stdlib.h>
#include <string.h>

enum {
    MOST_EXPERTS = 1 << 10,
    MOST_TAPS = 1 << 16,
    MOST_STEP = 1 << 16,
    MOST_CHANNELS = 1 << 24,
    MOST_DEPTH = 1 << 28,
};

static cc_table table = CC_TABLE;
static atomic_llong alive;

int32_t cc_struct_size(int32_t number) {
    const int32_t sizes[] = {sizeof(cc_bank_spec), sizeof(cc_step), sizeof(cc_value), sizeof(cc_stage),
                             sizeof(cc_program_spec)};
    return number >= 0 && number < (int32_t)(sizeof sizes / sizeof *sizes) ? sizes[number] : 0;
}

int32_t cc_version(void) { return CC_VERSION; }

typedef struct {
    const char *name;
    int32_t value, most;
} bounded;

// Each number by itself.
static int check_numbers(const cc_bank_spec *s) {
    if ((s->depthwise | s->mixed) & ~1) return cc_fail("A bank's depthwise and mixed are 0 or 1.");
    const bounded all[] = {
        {"experts", s->num_experts, MOST_EXPERTS},
        {"input channels", s->in_channels, MOST_CHANNELS},
        {"output channels", s->out_channels, MOST_CHANNELS},
        {"rows in its kernel", s->kernel_height, MOST_TAPS},
        {"columns in its kernel", s->kernel_width, MOST_TAPS},
        {"rows per stride", s->stride_height, MOST_STEP},
        {"columns per stride", s->stride_width, MOST_STEP},
        {"rows per dilation", s->dilation_height, MOST_STEP},
        {"columns per dilation", s->dilation_width, MOST_STEP},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].value < 1 || all[i].value > all[i].most)
            return cc_fail("A bank has 1 to %d %s, not %d.", all[i].most, all[i].name, all[i].value);
    if ((int64_t)s->kernel_height * s->kernel_width > MOST_TAPS)
        return cc_fail("A kernel of %d x %d is too large.", s->kernel_height, s->kernel_width);
    // The distance between a kernel's first and last row is counted in int.
    if ((int64_t)s->kernel_height * s->dilation_height > MOST_DEPTH ||
        (int64_t)s->kernel_width * s->dilation_width > MOST_DEPTH)
        return cc_fail("A kernel of %d x %d is too wide with dilations of %d x %d.", s->kernel_height, s->kernel_width,
                       s->dilation_height, s->dilation_width);
    return 0;
}

// The numbers together.
static int check_spec(const cc_bank_spec *s, const struct cc_isa *isa) {
    if (check_numbers(s)) return -1;
    if (!s->mixed && s->num_experts != 1)
        return cc_fail("A bank that isn't mixed has 1 expert, not %d.", s->num_experts);
    if (s->depthwise && s->in_channels != s->out_channels)
        return cc_fail("A depthwise bank has as many output channels as input channels, not %d and %d.",
                       s->out_channels, s->in_channels);
    if (s->type < CC_BANK_FLOAT32 || s->type > CC_BANK_BFLOAT16) return cc_fail("There is no bank type %d.", s->type);
    if (s->depthwise && s->type != CC_BANK_FLOAT32) return cc_fail("Depthwise banks are float32.");
    if (s->type == CC_BANK_FLOAT16 && !s->mixed) return cc_fail("Only mixed banks hold half floats.");
    if (s->type == CC_BANK_BFLOAT16 && !isa->bfloat16)
        return cc_fail("The instruction set %s multiplies no bfloat16.", isa->name);
    int64_t depth = (int64_t)s->kernel_height * s->kernel_width * (s->depthwise ? 1 : s->in_channels);
    int64_t tiles = (s->out_channels + isa->tile - 1) / isa->tile, numbers = 0;
    if (depth > MOST_DEPTH) return cc_fail("A kernel of %lld numbers per output is too large.", (long long)depth);
    if (__builtin_mul_overflow(depth + 1, tiles * isa->tile, &numbers) ||
        __builtin_mul_overflow(numbers, (int64_t)s->num_experts, &numbers) || numbers > CC_MOST_NUMBERS)
        return cc_fail("A bank of %d experts for %d x %d x %d x %d numbers is too large.", s->num_experts,
                       s->kernel_height, s->kernel_width, s->in_channels, s->out_channels);
    return 0;
}

// `rows` of out_channels numbers, or `otherwise` where there are none, each filled up to whole tiles.
static float *padded(const cc_bank *bank, const float *from, int rows, float otherwise) {
    const int channels = bank->spec.out_channels;
    const size_t pitch = (size_t)bank->tiles * (size_t)bank->isa->tile;
    float *to = NULL;
    if (posix_memalign((void **)&to, 64, pitch * (size_t)rows * sizeof *to)) return NULL;
    memset(to, 0, pitch * (size_t)rows * sizeof *to);
    for (int row = 0; row < rows; row++)
        for (int c = 0; c < channels; c++)
            to[(size_t)row * pitch + (size_t)c] = from ? from[(size_t)row * (size_t)channels + (size_t)c] : otherwise;
    return to;
}

static void destroy(cc_bank *bank) {
    free(bank->factor);
    free(bank->bias);
    free(bank->expert_bias);
    cc_room_free(bank->data, bank->bytes);
    free(bank);
}

static cc_bank *make(const cc_bank_spec *spec, const struct cc_isa *isa, const float *experts, const float *factor,
                     const float *bias, const float *expert_bias) {
    cc_bank *bank = calloc(1, sizeof *bank);
    if (!bank) return NULL;
    bank->spec = *spec;
    bank->isa = isa;
    atomic_init(&bank->references, 1);
    bank->taps = spec->kernel_height * spec->kernel_width;
    bank->depth = spec->depthwise ? bank->taps : (bank->taps * spec->in_channels + 1) / 2 * 2;
    bank->tiles = (spec->out_channels + isa->tile - 1) / isa->tile;
    bank->factor = padded(bank, factor, 1, 1);
    bank->bias = padded(bank, bias, 1, 0);
    if (expert_bias) bank->expert_bias = padded(bank, expert_bias, spec->num_experts, 0);
    bank->bytes = isa->bank_bytes(bank);
    bank->data = cc_room(bank->bytes);
    if (!bank->factor || !bank->bias || (expert_bias && !bank->expert_bias) || !bank->data) {
        destroy(bank);
        return NULL;
    }
    isa->pack(bank, experts, bank->data);
    return bank;
}

int64_t cc_bank_new(const cc_bank_spec *spec, const float *experts, const float *factor, const float *bias,
                    const float *expert_bias) {
    if (!spec || !experts) return cc_fail("A bank needs a spec and experts.");
    const struct cc_isa *isa = cc_isa_now();
    if (check_spec(spec, isa)) return -1;
    if (expert_bias && !spec->mixed) return cc_fail("Only mixed banks have a bias per expert.");
    cc_bank *bank = make(spec, isa, experts, factor, bias, expert_bias);
    int64_t number = bank ? cc_table_add(&table, bank) : -1;
    if (number >= 0) atomic_fetch_add(&alive, 1);
    else if (bank) destroy(bank);
    return number >= 0 ? number : cc_fail("There is no memory for a bank of %d experts, %d x %d x %d x %d.",
                                          spec->num_experts, spec->kernel_height, spec->kernel_width,
                                          spec->in_channels, spec->out_channels);
}

static void keep(void *bank) { atomic_fetch_add(&((cc_bank *)bank)->references, 1); }

cc_bank *cc_bank_keep(int64_t number) { return cc_table_keep(&table, number, keep); }

void cc_bank_drop(cc_bank *bank) {
    if (!bank || atomic_fetch_sub(&bank->references, 1) != 1) return;
    atomic_fetch_sub(&alive, 1);
    destroy(bank);
}

void cc_bank_release(int64_t number) { cc_bank_drop(cc_table_remove(&table, number)); }

int64_t cc_bank_bytes(int64_t number) {
    cc_bank *bank = cc_bank_keep(number);
    if (!bank) return cc_fail("There is no such bank.");
    int64_t bytes = (int64_t)bank->bytes;
    cc_bank_drop(bank);
    return bytes;
}

int64_t cc_banks_alive(void) { return atomic_load(&alive); }
