// Register-blocked products: CC_MR rows of x times a tile of CC_NR vectors.
#include "product.h"
#if CC_TILES
#include "tiles.h"
#endif

// Activated in a loop of its own, with little code: unrolled it would not fit the instruction cache.
static __attribute__((noinline)) void finish(const cc_tile_work *w, const float *sums, void *out, size_t place, int rows) {
    vf factor[CC_NR], bias[CC_NR];
    for (int n = 0; n < CC_NR; n++) {
        factor[n] = load(w->factor + n * CC_VL);
        bias[n] = load(w->bias + n * CC_VL);
    }
    const int two = w->columns == CC_TILE && !w->out_bfloat16;
    // Two rows at once.
#define FINISH_TWO(RESIDUAL) \
    for (; m + 2 <= rows; m += 2) { \
        vf v[2 * CC_NR]; \
        CC_UNROLL for (int n = 0; n < 2 * CC_NR; n++) \
            v[n] = load(sums + m * CC_TILE + n * CC_VL) * factor[n % CC_NR] + bias[n % CC_NR]; \
        const size_t one = place + (w->places ? (size_t)w->places[m] : m * w->out_pitch); \
        const size_t other = place + (w->places ? (size_t)w->places[m + 1] : (m + 1) * w->out_pitch); \
        if (RESIDUAL) { \
            const float *r = w->residual; \
            CC_UNROLL for (int n = 0; n < CC_NR; n++) { \
                v[n] += load(r + one + n * CC_VL); \
                v[CC_NR + n] += load(r + other + n * CC_VL); \
            } \
        } \
        activate_some(v, 2 * CC_NR, A, 0); \
        float *a = (float *)out + one, *b = (float *)out + other; \
        CC_UNROLL for (int n = 0; n < CC_NR; n++) { store(a + n * CC_VL, v[n]); store(b + n * CC_VL, v[CC_NR + n]); } \
    }
    int m = 0;
    if (two && w->residual) CC_EACH_ACTIVATION(w->activation, FINISH_TWO(1))
    else if (two) CC_EACH_ACTIVATION(w->activation, FINISH_TWO(0))
#define FINISH(RESIDUAL, BFLOAT16) \
    for (; m < rows; m++) { \
        const size_t at = place + (w->places ? (size_t)w->places[m] : m * w->out_pitch); \
        for (int n = 0; n < CC_NR; n++) { \
            const int count = w->columns - n * CC_VL; \
            if (count <= 0) break; \
            vf v = load(sums + m * CC_TILE + n * CC_VL) * factor[n] + bias[n]; \
            if (RESIDUAL) v += load_some(w->residual, at + n * CC_VL, count, BFLOAT16); \
            store_some(out, at + n * CC_VL, activate(v, A, BFLOAT16), count, BFLOAT16); \
        } \
    }
    if (w->out_bfloat16) {
        if (w->residual) CC_EACH_ACTIVATION(w->activation, FINISH(1, 1))
        else CC_EACH_ACTIVATION(w->activation, FINISH(0, 1))
    } else if (w->residual) CC_EACH_ACTIVATION(w->activation, FINISH(1, 0))
    else CC_EACH_ACTIVATION(w->activation, FINISH(0, 0))
#undef FINISH
#undef FINISH_TWO
}

#define ROW(m) ((m) < 5 ? p0 : (m) < 10 ? p1 : p2) + \
    ((m) % 5 == 0 ? 0 : (m) % 5 == 1 ? pitch : (m) % 5 == 2 ? 2 * pitch : (m) % 5 == 3 ? pitch3 : 4 * pitch)
// Keeps the compiler from making a pointer of each row, for which there are no registers.
#if defined(__x86_64__)
#define OPAQUE() __asm__("" : "+r"(p0), "+r"(p1), "+r"(p2), "+r"(pitch), "+r"(pitch3))
#else
#define OPAQUE()
#endif

CC_INLINE void product(cc_tile_work *w, const char *x, float *sums, void *out, size_t place, const int rows,
                       const int vectors, const int pairs) {
    vf sum[CC_MR][CC_NR];
    const char *p0 = x, *kernel = w->kernel, *next = w->next;
    ptrdiff_t pitch = w->x_pitch, pitch3 = 3 * pitch, fetch = w->fetch;
    const char *p1 = x + 5 * pitch, *p2 = x + 10 * pitch;
#define EACH(CODE) CC_UNROLL for (int m = 0; m < rows; m++) { CC_UNROLL for (int n = 0; n < vectors; n++) { CODE; } }
    if (w->first) { EACH(sum[m][n] = (vf){0}) }
    else { EACH(sum[m][n] = load(sums + m * CC_TILE + n * CC_VL)) }
    // One step per turn: unrolled, compilers move loads ahead until there are no registers left, which takes 1.5 times as
    // long.
    CC_NOT_UNROLLED for (int left = w->steps; left > 0; left--) {
        OPAQUE();
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + 64, 0, 2);
        next += fetch;
        vf k[CC_NR];
        CC_UNROLL for (int n = 0; n < vectors; n++) k[n] = load((const float *)kernel + n * CC_VL);
        CC_UNROLL for (int m = 0; m < rows; m++) {
            const vf v = splat(*(const float *)(ROW(m)));
            CC_UNROLL for (int n = 0; n < vectors; n++) sum[m][n] = multiply_add(sum[m][n], k[n], v, pairs);
        }
        p0 += 4;
        p1 += 4;
        p2 += 4;
        kernel += CC_TILE * 4;
    }
    w->next = next;
    if (!w->last) {
        EACH(store(sums + m * CC_TILE + n * CC_VL, sum[m][n]))
        return;
    }
    float done[CC_MR * CC_TILE] __attribute__((aligned(64)));
    EACH(store(done + m * CC_TILE + n * CC_VL, sum[m][n]))
    finish(w, done, out, place, rows);
#undef EACH
}

typedef void (*product_fn)(cc_tile_work *, const char *, float *, void *, size_t);
#define INSTANCE(R, V, P) \
    static void product_##R##_##V##_##P(cc_tile_work *w, const char *x, float *sums, void *out, size_t place) { \
        product(w, x, sums, out, place, R, V, P); \
    }
#define EACH_VECTORS_2(F, R, P) F(R, 1, P) F(R, 2, P)
#define EACH_VECTORS_4(F, R, P) F(R, 1, P) F(R, 2, P) F(R, 3, P) F(R, 4, P)
#if CC_NR == 4
#define EACH_VECTORS EACH_VECTORS_4
#else
#define EACH_VECTORS EACH_VECTORS_2
#endif
#define EACH_ROWS_3(F, P) EACH_VECTORS(F, 1, P) EACH_VECTORS(F, 2, P) EACH_VECTORS(F, 3, P)
#define EACH_ROWS_5(F, P) EACH_ROWS_3(F, P) EACH_VECTORS(F, 4, P) EACH_VECTORS(F, 5, P)
#define EACH_ROWS_6(F, P) EACH_ROWS_5(F, P) EACH_VECTORS(F, 6, P)
#define EACH_ROWS_14(F, P) EACH_ROWS_6(F, P) EACH_VECTORS(F, 7, P) EACH_VECTORS(F, 8, P) EACH_VECTORS(F, 9, P) \
    EACH_VECTORS(F, 10, P) EACH_VECTORS(F, 11, P) EACH_VECTORS(F, 12, P) EACH_VECTORS(F, 13, P) EACH_VECTORS(F, 14, P)
#if CC_MR == 14
#define EACH_ROWS EACH_ROWS_14
#elif CC_MR == 6
#define EACH_ROWS EACH_ROWS_6
#elif CC_MR == 5
#define EACH_ROWS EACH_ROWS_5
#else
#define EACH_ROWS EACH_ROWS_3
#endif
#define ENTRY(R, V, P) [R - 1][V - 1] = product_##R##_##V##_##P,
EACH_ROWS(INSTANCE, 0)
static const product_fn FLOATS[CC_MR][CC_NR] = {EACH_ROWS(ENTRY, 0)};
#if CC_BFLOAT16_DOT
EACH_ROWS(INSTANCE, 1)
static const product_fn PAIRS[CC_MR][CC_NR] = {EACH_ROWS(ENTRY, 1)};
#endif

// With vectors.
static void each_product(cc_tile_work *w, int rows, const char *x, float *sums, void *out, size_t place) {
    const int32_t *places = w->places;
    for (int turns = (rows + CC_MR - 1) / CC_MR, m = 0; turns > 0; turns--) {
        const int some = (rows - m + turns - 1) / turns; // about as many in each turn
#if CC_BFLOAT16_DOT
        const product_fn f = w->bfloat16 ? PAIRS[some - 1][w->vectors - 1] : FLOATS[some - 1][w->vectors - 1];
#else
        const product_fn f = FLOATS[some - 1][w->vectors - 1];
#endif
        if (places) w->places = places + m;
        f(w, x + m * w->x_pitch, sums ? sums + (size_t)m * CC_TILE : 0, out, places ? place : place + m * w->out_pitch);
        m += some;
    }
    w->places = places;
}

#if CC_TILES
// With AMX's tiles, as far as the steps fill them; vectors do the rest.
static void product_tiles(cc_tile_work *w, int rows, const char *x, float *sums, void *out, size_t place) {
    const int steps = w->steps / TILE_STEPS * TILE_STEPS;
    cc_tile_work rest = *w;
    rest.kernel += (size_t)steps * CC_TILE * 4;
    rest.steps -= steps;
    rest.first = 0;
    tiles t;
    for (int turns = (rows + TILE_ROWS - 1) / TILE_ROWS, m = 0, some; turns > 0; turns--, m += some) {
        some = (rows - m + turns - 1) / turns;
        float done[TILE_ROWS * CC_TILE] __attribute__((aligned(64)));
        float *to = w->last ? done : sums + (size_t)m * CC_TILE;
        tiles_begin(&t, some);
        for (int n = 0; n < 2 && n < w->vectors; n++) {
            if (w->first) tiles_clear(&t, n);
            else tiles_load(&t, n, sums + (size_t)m * CC_TILE + n * CC_VL, CC_TILE);
        }
        for (int k = 0; k < steps; k += TILE_STEPS) {
            const char *kernel = w->kernel + (size_t)k * CC_TILE * 4;
            tiles_x(&t, x + m * w->x_pitch + (size_t)k * 4, w->x_pitch);
            tiles_kernel(&t, 0, kernel, CC_TILE * 4);
            tiles_multiply(&t, 0);
            if (w->vectors > 1) {
                tiles_kernel(&t, 1, kernel + CC_VL * 4, CC_TILE * 4);
                tiles_multiply(&t, 1);
            }
        }
        tiles_store(&t, 0, to, CC_TILE);
        if (w->vectors > 1) tiles_store(&t, 1, to + CC_VL, CC_TILE);
        tiles_end(&t);
        const size_t at = w->places ? place : place + m * w->out_pitch;
        rest.places = w->places ? w->places + m : 0;
        if (rest.steps) each_product(&rest, some, x + m * w->x_pitch + (size_t)steps * 4, to, out, at);
        else if (w->last) finish(&rest, done, out, at, some);
    }
}
#endif

void CC_NAME(cc_product)(cc_tile_work *w, int rows, const char *x, float *sums, void *out, size_t place) {
#if CC_TILES
    if (w->bfloat16 && w->steps >= TILE_STEPS) {
        product_tiles(w, rows, x, sums, out, place);
        return;
    }
#endif
    each_product(w, rows, x, sums, out, place);
}
