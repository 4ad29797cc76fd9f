// What each instruction set offers, and what it is called with. The files of kernels are compiled once for each of them,
// with CC_ISA_<SET> defined. Where a compiler is too old for a set, the other files have CC_WITHOUT_<SET> defined. For
// tests on CPUs without AVX-512, CC_EMULATE is defined in its sets' files and in all that are compiled once: then those
// sets are compiled for AVX2, any CPU with AVX2 has them, and they come last among its sets, since they are slow.
#pragma once
#include "condconv.h"
#include <stdatomic.h>

struct cc_isa;

// A convolution's weights, packed for one instruction set.
typedef struct cc_bank {
    cc_bank_spec spec;
    const struct cc_isa *isa;
    atomic_int references;
    int taps;              // kernel_height * kernel_width
    int depth;             // numbers that one output sums: taps * in_channels (bfloat16: an even count); depthwise: taps
    int tiles;             // of isa->tile output channels
    float *factor, *bias;  // filled up with zeros to whole tiles
    float *expert_bias;    // [num_experts][tiles * tile] or NULL
    size_t bytes;          // of data
    void *data;
} cc_bank;

typedef struct {
    float mean[4], scale[4]; // by channel
} cc_pixels;

// Rows of a convolution's input and output; all are packed densely. Types: `type` is that of the input (CC_UINT8 or
// CC_FLOAT32 with `pixels`), `out_type` of output and residual.
typedef struct {
    const cc_bank *bank;
    const cc_pixels *pixels; // NULL: the input is what it is
    cc_type type, out_type;
    int batch, height, width, out_height, out_width;
    int pad_top, pad_left;   // pad_top of a depthwise convolution may be negative: so many rows are left out
    cc_activation activation;
    const void *x;
    const float *routing;    // [batch, num_experts] or NULL
    const float *scale;      // [batch, in_channels] or NULL
    const void *residual;    // or NULL
    void *out;
    float *pooled;           // [batch, out_channels] or NULL; depthwise only
} cc_conv;

// Windows over an image, each with one number of the image at least.
typedef struct {
    int height, width, channels, out_height, out_width;
    int window_height, window_width, stride_height, stride_width, pad_top, pad_left;
} cc_windows;

// A part of the work: some tiles of output channels, and some of the pixels of all rows. Parts may run at the same time.
// A kernel says into how many parts it may be cut.
typedef struct {
    int tile_begin, tile_end;
    int pixel_begin, pixel_end; // of batch * out_height * out_width, or of whatever the kernel counts
} cc_part;

typedef struct {
    int tiles;  // that can be split
    int pixels; // 1: they can't
} cc_extent;

struct cc_isa { // cc_isa alone is the function of condconv.h
    const char *name;
    int tile;          // output channels per tile
    int bfloat16;      // whether it multiplies bfloat16
    size_t (*bank_bytes)(const cc_bank *bank);
    void (*pack)(const cc_bank *bank, const float *experts, void *data);
    cc_extent (*conv_extent)(const cc_conv *conv);
    int (*conv)(const cc_conv *conv, cc_part part); // 0, or -1: there is no memory
    // `producer` yields the input of `conv` tile by tile (its out is not written), or is NULL.
    cc_extent (*depthwise_extent)(const cc_conv *producer, const cc_conv *conv);
    int (*depthwise)(const cc_conv *producer, const cc_conv *conv, cc_part part);
    // One row each.
    void (*pool)(cc_type type, const void *x, int pixels, int channels, float *out);
    void (*max_pool)(cc_type type, const cc_windows *windows, const void *x, void *out);
    void (*scale)(cc_type type, const void *x, const float *scale, int pixels, int channels, void *out);
    void (*add)(cc_type type, const void *x, const void *y, size_t count, cc_activation activation, void *out);
    void (*multiply)(cc_type type, const void *x, const void *y, size_t count, void *out);
    void (*activate)(cc_type type, const void *x, size_t count, cc_activation activation, void *out);
    void (*convert)(cc_type from, const void *x, cc_type to, size_t count, void *out);
};

// This thread's memory for one purpose, 64-byte aligned, kept until the thread ends; NULL: there is none.
enum { CC_SCRATCH_MIXED, CC_SCRATCH_SUMS, CC_SCRATCH_PATCHES, CC_SCRATCH_IMAGE, CC_SCRATCH_TABLE, CC_SCRATCH_WEIGHTS,
       CC_SCRATCH_DONE, CC_SCRATCH_LINE, CC_SCRATCH_HALO, CC_SCRATCH_VALUES, CC_SCRATCH_POOLED, CC_SCRATCH_SLOTS };
void *cc_scratch(int slot, size_t bytes);

// Memory for what is read over and over: in huge pages where they can be had.
void *cc_room(size_t bytes);
void cc_room_free(void *room, size_t bytes);
