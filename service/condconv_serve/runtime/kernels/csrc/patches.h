// The inputs of a convolution's outputs, one output after the other, as the product reads them.
#pragma once
#include "simd.h"

// Whether the input itself is laid out so: kernels of 1 x 1 at stride 1 without padding.
int CC_NAME(cc_is_direct)(const cc_conv *conv);

enum { CC_PATCH_SLACK = 16 }; // bytes behind the patches that may be written, too

// Writes the patches of outputs `first` to `last` - 1 of one example (by row, then column): out [outputs][bank->depth],
// float32, or bfloat16 where the bank is. `x` is the example's input.
int CC_NAME(cc_patches)(const cc_conv *conv, const char *x, int first, int last, void *out);

CC_INLINE size_t size_of_type(cc_type type) { return type == CC_UINT8 ? 1 : type == CC_BFLOAT16 ? 2 : 4; }
