// How many floating-point operations a core does per second of processor time with multiply-adds and nothing else, while
// so many threads do the same: the roofline of `peak.py`. Prints "instruction-set operations-per-second" for each way
// that this CPU has.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAINS = 12, CHUNK = 20000 };  // enough independent sums to hide a multiply-add's latency

// The compiler sees neither what is added nor that it is always the same.
#define LOOP(NAME, TARGET, VECTOR, CLASS, INSTRUCTION)                                            \
    __attribute__((target(TARGET))) static void NAME(void) {                                      \
        VECTOR a = {0}, b = {0}, sums[CHAINS] = {{0}};                                            \
        for (int i = 0; i < CHUNK; i++) {                                                         \
            _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++)                             \
                __asm__ volatile(INSTRUCTION : "+" CLASS(sums[j]) : CLASS(a), CLASS(b));          \
        }                                                                                         \
    }

typedef float float4 __attribute__((vector_size(16)));
typedef float float8 __attribute__((vector_size(32)));
typedef float float16 __attribute__((vector_size(64)));

#if defined(__x86_64__)
LOOP(loop_avx2, "avx2,fma", float8, "x", "vfmadd231ps %2, %1, %0")
LOOP(loop_avx512, "avx512f", float16, "v", "vfmadd231ps %2, %1, %0")
LOOP(loop_avx512_bf16, "avx512f", float16, "v", "vdpbf16ps %2, %1, %0")
#elif defined(__aarch64__)
LOOP(loop_neon, "arch=armv8-a", float4, "w", "fmla %0.4s, %1.4s, %2.4s")
#endif

typedef struct {
    const char *name;
    void (*loop)(void);
    double operations;  // per call
} way;

typedef struct {
    const way *way;
    double until, operations, seconds;
} work;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *run(void *argument) {
    work *w = argument;
    double started = now(CLOCK_THREAD_CPUTIME_ID);
    do {
        w->way->loop();
        w->operations += w->way->operations;
    } while (now(CLOCK_MONOTONIC) < w->until);
    w->seconds = now(CLOCK_THREAD_CPUTIME_ID) - started;
    return NULL;
}

static double measure(const way *way, int threads, double seconds) {
    pthread_t started[threads];
    work works[threads];
    double rate = 0, until = now(CLOCK_MONOTONIC) + seconds;
    for (int i = 0; i < threads; i++) {
        works[i] = (work){.way = way, .until = until};
        if (pthread_create(&started[i], NULL, run, &works[i])) exit(1);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(started[i], NULL);
        rate += works[i].operations / works[i].seconds;
    }
    return rate / threads;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int threads = atoi(argv[1]), count = 0;
    double seconds = atof(argv[2]), steps = 2.0 * CHAINS * CHUNK;
    way ways[4];
#if defined(__x86_64__)
    if (__builtin_cpu_supports("fma")) ways[count++] = (way){"avx2", loop_avx2, 8 * steps};
    if (__builtin_cpu_supports("avx512f")) ways[count++] = (way){"avx512", loop_avx512, 16 * steps};
    if (__builtin_cpu_supports("avx512bf16")) ways[count++] = (way){"avx512_bf16", loop_avx512_bf16, 32 * steps};
#elif defined(__aarch64__)
    ways[count++] = (way){"neon", loop_neon, 4 * steps};
#endif
    for (int i = 0; i < count; i++) printf("%s %.6g\n", ways[i].name, measure(&ways[i], threads, seconds));
    return 0;
}
