// AMX's tiles: registers of 16 rows of 64 bytes, and products of bfloat16 of whole tiles. With CC_EMULATE they are arrays.
//
// Tile 2 holds rows of x, 3 and 4 hold parts of the kernel, 0 and 1 sums of their products.
#pragma once
#include "simd.h"

enum { TILE_STEPS = 16, TILE_ROWS = 16, TILE_COLUMNS = 16 }; // a step is a pair of input channels

#ifdef CC_EMULATE
typedef struct {
    int rows;
    float sums[2][TILE_ROWS][TILE_COLUMNS];
    uint16_t x[TILE_ROWS][TILE_STEPS][2], kernel[2][TILE_STEPS][TILE_COLUMNS][2];
} tiles;

CC_INLINE void tiles_begin(tiles *t, int rows) { t->rows = rows; }
CC_INLINE void tiles_end(tiles *t) { (void)t; }
CC_INLINE void tiles_clear(tiles *t, const int n) { memset(t->sums[n], 0, sizeof t->sums[n]); }
CC_INLINE void tiles_load(tiles *t, const int n, const float *from, int pitch) {
    for (int r = 0; r < t->rows; r++) memcpy(t->sums[n][r], from + r * pitch, sizeof t->sums[n][r]);
}
CC_INLINE void tiles_store(tiles *t, const int n, float *to, int pitch) {
    for (int r = 0; r < t->rows; r++) memcpy(to + r * pitch, t->sums[n][r], sizeof t->sums[n][r]);
}
CC_INLINE void tiles_x(tiles *t, const char *from, ptrdiff_t pitch) {
    for (int r = 0; r < t->rows; r++) memcpy(t->x[r], from + r * pitch, sizeof t->x[r]);
}
CC_INLINE void tiles_kernel(tiles *t, const int n, const char *from, ptrdiff_t pitch) {
    for (int k = 0; k < TILE_STEPS; k++) memcpy(t->kernel[n][k], from + k * pitch, sizeof t->kernel[n][k]);
}
CC_INLINE void tiles_multiply(tiles *t, const int n) {
    for (int r = 0; r < t->rows; r++)
        for (int k = 0; k < TILE_STEPS; k++)
            for (int c = 0; c < TILE_COLUMNS; c++)
                for (int i = 0; i < 2; i++)
                    t->sums[n][r][c] += from_bfloat16(t->x[r][k][i]) * from_bfloat16(t->kernel[n][k][c][i]);
}
#else
typedef struct {
    int rows;
} tiles;

// Code of others may have used the tiles since, so each product begins anew.
CC_INLINE void tiles_begin(tiles *t, int rows) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 5; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = i < 3 ? (uint8_t)rows : TILE_STEPS;
    }
    // Some compilers think that tiles read less memory than they do.
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
    t->rows = rows;
}
CC_INLINE void tiles_end(tiles *t) {
    (void)t;
    _tile_release();
}
CC_INLINE void tiles_clear(tiles *t, const int n) {
    (void)t;
    if (n == 0) _tile_zero(0);
    else _tile_zero(1);
}
CC_INLINE void tiles_load(tiles *t, const int n, const float *from, int pitch) {
    (void)t;
    if (n == 0) _tile_loadd(0, from, pitch * 4);
    else _tile_loadd(1, from, pitch * 4);
}
CC_INLINE void tiles_store(tiles *t, const int n, float *to, int pitch) {
    (void)t;
    if (n == 0) _tile_stored(0, to, pitch * 4);
    else _tile_stored(1, to, pitch * 4);
}
CC_INLINE void tiles_x(tiles *t, const char *from, ptrdiff_t pitch) {
    (void)t;
    _tile_loadd(2, from, pitch);
}
CC_INLINE void tiles_kernel(tiles *t, const int n, const char *from, ptrdiff_t pitch) {
    (void)t;
    if (n == 0) _tile_loadd(3, from, pitch);
    else _tile_loadd(4, from, pitch);
}
CC_INLINE void tiles_multiply(tiles *t, const int n) {
    (void)t;
    if (n == 0) _tile_dpbf16ps(0, 2, 3);
    else _tile_dpbf16ps(1, 2, 4);
}
#endif
