// The product of some rows of x with one tile of a kernel, and what comes at its end.
#pragma once
#include "activations.h"

// How a block of `steps` input channels of one tile is computed. A step is 4 bytes of x: a float or a pair of bfloat16.
typedef struct {
    ptrdiff_t x_pitch;       // bytes between rows of x
    const char *kernel;      // [steps][CC_TILE] of 4 bytes
    int steps;
    int first, last;         // whether it is the first, the last block of these sums
    const float *factor, *bias; // [CC_TILE]
    cc_activation activation;
    int columns;             // of the tile
    int vectors;             // of the tile: those that hold columns
    int bfloat16;            // whether x and the kernel are
    size_t out_pitch;        // numbers between rows of out,
    const int32_t *places;   // or where each row begins
    const void *residual;    // laid out like out, or NULL
    int out_bfloat16;
    const char *next;        // what is to be fetched into the cache meanwhile,
    ptrdiff_t fetch;         // so many bytes every step
} cc_tile_work;

// `rows` rows of x; `sums` [rows][CC_TILE] holds what is not finished. `place` is added to where rows of out begin.
void CC_NAME(cc_product)(cc_tile_work *work, int rows, const char *x, float *sums, void *out, size_t place);

// Plans the fetching of what will be read next: `bytes` from `next` on, while `rows` rows are computed.
CC_INLINE void fetch_meanwhile(cc_tile_work *work, const char *next, size_t bytes, size_t rows) {
    const size_t turns = ((rows + CC_MR - 1) / CC_MR) * (size_t)work->steps;
    work->next = next;
    work->fetch = (ptrdiff_t)min_size((bytes + turns - 1) / (turns ? turns : 1), 128);
}
