// Which instruction sets this CPU has, and which of them new banks and programs use.
#include "runtime.h"
#include <stdio.h>
#include <string.h>

extern const struct cc_isa cc_isa_generic;

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
extern const struct cc_isa cc_isa_avx2, cc_isa_avx512, cc_isa_avx512_bf16, cc_isa_amx_bf16;

typedef struct {
    int avx2, avx512, avx512_bf16, amx_bf16;
} features;

// Linux saves the tiles of threads that asked for it: all of this process, from now on.
static int may_use_tiles(void) {
#if defined __linux__ && defined SYS_arch_prctl
    enum { REQUEST = 0x1023, TILE_DATA = 18 }; // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return 0;
#endif
}

// By cpuid itself: what __builtin_cpu_supports needs is missing from Zig's runtime library.
static features detect(void) {
    const unsigned ymm = 0x6, zmm = 0xe6, tmm = 3u << 17; // the registers that the system saves, by xgetbv
    const unsigned wide = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    const unsigned bf16 = 1u << 5, amx = 1u << 24 | 1u << 22;
    unsigned a = 0, b = 0, c = 0, d = 0, basic = 0, more = 0, tiles = 0, last = 0, saved = 0, high = 0;
    if (__get_cpuid(1, &a, &b, &c, &d)) basic = c;
    if (basic & bit_OSXSAVE) __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    a = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) more = b, tiles = d;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) last = a;
    features has = {0};
    has.avx2 = (saved & ymm) == ymm && (basic & bit_FMA) && (basic & bit_F16C) && (more & bit_AVX2);
    has.avx512 = has.avx2 && (saved & zmm) == zmm && (more & wide) == wide;
    has.avx512_bf16 = has.avx512 && (last & bf16);
    has.amx_bf16 = has.avx512_bf16 && (saved & tmm) == tmm && (tiles & amx) == amx && may_use_tiles();
    return has;
}
#elif defined __aarch64__
extern const struct cc_isa cc_isa_neon;
#endif

enum { MOST = 8 };
static const struct cc_isa *available[MOST + 1]; // the best first, then NULL
static char names[MOST * 24];
static _Atomic(const struct cc_isa *) chosen;
static pthread_once_t once = PTHREAD_ONCE_INIT;

#ifdef __x86_64__
static int add_avx512(int count, features has) {
    (void)has;
#ifndef CC_WITHOUT_AMX_BF16
    if (has.amx_bf16) available[count++] = &cc_isa_amx_bf16;
#endif
#ifndef CC_WITHOUT_AVX512_BF16
    if (has.avx512_bf16) available[count++] = &cc_isa_avx512_bf16;
#endif
#ifndef CC_WITHOUT_AVX512
    if (has.avx512) available[count++] = &cc_isa_avx512;
#endif
    return count;
}
#endif

static void find_all(void) {
    int count = 0;
#ifdef __x86_64__
    features has = detect();
    (void)has;
#ifndef CC_EMULATE
    count = add_avx512(count, has);
#endif
#ifndef CC_WITHOUT_AVX2
    if (has.avx2) available[count++] = &cc_isa_avx2;
#endif
#elif defined __aarch64__
    available[count++] = &cc_isa_neon;
#endif
    available[count++] = &cc_isa_generic;
#if defined __x86_64__ && defined CC_EMULATE // compiled for AVX2, and slow
    has.avx512 = has.avx512_bf16 = has.amx_bf16 = has.avx2;
    count = add_avx512(count, has);
#endif
    size_t used = 0;
    for (int i = 0; i < count; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? "," : "", available[i]->name);
    atomic_store(&chosen, available[0]);
}

const struct cc_isa *cc_isa_now(void) {
    pthread_once(&once, find_all);
    return atomic_load_explicit(&chosen, memory_order_acquire);
}

const char *cc_isa(void) { return cc_isa_now()->name; }

const char *cc_isas(void) {
    cc_isa_now();
    return names;
}

int32_t cc_set_isa(const char *name) {
    cc_isa_now();
    for (int i = 0; name && available[i]; i++) {
        if (strcmp(name, available[i]->name)) continue;
        atomic_store(&chosen, available[i]);
        return 0;
    }
    return cc_fail("This CPU has no instruction set \"%.40s\", only %s.", name ? name : "", names);
}

int32_t cc_has_bfloat16(void) { return cc_isa_now()->bfloat16; }
