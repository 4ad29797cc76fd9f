// The table of one instruction set.
#include "mixing.h"
#include "patches.h"

size_t CC_NAME(cc_bank_bytes)(const cc_bank *);
void CC_NAME(cc_pack)(const cc_bank *, const float *, void *);
cc_extent CC_NAME(cc_conv_extent)(const cc_conv *);
int CC_NAME(cc_conv)(const cc_conv *, cc_part);
cc_extent CC_NAME(cc_depthwise_extent)(const cc_conv *, const cc_conv *);
int CC_NAME(cc_depthwise)(const cc_conv *, const cc_conv *, cc_part);
void CC_NAME(cc_pool)(cc_type, const void *, int, int, float *);
void CC_NAME(cc_max_pool)(cc_type, const cc_windows *, const void *, void *);
void CC_NAME(cc_scale)(cc_type, const void *, const float *, int, int, void *);
void CC_NAME(cc_add)(cc_type, const void *, const void *, size_t, cc_activation, void *);
void CC_NAME(cc_multiply)(cc_type, const void *, const void *, size_t, void *);
void CC_NAME(cc_activate)(cc_type, const void *, size_t, cc_activation, void *);
void CC_NAME(cc_convert)(cc_type, const void *, cc_type, size_t, void *);

const struct cc_isa CC_NAME(cc_isa) = {
    .name = CC_ISA_TEXT,
    .tile = CC_TILE,
    .bfloat16 = CC_BFLOAT16_DOT,
    .bank_bytes = CC_NAME(cc_bank_bytes),
    .pack = CC_NAME(cc_pack),
    .conv_extent = CC_NAME(cc_conv_extent),
    .conv = CC_NAME(cc_conv),
    .depthwise_extent = CC_NAME(cc_depthwise_extent),
    .depthwise = CC_NAME(cc_depthwise),
    .pool = CC_NAME(cc_pool),
    .max_pool = CC_NAME(cc_max_pool),
    .scale = CC_NAME(cc_scale),
    .add = CC_NAME(cc_add),
    .multiply = CC_NAME(cc_multiply),
    .activate = CC_NAME(cc_activate),
    .convert = CC_NAME(cc_convert),
};
