// Sizes of a program's values.
#include "runtime.h"

size_t cc_type_size(int type) { return type == CC_UINT8 ? 1 : type == CC_FLOAT32 ? 4 : 2; }

const char *cc_type_name(int type) { return type == CC_UINT8 ? "uint8" : type == CC_FLOAT32 ? "float32" : "bfloat16"; }

int64_t cc_value_count(const cc_value *value) {
    int64_t count = 1;
    for (int i = 0; i < value->rank; i++) count *= value->shape[i];
    return count;
}

size_t cc_value_bytes(const cc_value *value) { return (size_t)cc_value_count(value) * cc_type_size(value->type); }
