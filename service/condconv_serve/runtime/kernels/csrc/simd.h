// One vector type and what is done with it, for the instruction set that a file is compiled for.
//
// CC_NAME(x) names a function of this instruction set. CC_VL: numbers per vector. CC_MR x CC_NR vectors of sums fill the
// registers of the product. With CC_EMULATE the vectors of AVX-512 are made of smaller ones, so that its code can be
// tested on any CPU.
#pragma once
#include "kernels.h"
#include <math.h>
#include <string.h>

#if defined(CC_ISA_AMX_BF16)
#define CC_NAME(x) x##_amx_bf16
#define CC_ISA_TEXT "amx_bf16"
#define CC_VL 16
#define CC_BFLOAT16_DOT 1
#define CC_TILES 1
#elif defined(CC_ISA_AVX512_BF16)
#define CC_NAME(x) x##_avx512_bf16
#define CC_ISA_TEXT "avx512_bf16"
#define CC_VL 16
#define CC_BFLOAT16_DOT 1
#elif defined(CC_ISA_AVX512)
#define CC_NAME(x) x##_avx512
#define CC_ISA_TEXT "avx512"
#define CC_VL 16
#elif defined(CC_ISA_AVX2)
#define CC_NAME(x) x##_avx2
#define CC_ISA_TEXT "avx2"
#define CC_VL 8
#elif defined(CC_ISA_NEON)
#define CC_NAME(x) x##_neon
#define CC_ISA_TEXT "neon"
#define CC_VL 4
#define CC_MR 5
#define CC_NR 4
#else
#define CC_NAME(x) x##_generic
#define CC_ISA_TEXT "generic"
#define CC_VL 4
#define CC_MR 3
#define CC_NR 4
#endif
#if CC_VL == 16
#define CC_MR 14
#define CC_NR 2
#elif CC_VL == 8
#define CC_MR 6
#define CC_NR 2
#endif
#ifndef CC_BFLOAT16_DOT
#define CC_BFLOAT16_DOT 0
#endif
#ifndef CC_TILES
#define CC_TILES 0
#endif
#define CC_TILE (CC_VL * CC_NR)

#if CC_VL >= 8 && !(CC_VL == 16 && defined(CC_EMULATE))
#include <immintrin.h>
#define CC_INTRINSICS 1
#else
#define CC_INTRINSICS 0
#endif

#define CC_INLINE static inline __attribute__((always_inline, unused))
#define CC_UNROLL _Pragma("GCC unroll 64")
#ifdef __clang__
#define CC_NOT_UNROLLED _Pragma("clang loop unroll(disable)")
#else
#define CC_NOT_UNROLLED _Pragma("GCC unroll 1")
#endif

typedef float vf __attribute__((vector_size(CC_VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(CC_VL * 4), aligned(4), may_alias));

CC_INLINE vf load(const float *p) { return *(const vf *)p; }
CC_INLINE void store(float *p, vf v) { *(vf *)p = v; }
CC_INLINE vf splat(float s) { return s - (vf){0}; }

// The larger and the smaller; NaN where x is NaN.
#if CC_INTRINSICS && CC_VL == 16
CC_INLINE vf at_least(float bound, vf x) { return (vf)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x); }
CC_INLINE vf at_most(float bound, vf x) { return (vf)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x); }
#elif CC_INTRINSICS
CC_INLINE vf at_least(float bound, vf x) { return (vf)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x); }
CC_INLINE vf at_most(float bound, vf x) { return (vf)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x); }
#else
CC_INLINE vf at_least(float bound, vf x) {
    vi m = x < splat(bound);
    return (vf)(((vi)splat(bound) & m) | ((vi)x & ~m));
}
CC_INLINE vf at_most(float bound, vf x) {
    vi m = x > splat(bound);
    return (vf)(((vi)splat(bound) & m) | ((vi)x & ~m));
}
#endif

CC_INLINE uint16_t to_bfloat16(float f) { // to nearest even; NaN stays NaN
    union { float f; uint32_t u; } v = {f};
    if ((v.u & 0x7fffffff) > 0x7f800000) return (uint16_t)(v.u >> 16 | 0x40);
    return (uint16_t)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}
CC_INLINE float from_bfloat16(uint16_t h) {
    union { uint32_t u; float f; } v = {(uint32_t)h << 16};
    return v.f;
}
CC_INLINE float from_float16(uint16_t h) { // of finite numbers
    union { uint32_t u; float f; } v = {(uint32_t)(h & 0x7fff) << 13};
    v.f *= 0x1p112f;
    v.u |= (uint32_t)(h & 0x8000) << 16;
    return v.f;
}

#if CC_INTRINSICS && CC_VL == 16
CC_INLINE vf load_bfloat16(const uint16_t *p) {
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
CC_INLINE vf load_float16(const uint16_t *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
CC_INLINE vf load_uint8(const uint8_t *p) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
#elif CC_INTRINSICS
CC_INLINE vf load_bfloat16(const uint16_t *p) {
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
CC_INLINE vf load_float16(const uint16_t *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
CC_INLINE vf load_uint8(const uint8_t *p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
#else
CC_INLINE vf load_bfloat16(const uint16_t *p) {
    vf v;
    for (int i = 0; i < CC_VL; i++) v[i] = from_bfloat16(p[i]);
    return v;
}
CC_INLINE vf load_float16(const uint16_t *p) {
    vf v;
    for (int i = 0; i < CC_VL; i++) v[i] = from_float16(p[i]);
    return v;
}
CC_INLINE vf load_uint8(const uint8_t *p) {
    vf v;
    for (int i = 0; i < CC_VL; i++) v[i] = p[i];
    return v;
}
#endif

CC_INLINE void store_bfloat16(uint16_t *p, vf v) {
#if CC_INTRINSICS && CC_BFLOAT16_DOT
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    for (int i = 0; i < CC_VL; i++) p[i] = to_bfloat16(v[i]);
#endif
}

// sum + a * b; where `pairs`, each number is two of bfloat16 whose products are added.
CC_INLINE vf multiply_add(vf sum, vf a, vf b, const int pairs) {
#if CC_INTRINSICS && CC_BFLOAT16_DOT
    if (pairs) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    if (pairs) {
        const vi high = (vi){0} + (int32_t)0xffff0000;
        return sum + (vf)((vi)a << 16) * (vf)((vi)b << 16) + (vf)((vi)a & high) * (vf)((vi)b & high);
    }
#endif
    return sum + a * b;
}

// The first `count` of a vector, of or to float32 or bfloat16; what lies beyond is never touched, and zero.
CC_INLINE vf load_some(const void *x, size_t at, int count, const int bf16) {
    if (count >= CC_VL) return bf16 ? load_bfloat16((const uint16_t *)x + at) : load((const float *)x + at);
    vf v = {0};
    for (int i = 0; i < count; i++) v[i] = bf16 ? from_bfloat16(((const uint16_t *)x)[at + i]) : ((const float *)x)[at + i];
    return v;
}
CC_INLINE void store_some(void *x, size_t at, vf v, int count, const int bf16) {
    if (count >= CC_VL) {
        if (bf16) store_bfloat16((uint16_t *)x + at, v);
        else store((float *)x + at, v);
        return;
    }
    for (int i = 0; i < count; i++) {
        if (bf16) ((uint16_t *)x)[at + i] = to_bfloat16(v[i]);
        else ((float *)x)[at + i] = v[i];
    }
}
CC_INLINE int min_of(int a, int b) { return a < b ? a : b; }
CC_INLINE size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
CC_INLINE int max_of(int a, int b) { return a > b ? a : b; }
